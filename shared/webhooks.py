"""Outgoing webhooks, decided: what is sent, how it is signed, where it may go and when it is tried again.

Follows the Standard Webhooks specification 1.0, so that receivers verify it with a library they already have."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final, NamedTuple, TypeAlias

import msgspec
from standardwebhooks import Webhook

from shared.errors import Fault, ValidationFailed
from shared.ids import EndpointId, JobId
from shared.webhook_records import DeliveryAttempt, RetiredSecret, WebhookEndpoint

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# --- what is sent ----------------------------------------------------------------------------------------------------

EVENT_TYPES: Final = (
    "job.running",
    "job.stage_changed",
    "job.awaiting_deployment",
    "job.paused",
    "job.succeeded",
    "job.failed",
    "job.cancelled",
    "job.deleted",
    "budget.threshold_reached",
    "webhook_endpoint.disabled",
    "webhook.test",
)
#: What ends a job, or leaves it to its owner.
DEFAULT_EVENTS: Final = ("job.succeeded", "job.failed", "job.cancelled", "job.paused", "job.awaiting_deployment")
USER_AGENT: Final = "Distillery/1 (+webhooks)"


def event_body(
    event_id: str,
    event_type: str,
    created_at_ms: int,
    *,
    job_id: JobId,
    status: str,
    version: int,
    metadata: Mapping[str, str],
) -> str:
    """The JSON text of one event: ids and state, never prompts, answers or keys.

    created_at_ms: of the event, not of the attempt.  The same arguments give the same characters, whatever the order
    of the metadata, because it is this text that is signed."""
    data = {
        "id": job_id,
        "object": "distillation.job",
        "status": str(status),
        "version": version,
        "metadata": dict(sorted(metadata.items())),
    }
    return _written(event_id, event_type, created_at_ms, data)


def endpoint_event_body(
    event_id: str, event_type: str, created_at_ms: int, *, endpoint_id: EndpointId, enabled: bool
) -> str:
    """`event_body` for what is told of a webhook endpoint: that it was disabled, or that somebody tries it out."""
    data = {"id": endpoint_id, "object": "webhook_endpoint", "enabled": enabled}
    return _written(event_id, event_type, created_at_ms, data)


def _written(event_id: str, event_type: str, created_at_ms: int, data: Mapping[str, object]) -> str:
    event = {
        "id": event_id,
        "object": "event",
        "type": event_type,
        "created_at": created_at_ms // 1000,
        "data": data,
    }
    return msgspec.json.encode(event).decode()


def signing_secret(secret: bytes, tenant: str) -> str:
    """The `whsec_…` that a tenant verifies our webhooks with.  secret: the operator's; cannot be told from it."""
    key = hmac.new(secret, b"webhook:" + tenant.encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(key).decode()


def secrets_of(endpoint: WebhookEndpoint, now: datetime) -> list[str]:
    """What signs a delivery to this endpoint now: its secret, and for a day after their rotation those before it."""
    return [endpoint.secret, *(retired.secret for retired in still_signing(endpoint, now.timestamp() * 1000))]


def still_signing(endpoint: WebhookEndpoint, now_ms: float) -> list[RetiredSecret]:
    """Its replaced secrets whose time is not over, the newest first."""
    return [retired for retired in endpoint.retired_secrets if now_ms < retired.until_ms]


def headers(event_id: str, body: str, secrets: Sequence[str], now: datetime) -> dict[str, str]:
    """Headers of one attempt, with one signature per secret: several while one is being replaced.

    event_id: the same at every attempt; receivers deduplicate by it.  now: of this attempt, aware.
    Raises ValueError for a naive `now` or no secret."""
    if now.tzinfo is None or not secrets:
        raise ValueError("an aware time and at least one secret are needed")
    # standardwebhooks signs the wall clock of any datetime as if it were UTC.
    at = now.astimezone(UTC)
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(Webhook(secret).sign(event_id, at, body) for secret in secrets),
    }


# --- when it is tried again ------------------------------------------------------------------------------------------

#: Seconds before each attempt, counted from the end of the one before it: the specification's example schedule, whose
#: tenth and last attempt falls 75 h 35 min 5 s after the first.
SCHEDULE_SECONDS: Final = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
JITTER: Final = 0.1  # the largest share added to a wait, so that receivers are not hit in step
RETRY_AFTER_CAP_SECONDS: Final = 86_400.0
_RETRY_AFTER_STATUSES: Final = frozenset({429, 502, 503, 504})
GONE: Final = 410


@dataclass(frozen=True, slots=True)
class Delivered:
    """The receiver took it."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """after_seconds: from now."""

    after_seconds: float


@dataclass(frozen=True, slots=True)
class GaveUp:
    """disabled: the receiver said 410 Gone, and wants nothing further from this source."""

    disabled: bool


def after_attempt(
    attempts: Sequence[DeliveryAttempt], *, retry_after_seconds: float | None, jitter: float
) -> Delivered | RetryAt | GaveUp:
    """What becomes of a delivery.

    attempts: all so far, or since it was last sent again on request; at least one.  The last is the one just made.
    jitter: in [0, 1), drawn by the caller.  retry_after_seconds: what the last answer asked for; can only lengthen the
    wait, and only on 429, 502, 503, 504."""
    status = attempts[-1].status
    if status is not None and 200 <= status < 300:
        return Delivered()
    if status == GONE:
        return GaveUp(disabled=True)
    if len(attempts) >= len(SCHEDULE_SECONDS):
        return GaveUp(disabled=False)
    asked = retry_after_seconds if retry_after_seconds and status in _RETRY_AFTER_STATUSES else 0.0
    wait = max(SCHEDULE_SECONDS[len(attempts)], min(asked, RETRY_AFTER_CAP_SECONDS))
    return RetryAt(wait * (1 + JITTER * jitter))


def parse_retry_after(value: str, now: datetime) -> float | None:
    """Seconds a Retry-After field asks for, in [0, RETRY_AFTER_CAP_SECONDS]; None when it cannot be read.

    value: seconds or an HTTP date (RFC 9110, 10.2.3).  now: aware."""
    value = value.strip()
    if value.isascii() and value.isdigit():
        return min(float(value), RETRY_AFTER_CAP_SECONDS)
    try:
        date = parsedate_to_datetime(value)
        seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds()
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), RETRY_AFTER_CAP_SECONDS)


# --- where it may go -------------------------------------------------------------------------------------------------

URL_MAX_CHARS: Final = 2_048
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}
_AUTHORITY: Final = re.compile(r"(?P<host>\[[^\[\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_LABEL: Final = r"(?!-)[a-z0-9_-]{1,63}(?<!-)"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMERIC_LABEL: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")

# Written out rather than left to `ipaddress`: `is_global` differs between Python releases, and passes multicast, the
# NAT64 prefixes and addresses that other networks tunnel to.
_REFUSED_IPV4: Final = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host, reachable from every machine there
        "169.254.0.0/16",  # link-local; the metadata service of most clouds
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata service
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; broadcast
    )
)
_GLOBAL_UNICAST: Final = IPv6Network("2000::/3")  # nothing outside it is a public host
_REFUSED_IPV6: Final = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # what a network without IPv4 answers for an IPv4-only host


class Destination(NamedTuple):
    """A webhook URL, taken apart once, so that what was checked is what is connected to.

    host: a lower-case name or an address without brackets.  target: path and query, as sent."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """For the Host field."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def _refused(why: str) -> ValidationFailed:
    """why: a predicate of "the webhook URL", without any part of that URL."""
    return ValidationFailed(
        f"The webhook URL {why}.",
        code="url_not_allowed",
        param="webhook.url",
        faults=[Fault(pointer="/webhook/url", code="url_not_allowed", detail=why)],
    )


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(IPv6Address(text[1:-1]))
        except ValueError:
            raise _refused("has brackets around something that is not an IPv6 address") from None
    host = text.lower()
    if _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        # Resolvers take 127.1, 0177.0.0.1, 2130706433 and 0x7f000001 for 127.0.0.1; nobody means that honestly.
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise _refused("has an IP address that is not written as four decimal numbers") from None
    if not _HOST_NAME.fullmatch(host):
        raise _refused("has a host that is neither a host name nor an IP address")
    return host


def parse_url(url: str, *, allow_http: bool, ports: Sequence[int]) -> Destination:
    """Where a URL points.  ports: those allowed; empty means any.

    Stricter than the standards: one reading only, so that no other parser can read another host out of it.
    Raises ValidationFailed `url_not_allowed`, which says what is wrong and repeats nothing of the URL."""
    if len(url) > URL_MAX_CHARS:
        raise _refused(f"is longer than {URL_MAX_CHARS:,} characters")
    if not all("!" <= char <= "~" for char in url) or "\\" in url:
        raise _refused("has a space, a backslash, a control character or one outside ASCII; percent-encode it")
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS or (scheme == "http" and not allow_http):
        raise _refused("must start with https://" + (" or http://" if allow_http else ""))
    if "#" in rest:
        raise _refused("has a fragment, which would never be sent")
    authority = rest.replace("?", "/").partition("/")[0]
    target = rest[len(authority) :]
    if "@" in authority:
        raise _refused("carries a user name or password; verify the signature instead")
    place = _AUTHORITY.fullmatch(authority)
    if place is None:
        raise _refused("has a host or port that cannot be read")
    if not place["host"]:
        raise _refused("names no host")
    host = _host(place["host"])
    port = int(place["port"] or _DEFAULT_PORTS[scheme])
    if not 1 <= port <= 65_535 or (ports and port not in ports):
        allowed = ", ".join(map(str, ports)) if ports else "1 to 65535"
        raise _refused(f"has a port that is not allowed; allowed: {allowed}")
    return Destination(scheme, host, port, target if target.startswith("/") else f"/{target}")


def check_url(url: str, *, allow_http: bool, ports: Sequence[int], allow_networks: Sequence[Network] = ()) -> None:
    """Refuse at the door what could never be delivered: `parse_url`, and addresses that deliveries may not reach.

    A host name is looked up at each delivery and not here: what it means now says nothing of what it will mean then."""
    host = parse_url(url, allow_http=allow_http, ports=ports).host
    if host == "localhost" or host.endswith(".localhost"):
        host = "127.0.0.1"
    try:
        literal = ip_address(host)
    except ValueError:
        return
    if not address_allowed(literal, allow_networks):
        raise _refused("points into a private or reserved network")


def address_allowed(ip: Address, allow_networks: Sequence[Network] = ()) -> bool:
    """Whether a delivery may connect to `ip`: a public unicast host, or one in a network the operator allows.

    An address that only wraps an IPv4 one (IPv4-mapped, NAT64) is judged by that; other tunnels are refused."""
    if any(ip.version == network.version and ip in network for network in allow_networks):
        return True
    if isinstance(ip, IPv4Address):
        return ip.is_global and not any(ip in network for network in _REFUSED_IPV4)
    if ip.ipv4_mapped is not None:
        return address_allowed(ip.ipv4_mapped, allow_networks)
    if ip in _NAT64:
        return address_allowed(IPv4Address(int(ip) & 0xFFFF_FFFF), allow_networks)
    return ip in _GLOBAL_UNICAST and ip.is_global and not any(ip in network for network in _REFUSED_IPV6)

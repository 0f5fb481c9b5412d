"""Webhooks, decided without a network: body, signature, schedule, destination."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import InvalidWebhookSignatureError, OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from shared import webhooks
from shared.errors import ValidationFailed
from shared.ids import JobId
from shared.webhook_records import DeliveryAttempt
from shared.webhooks import Delivered, GaveUp, RetryAt, address_allowed, after_attempt, check_url, parse_url

SECRET = webhooks.signing_secret(b"operator's secret, 32 bytes long", "acme")
BODY = webhooks.event_body(
    "evt_1",
    "job.succeeded",
    1_795_345_200_999,
    job_id=JobId("job_1"),
    status="succeeded",
    version=41,
    metadata={"team": "Vögel", "env": "ci"},
)


def attempts(*statuses: int | None) -> list[DeliveryAttempt]:
    return [DeliveryAttempt(at_ms=0, duration_ms=1, status=status) for status in statuses]


# --- body and signature


def test_the_body_is_the_thin_event_of_the_contract() -> None:
    assert BODY == (
        '{"id":"evt_1","object":"event","type":"job.succeeded","created_at":1795345200,"data":{"id":"job_1",'
        '"object":"distillation.job","status":"succeeded","version":41,"metadata":{"env":"ci","team":"Vögel"}}}'
    )


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(codec="utf-8"))))
def test_equal_metadata_gives_equal_bytes_in_any_order(metadata: dict[str, str]) -> None:
    def body(of: dict[str, str]) -> str:
        return webhooks.event_body(
            "evt_1", "job.failed", 0, job_id=JobId("job_1"), status="failed", version=1, metadata=of
        )

    assert body(metadata) == body(dict(reversed(metadata.items())))
    assert json.loads(body(metadata))["data"]["metadata"] == metadata


def test_default_events_are_event_types() -> None:
    assert set(webhooks.DEFAULT_EVENTS) <= set(webhooks.EVENT_TYPES)


def test_each_tenant_has_a_secret_of_its_own() -> None:
    assert SECRET.startswith("whsec_")
    assert webhooks.signing_secret(b"operator's secret, 32 bytes long", "acme") == SECRET
    assert webhooks.signing_secret(b"operator's secret, 32 bytes long", "acme2") != SECRET
    assert webhooks.signing_secret(b"another secret", "acme") != SECRET


def test_the_openai_sdk_verifies_our_webhook() -> None:
    headers = webhooks.headers("evt_1", BODY, [SECRET], datetime.now(UTC))

    with OpenAI(api_key="unused", webhook_secret=SECRET) as client:
        event = client.webhooks.unwrap(BODY.encode(), headers)
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.unwrap(BODY.replace("41", "42"), headers)

    assert event.id == "evt_1"
    assert str(event.type) == "job.succeeded"


def test_while_a_secret_is_replaced_both_verify() -> None:
    old, new, other = SECRET, webhooks.signing_secret(b"new", "acme"), webhooks.signing_secret(b"x", "acme")

    headers = webhooks.headers("evt_1", BODY, [new, old], datetime.now(UTC))

    assert Webhook(old).verify(BODY, headers)["id"] == "evt_1"
    assert Webhook(new).verify(BODY, headers)["id"] == "evt_1"
    with pytest.raises(WebhookVerificationError):
        Webhook(other).verify(BODY, headers)


def test_the_signature_is_of_the_instant_whatever_the_zone() -> None:
    now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    elsewhere = now.astimezone(timezone(timedelta(hours=2)))
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    mac = hmac.new(key, b"evt_1.1795348800." + BODY.encode(), hashlib.sha256)

    assert webhooks.headers("evt_1", BODY, [SECRET], now) == webhooks.headers("evt_1", BODY, [SECRET], elsewhere)
    assert webhooks.headers("evt_1", BODY, [SECRET], now) == {
        "content-type": "application/json",
        "user-agent": "Distillery/1 (+webhooks)",
        "webhook-id": "evt_1",
        "webhook-timestamp": "1795348800",
        "webhook-signature": "v1," + base64.b64encode(mac.digest()).decode(),
    }


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        webhooks.headers("evt_1", BODY, [SECRET], datetime(2026, 11, 22))
    with pytest.raises(ValueError, match="secret"):
        webhooks.headers("evt_1", BODY, [], datetime.now(UTC))


# --- schedule


def test_ten_failures_follow_the_documented_schedule() -> None:
    waits = []
    for made in range(1, 10):
        outcome = after_attempt(attempts(*[500] * made), retry_after_seconds=None, jitter=0)
        assert isinstance(outcome, RetryAt)
        waits.append(outcome.after_seconds)

    assert waits == [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400]
    assert timedelta(seconds=sum(waits)) == timedelta(hours=75, minutes=35, seconds=5)
    assert after_attempt(attempts(*[500] * 10), retry_after_seconds=None, jitter=0) == GaveUp(disabled=False)


STATUSES = st.none() | st.integers(100, 599)


@given(st.integers(100, 599))
def test_only_2xx_is_a_success(status: int) -> None:
    outcome = after_attempt(attempts(status), retry_after_seconds=None, jitter=0)

    assert (outcome == Delivered()) is (200 <= status <= 299)


@given(st.lists(STATUSES, min_size=1, max_size=12), st.none() | st.floats(0, 1e12), st.floats(0, 1, exclude_max=True))
def test_every_failure_leads_to_a_bounded_wait_or_an_end(
    statuses: list[int | None], retry_after: float | None, jitter: float
) -> None:
    match after_attempt(attempts(*statuses), retry_after_seconds=retry_after, jitter=jitter):
        case Delivered():
            assert statuses[-1] is not None
            assert 200 <= statuses[-1] < 300
        case GaveUp(disabled=disabled):
            assert disabled is (statuses[-1] == 410)
            assert disabled or len(statuses) >= 10
        case RetryAt(after_seconds=seconds):
            scheduled = webhooks.SCHEDULE_SECONDS[len(statuses)]
            asked = retry_after or 0.0 if statuses[-1] in {429, 502, 503, 504} else 0.0
            assert seconds >= max(scheduled, min(asked, 86_400))
            assert seconds <= max(scheduled, min(asked, 86_400)) * 1.1 <= 86_400 * 1.1


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_retry_after_is_honoured_up_to_a_day(status: int) -> None:
    assert after_attempt(attempts(status), retry_after_seconds=120, jitter=0) == RetryAt(120)
    assert after_attempt(attempts(status), retry_after_seconds=1, jitter=0) == RetryAt(5)
    assert after_attempt(attempts(status), retry_after_seconds=9e9, jitter=0) == RetryAt(86_400)


@pytest.mark.parametrize("status", [400, 404, 500, None])
def test_retry_after_means_nothing_beside_other_statuses(status: int | None) -> None:
    assert after_attempt(attempts(status), retry_after_seconds=120, jitter=0) == RetryAt(5)


def test_gone_ends_the_delivery_at_once() -> None:
    assert after_attempt(attempts(410), retry_after_seconds=None, jitter=0) == GaveUp(disabled=True)


NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("9" * 5_000, 86_400),
        (format_datetime(NOW + timedelta(minutes=2), usegmt=True), 120),
        (format_datetime(NOW - timedelta(minutes=2), usegmt=True), 0),
        ("Sun, 22 Nov 2026 12:00:30 -0000", 30),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
        ("Sun, 99 Nov 99999 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_a_date(value: str, seconds: float | None) -> None:
    assert webhooks.parse_retry_after(value, NOW) == seconds


@given(st.text() | st.from_regex(r"\A\w{3}, \d{1,4} \w{3} \d{1,9} \d\d?:\d\d:\d\d [+-]\d{4,6}\Z"))
def test_no_retry_after_is_a_surprise(value: str) -> None:
    seconds = webhooks.parse_retry_after(value, NOW)

    assert seconds is None or 0 <= seconds <= 86_400


# --- destination


def refusal(url: str, *, allow_http: bool = False, ports: tuple[int, ...] = (80, 443)) -> str:
    with pytest.raises(ValidationFailed) as caught:
        check_url(url, allow_http=allow_http, ports=ports)
    (fault,) = caught.value.faults
    assert (caught.value.code, fault.code, fault.pointer) == ("url_not_allowed", "url_not_allowed", "/webhook/url")
    return fault.detail


@pytest.mark.parametrize(
    ("url", "destination"),
    [
        ("https://ci.example.com/hooks/distill", ("https", "ci.example.com", 443, "/hooks/distill")),
        ("HTTPS://CI.Example.COM", ("https", "ci.example.com", 443, "/")),
        ("https://example.com?a=b/c@d", ("https", "example.com", 443, "/?a=b/c@d")),
        ("https://example.com:443/@me?x[0]=http://y", ("https", "example.com", 443, "/@me?x[0]=http://y")),
        ("https://xn--bcher-kva.example/", ("https", "xn--bcher-kva.example", 443, "/")),
        ("https://9.9.9.9/", ("https", "9.9.9.9", 443, "/")),
        ("https://[2620:FE::9]/", ("https", "2620:fe::9", 443, "/")),
    ],
)
def test_a_public_https_url_is_taken_apart(url: str, destination: tuple[str, str, int, str]) -> None:
    check_url(url, allow_http=False, ports=(80, 443))

    assert parse_url(url, allow_http=False, ports=(80, 443)) == destination


@pytest.mark.parametrize(
    ("url", "authority"),
    [
        ("https://example.com:443/", "example.com"),
        ("https://example.com:8443/", "example.com:8443"),
        ("http://[2620:fe::9]:443/", "[2620:fe::9]:443"),
    ],
)
def test_the_host_field_names_the_port_unless_it_is_the_default(url: str, authority: str) -> None:
    assert parse_url(url, allow_http=True, ports=()).authority == authority


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "https://"),
        ("example.com/hook", "https://"),
        ("//example.com/hook", "https://"),
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("file:///etc/passwd", "https://"),
        ("gopher://example.com:70/", "https://"),
        ("https:example.com", "https://"),
        ("https:///hook", "no host"),
        ("https://", "no host"),
        ("https://?x", "no host"),
        ("https://:443/", "no host"),
        ("https://user@example.com/", "user name"),
        ("https://user:secret@example.com/", "user name"),
        ("https://example.com%40evil.example/", "neither a host name"),
        ("https://example.com#@evil.example/", "fragment"),
        ("https://example.com:22/", "port"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "port"),
        ("https://example.com:443:443/", "port"),
        ("https://example.com:/", "port"),
        ("https://example.com:४४३/", "ASCII"),
        ("https://example.com\\@evil.example/", "backslash"),
        ("https://exam ple.com/", "space"),
        (" https://example.com/", "space"),
        ("https://example.com/\r\nX-Evil: 1", "control"),
        ("https://example.com/\x00", "control"),
        ("https://①②⑦.⓪.⓪.①/", "ASCII"),
        ("https://bücher.example/", "ASCII"),
        ("https://example.com/" + "a" * 2_048, "2,048"),
        ("https://example..com/", "neither a host name"),
        ("https://-a.example/", "neither a host name"),
        ("https://" + "a" * 64 + ".example/", "neither a host name"),
        ("https://" + "a." * 127 + "example/", "neither a host name"),
        ("https://[::1", "cannot be read"),
        ("https://[example.com]/", "brackets"),
        ("https://[fe80::1%25eth0]/", "private"),
        ("https://2130706433/", "four decimal numbers"),
        ("https://0x7f000001/", "four decimal numbers"),
        ("https://0177.0.0.1/", "four decimal numbers"),
        ("https://127.1/", "four decimal numbers"),
        ("https://1.2.3.0x4/", "four decimal numbers"),
        ("https://localhost/", "private"),
        ("https://app.LOCALHOST/", "private"),
    ],
)
def test_a_doubtful_url_is_refused_with_the_reason(url: str, says: str) -> None:
    detail = refusal(url)

    assert says in detail
    assert "evil" not in detail
    assert "secret" not in detail


@given(st.text() | st.text().map("https://{}".format) | st.from_regex(r"\Ahttps?://[^/]{1,20}/"))
def test_any_text_is_either_one_clear_destination_or_refused(url: str) -> None:
    try:
        destination = parse_url(url, allow_http=True, ports=())
    except ValidationFailed:
        return

    again = f"{destination.scheme}://{destination.authority}{destination.target}"
    assert parse_url(again, allow_http=True, ports=()) == destination


def test_http_and_other_ports_are_allowed_where_the_operator_says_so() -> None:
    check_url("http://example.com:8080/", allow_http=True, ports=(8080,))
    check_url("http://example.com:12345/", allow_http=True, ports=())
    check_url("http://localhost:9000/", allow_http=True, ports=(), allow_networks=[IPv4Network("127.0.0.0/8")])
    assert "http://" in refusal("ws://example.com/", allow_http=True)


NOT_PUBLIC = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.169.254",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::8.8.8.8",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "2001::1",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:2::1",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]
PUBLIC = ["1.1.1.1", "8.8.8.8", "9.9.9.9", "2606:4700:4700::1111", "2620:fe::9", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_private_reserved_and_tunnelled_addresses_are_refused(text: str) -> None:
    ip = ip_address(text)

    assert not address_allowed(ip)
    if "%" not in text:  # no URL can carry a zone
        assert "private or reserved" in refusal(f"https://{text}/" if ip.version == 4 else f"https://[{text}]/")


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_allowed(text: str) -> None:
    assert address_allowed(ip_address(text))


@pytest.mark.parametrize(
    ("text", "network", "allowed"),
    [
        ("127.0.0.1", "127.0.0.0/8", True),
        ("::ffff:127.0.0.1", "127.0.0.0/8", True),
        ("64:ff9b::7f00:1", "127.0.0.0/8", True),
        ("10.0.0.1", "127.0.0.0/8", False),
        ("::1", "127.0.0.0/8", False),
        ("::1", "::1/128", True),
        ("fd12::1", "fd12::/16", True),
        ("8.8.8.8", "127.0.0.0/8", True),
    ],
)
def test_the_operator_can_open_a_private_network(text: str, network: str, allowed: bool) -> None:
    assert address_allowed(ip_address(text), [ip_network(network)]) is allowed


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_is_judged_alike_however_it_is_wrapped(ip: IPv4Address) -> None:
    assert address_allowed(IPv6Address(f"::ffff:{ip}")) is address_allowed(ip)
    assert address_allowed(IPv6Address(f"64:ff9b::{ip}")) is address_allowed(ip)
    assert not address_allowed(ip) or (ip.is_global and not ip.is_multicast)

"""One HTTP POST to an address a stranger chose, without becoming their way into our network."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final, TypeAlias

import httpcore2
import httpx2

from shared.errors import ValidationFailed
from shared.webhooks import Destination, Network, address_allowed, parse_retry_after, parse_url

#: Answers the addresses of (host, port), as text.  Raises OSError when there are none.
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]

ANSWER_MAX_BYTES: Final = 65_536  # of a body nobody reads; taken so that the receiver does not see a reset


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one POST went.  status: None when no answer came, and then `error` says why.

    error: timeout, dns_failed, address_not_allowed, url_not_allowed, connection_refused, connection_failed,
    connection_lost, tls_failed, invalid_response; or redirect, beside the status.
    retry_after_seconds: what the answer asked for, at most a day."""

    status: int | None
    error: str | None
    duration_ms: int
    retry_after_seconds: float | None = None


class SystemResolver:
    """getaddrinfo in threads of its own, so that a name server that hangs holds up no other work of the process."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=16, thread_name_prefix="webhook-dns")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [str(address[0]) for *_, address in found]


class _DnsFailed(Exception):
    """The host has no address."""


class _AddressNotAllowed(Exception):
    """The host has an address that deliveries may not reach."""


class _VettedNetwork(httpcore2.AsyncNetworkBackend):
    """Opens one connection, to an address that was vetted after the only look-up.

    Guarding here, where the socket is opened, leaves no second look-up for a name to change its meaning in.  TLS is
    none of this layer's business, so SNI and certificate stay with the name."""

    def __init__(self, resolve: Resolve, allow_networks: Sequence[Network]) -> None:
        self._resolve = resolve
        self._allow_networks = allow_networks
        self._tcp = httpcore2.AnyIOBackend()
        self._stream: httpcore2.AsyncNetworkStream | None = None

    @property
    def connected(self) -> bool:
        return self._stream is not None

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  the signature is httpcore2's
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        addresses = await self._vetted(host, port)
        # Each address gets its share of the time, so that a dead one leaves some for the next.
        share = None if timeout is None else timeout / len(addresses)
        for address in addresses[:-1]:
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                return await self._connect(address, port, share)
        return await self._connect(addresses[-1], port, share)

    async def _connect(self, address: str, port: int, seconds: float | None) -> httpcore2.AsyncNetworkStream:
        self._stream = await self._tcp.connect_tcp(address, port, timeout=seconds)
        return self._stream

    async def _vetted(self, host: str, port: int) -> list[str]:
        if _is_address(host):
            found: Sequence[str] = [host]
        else:
            try:
                found = await self._resolve(host, port)
            except (OSError, UnicodeError) as error:
                raise _DnsFailed from error
        if not found:
            raise _DnsFailed
        if not all(_is_address(text) and address_allowed(ip_address(text), self._allow_networks) for text in found):
            raise _AddressNotAllowed
        return list(dict.fromkeys(found))

    async def aclose(self) -> None:
        """Closes the socket itself: httpcore2 forgets it when cancelled in the midst of a TLS handshake."""
        if self._stream is not None:
            await self._stream.aclose()


class Outbound:
    """Sends POSTs.  Each has a connection of its own: no pool could give one host another's, and none need be kept.

    No redirects, proxies, cookies, decompression or environment: httpcore2 below httpx2's client has none of them.
    timeout_seconds: for everything together, from look-up to the end of the answer.
    allow_http, ports, allow_networks: as in shared.webhooks.  resolve, tls: the system's unless given."""

    def __init__(
        self,
        *,
        allow_http: bool,
        allow_networks: Sequence[Network],
        ports: Sequence[int],
        timeout_seconds: float,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_http = allow_http
        self._allow_networks = tuple(allow_networks)
        self._ports = tuple(ports)
        self._timeout_seconds = timeout_seconds
        self._resolve: Resolve = resolve or SystemResolver()
        self._tls = tls or httpx2.create_ssl_context(trust_env=False)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Attempt:
        """Try once.  Whatever the network does is an `Attempt`; only cancellation is raised."""
        started = time.monotonic()
        status: int | None = None
        error: str | None = None
        retry_after: float | None = None
        network = _VettedNetwork(self._resolve, self._allow_networks)
        try:
            destination = parse_url(url, allow_http=self._allow_http, ports=self._ports)
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._send(network, destination, headers, body)
                status = response.status
                retry_after = _retry_after(response)
                await _discard(response)
        except ValidationFailed:
            error = "url_not_allowed"  # The operator has narrowed the rules since the job was accepted.
        except (
            TimeoutError,
            _DnsFailed,
            _AddressNotAllowed,
            httpcore2.TimeoutException,
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            OSError,
        ) as failure:
            # Once the status is here the receiver has decided; what becomes of the body changes nothing.
            error = _error_code(failure, connected=network.connected) if status is None else None
        finally:
            await network.aclose()
        if status is not None and 300 <= status < 400:
            error = "redirect"
        return Attempt(status, error, round((time.monotonic() - started) * 1000), retry_after)

    async def _send(
        self, network: _VettedNetwork, destination: Destination, headers: Mapping[str, str], body: bytes
    ) -> httpcore2.Response:
        url = httpcore2.URL(
            scheme=destination.scheme, host=destination.host, port=destination.port, target=destination.target
        )
        ours = {"host": destination.authority, "connection": "close", "content-length": str(len(body))}
        request = httpcore2.Request(
            "POST",
            url,
            headers=[*ours.items(), *headers.items()],
            content=body,
            extensions={"timeout": {"connect": self._timeout_seconds}},
        )
        connection = httpcore2.AsyncHTTPConnection(url.origin, ssl_context=self._tls, network_backend=network)
        return await connection.handle_async_request(request)


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _retry_after(response: httpcore2.Response) -> float | None:
    for name, value in response.headers:
        if name.lower() == b"retry-after":
            return parse_retry_after(value.decode("latin-1"), datetime.now(UTC))
    return None


async def _discard(response: httpcore2.Response) -> None:
    """Counted by bytes as they come: what Content-Length says is the receiver's word."""
    taken = 0
    async with aclosing(response.aiter_stream()) as chunks:
        async for chunk in chunks:
            taken += len(chunk)
            if taken >= ANSWER_MAX_BYTES:
                return


def _error_code(failure: BaseException, *, connected: bool) -> str:
    match failure:
        case TimeoutError() | httpcore2.TimeoutException():
            return "timeout"
        case _DnsFailed():
            return "dns_failed"
        case _AddressNotAllowed():
            return "address_not_allowed"
        case ssl.SSLError():
            return "tls_failed"
        case httpcore2.ConnectError() if connected:
            return "tls_failed"
        case httpcore2.ConnectError():
            return "connection_refused" if _caused_by_refusal(failure) else "connection_failed"
        case httpcore2.ProtocolError() if failure.__cause__ is not None:  # h11 could not read it
            return "invalid_response"
        case _:
            return "connection_lost"


def _caused_by_refusal(failure: BaseException) -> bool:
    cause: BaseException | None = failure
    while cause is not None and not isinstance(cause, ConnectionRefusedError):
        cause = cause.__cause__
    return cause is not None

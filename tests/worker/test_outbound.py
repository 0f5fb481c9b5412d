"""Outgoing POSTs over real sockets: what a receiver does, and where a delivery must never arrive."""

from __future__ import annotations

import asyncio
import gc
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from worker.outbound import ANSWER_MAX_BYTES, Attempt, Outbound

LOOPBACK = [ip_network("127.0.0.0/8")]
BODY = b'{"id":"evt_1"}'
HEADERS = {"content-type": "application/json", "webhook-id": "evt_1"}

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Receiver:
    """A server on loopback that keeps what it was sent, and knows when each connection was closed by the other side."""

    def __init__(self, answer: Answer, *, speaks_first: bool = False) -> None:
        self._answer = answer
        self._speaks_first = speaks_first
        self.requests: list[bytes] = []
        self.open = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            if not self._speaks_first:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests.append(head + await reader.readexactly(len(BODY)))
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            writer.close()
            self.open -= 1

    async def all_closed(self) -> None:
        async with asyncio.timeout(5):
            while self.open:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def receiver(
    answer: Answer, *, tls: ssl.SSLContext | None = None, speaks_first: bool = False
) -> AsyncIterator[Receiver]:
    it = Receiver(answer, speaks_first=speaks_first)
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0, ssl=tls)
    it.port = server.sockets[0].getsockname()[1]
    async with server:
        yield it
        await it.all_closed()


def says(raw: str | bytes) -> Answer:
    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(raw if isinstance(raw, bytes) else raw.encode())
        await writer.drain()

    return answer


def answers(status: str, *fields: str, body: str = "") -> Answer:
    return says("\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", body]))


async def is_silent(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    while await reader.read(1_000):
        pass


def names(*answers: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """A resolver that answers each look-up with the next entry; one too many fails the test."""
    left = list(answers)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return left.pop(0)

    return resolve


def outbound(**changed: Any) -> Outbound:
    usual: dict[str, Any] = {"allow_http": True, "allow_networks": LOOPBACK, "ports": (), "timeout_seconds": 5.0}
    return Outbound(**usual | changed)


async def post_to(answer: Answer, **changed: Any) -> tuple[Attempt, list[bytes]]:
    async with receiver(answer) as there:
        attempt = await outbound(**changed).post(f"http://127.0.0.1:{there.port}/hook?x=1", HEADERS, BODY)
    return attempt, there.requests


# --- what a receiver answers


def test_a_delivery_arrives_as_it_was_signed() -> None:
    attempt, (request,) = asyncio.run(post_to(answers("200 OK", body="thanks")))

    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert (attempt.status, attempt.error, attempt.retry_after_seconds) == (200, None, None)
    assert lines[0] == "POST /hook?x=1 HTTP/1.1"
    assert {"webhook-id: evt_1", "content-type: application/json", "connection: close"} < set(lines)
    assert body == BODY


@pytest.mark.parametrize("status", ["201 Created", "204 No Content", "400 Bad Request", "410 Gone", "500 Oops"])
def test_the_status_is_reported_as_it_came(status: str) -> None:
    attempt, _ = asyncio.run(post_to(answers(status)))

    assert (attempt.status, attempt.error) == (int(status[:3]), None)


def test_an_early_hint_is_not_the_answer() -> None:
    attempt, _ = asyncio.run(
        post_to(says("HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
    )

    assert (attempt.status, attempt.error) == (200, None)


def test_a_redirect_is_a_failure_and_not_followed() -> None:
    async def run() -> tuple[Attempt, int]:
        async with receiver(answers("200 OK")) as target:
            moved = answers("302 Found", f"Location: http://127.0.0.1:{target.port}/")
            attempt, _ = await post_to(moved)
        return attempt, len(target.requests)

    attempt, arrived = asyncio.run(run())
    assert (attempt.status, attempt.error, arrived) == (302, "redirect", 0)


def test_retry_after_is_handed_on() -> None:
    attempt, _ = asyncio.run(post_to(answers("429 Too Many Requests", "Retry-After: 120")))

    assert (attempt.status, attempt.retry_after_seconds) == (429, 120)


def test_a_silent_receiver_times_out() -> None:
    attempt, _ = asyncio.run(post_to(is_silent, timeout_seconds=0.2))

    assert (attempt.status, attempt.error) == (None, "timeout")
    assert 190 <= attempt.duration_ms < 2_000


def test_dripping_headers_do_not_stretch_the_time() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    attempt, _ = asyncio.run(post_to(drip, timeout_seconds=0.3))

    assert (attempt.status, attempt.error) == (None, "timeout")
    assert attempt.duration_ms < 2_000


def test_endless_early_hints_do_not_stretch_the_time() -> None:
    async def hint(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 10)
            await writer.drain()
            await asyncio.sleep(0.01)

    attempt, _ = asyncio.run(post_to(hint, timeout_seconds=0.3))

    assert (attempt.status, attempt.error) == (None, "timeout")


def test_a_dripping_body_is_left_after_the_status_has_told_all() -> None:
    async def drip(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.02)

    attempt, _ = asyncio.run(post_to(drip, timeout_seconds=0.3))

    assert (attempt.status, attempt.error) == (200, None)
    assert attempt.duration_ms < 2_000


def test_a_huge_body_is_cut_whatever_its_length_claims() -> None:
    sent = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"4000\r\n" + bytes(0x4000) + b"\r\n")
            await writer.drain()
            sent += 0x4000

    attempt, _ = asyncio.run(post_to(flood))

    assert (attempt.status, attempt.error) == (200, None)
    assert attempt.duration_ms < 4_000
    assert sent < 100 * ANSWER_MAX_BYTES  # the rest is what the kernels hold between the two


def test_a_body_that_breaks_off_changes_nothing() -> None:
    attempt, _ = asyncio.run(post_to(says("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")))

    assert (attempt.status, attempt.error) == (200, None)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "connection_lost"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "invalid_response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "invalid_response"),
        (b"\x00\xff" * 100_000, "invalid_response"),
        (b"HTTP/1.1 200 O", "connection_lost"),
    ],
)
def test_what_is_not_http_is_named(raw: bytes, error: str) -> None:
    attempt, _ = asyncio.run(post_to(says(raw)))

    assert (attempt.status, attempt.error) == (None, error)


def test_a_refused_connection_is_named() -> None:
    async def run() -> Attempt:
        async with receiver(is_silent) as there:
            port = there.port
        return await outbound().post(f"http://127.0.0.1:{port}/", HEADERS, BODY)

    attempt = asyncio.run(run())
    assert (attempt.status, attempt.error) == (None, "connection_refused")


def test_an_answer_before_the_body_was_read_counts() -> None:
    async def run() -> Attempt:
        async with receiver(answers("413 Too Large"), speaks_first=True) as there:
            return await outbound().post(f"http://127.0.0.1:{there.port}/", HEADERS, bytes(20_000_000))

    assert asyncio.run(run()).status in {413, None}  # None where the reset overtakes the answer


# --- where it must not arrive


def test_a_name_is_looked_up_once_and_the_vetted_address_is_connected_to() -> None:
    async def run() -> tuple[Attempt, list[bytes]]:
        async with receiver(answers("200 OK")) as there:
            resolve = names(["127.0.0.1"])  # a second look-up would fail
            attempt = await outbound(resolve=resolve).post(f"http://hooks.test:{there.port}/", HEADERS, BODY)
        return attempt, there.requests

    attempt, (request,) = asyncio.run(run())
    assert attempt.status == 200
    assert b"host: hooks.test:" in request


@pytest.mark.parametrize(
    "found", [["127.0.0.1"], ["93.184.216.34", "127.0.0.1"], ["127.0.0.1", "93.184.216.34"], ["::ffff:127.0.0.1"]]
)
def test_one_forbidden_answer_refuses_them_all(found: list[str]) -> None:
    async def run() -> tuple[Attempt, list[bytes]]:
        async with receiver(answers("200 OK")) as there:
            sender = outbound(resolve=names(found), allow_networks=())
            attempt = await sender.post(f"http://hooks.test:{there.port}/", HEADERS, BODY)
        return attempt, there.requests

    attempt, requests = asyncio.run(run())
    assert (attempt.status, attempt.error, requests) == (None, "address_not_allowed", [])


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "[::ffff:127.0.0.1]",
        "[::1]",
        "0.0.0.0",
        "169.254.169.254",
        "[fd00:ec2::254]",
        "100.64.0.1",
        "[64:ff9b::7f00:1]",
        "198.18.0.1",
        "224.0.0.1",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(host: str) -> None:
    async def run() -> tuple[Attempt, Attempt, list[bytes]]:
        async with receiver(answers("200 OK")) as there:
            written = await outbound(allow_networks=()).post(f"http://{host}:{there.port}/", HEADERS, BODY)
            sender = outbound(allow_networks=(), resolve=names([host.strip("[]")]))
            named = await sender.post(f"http://hooks.test:{there.port}/", HEADERS, BODY)
        return written, named, there.requests

    written, named, requests = asyncio.run(run())
    assert (written.status, named.status, requests) == (None, None, [])
    assert written.error in {"address_not_allowed", "url_not_allowed"}
    assert named.error == "address_not_allowed"


def test_a_dead_address_leaves_time_for_the_next() -> None:
    async def run() -> Attempt:
        async with receiver(answers("200 OK")) as there:
            sender = outbound(resolve=names(["::1", "127.0.0.1"]), allow_networks=[*LOOPBACK, ip_network("::1/128")])
            return await sender.post(f"http://hooks.test:{there.port}/", HEADERS, BODY)

    assert asyncio.run(run()).status == 200


@pytest.mark.parametrize("error", [OSError("no such host"), UnicodeError("label too long")])
def test_a_name_that_cannot_be_resolved_is_named(error: Exception) -> None:
    async def fails(_host: str, _port: int) -> Sequence[str]:
        raise error

    async def has_none(_host: str, _port: int) -> Sequence[str]:
        return []

    for resolve in (fails, has_none):
        attempt = asyncio.run(outbound(resolve=resolve).post("http://hooks.test/", HEADERS, BODY))
        assert (attempt.status, attempt.error) == (None, "dns_failed")


def test_a_hanging_resolver_times_out() -> None:
    async def hangs(_host: str, _port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return []

    attempt = asyncio.run(outbound(resolve=hangs, timeout_seconds=0.1).post("http://hooks.test/", HEADERS, BODY))
    assert (attempt.status, attempt.error) == (None, "timeout")


def test_the_system_resolver_knows_localhost() -> None:
    async def run() -> Attempt:
        async with receiver(answers("200 OK")) as there:
            sender = outbound(allow_networks=[*LOOPBACK, ip_network("::1/128")])
            return await sender.post(f"http://localhost:{there.port}/", HEADERS, BODY)

    assert asyncio.run(run()).status == 200


@pytest.mark.parametrize(
    ("url", "changed"),
    [("http://example.com/", {"allow_http": False}), ("https://example.com:22/", {"ports": (443,)}), ("nonsense", {})],
)
def test_rules_the_operator_has_narrowed_hold_for_old_jobs(url: str, changed: dict[str, Any]) -> None:
    attempt = asyncio.run(outbound(resolve=names(), **changed).post(url, HEADERS, BODY))

    assert (attempt.status, attempt.error) == (None, "url_not_allowed")


def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")

    attempt, requests = asyncio.run(post_to(answers("200 OK")))
    assert (attempt.status, len(requests)) == (200, 1)


# --- TLS


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def client_tls(certificate: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


def test_name_and_certificate_stay_with_the_host_though_an_address_is_dialled(certificate: Path) -> None:
    asked_for: list[str | None] = []
    server = server_tls(certificate)
    server.sni_callback = lambda _ssl, name, _context: asked_for.append(name)

    async def run() -> tuple[Attempt, Attempt, int]:
        async with receiver(answers("200 OK"), tls=server) as there:
            sender = outbound(tls=client_tls(certificate), resolve=names(["127.0.0.1"], ["127.0.0.1"]))
            right = await sender.post(f"https://hooks.test:{there.port}/", HEADERS, BODY)
            wrong = await sender.post(f"https://other.test:{there.port}/", HEADERS, BODY)
        return right, wrong, len(there.requests)

    right, wrong, arrived = asyncio.run(run())
    assert (right.status, right.error) == (200, None)
    assert (wrong.status, wrong.error) == (None, "tls_failed")
    assert asked_for == ["hooks.test", "other.test"]
    assert arrived == 1


def test_an_unknown_certificate_is_refused(certificate: Path) -> None:
    async def run() -> tuple[Attempt, int]:
        async with receiver(answers("200 OK"), tls=server_tls(certificate)) as there:
            attempt = await outbound(resolve=names(["127.0.0.1"])).post(
                f"https://hooks.test:{there.port}/", HEADERS, BODY
            )
        return attempt, len(there.requests)

    attempt, arrived = asyncio.run(run())
    assert (attempt.status, attempt.error, arrived) == (None, "tls_failed", 0)


def test_a_server_that_does_not_speak_tls_is_named() -> None:
    async def run(answer: Answer) -> Attempt:
        async with receiver(answer, speaks_first=True) as there:
            return await outbound(resolve=names(["127.0.0.1"])).post(f"https://hooks.test:{there.port}/", HEADERS, BODY)

    assert asyncio.run(run(answers("200 OK"))).error == "tls_failed"
    assert asyncio.run(run(says(b""))).error == "tls_failed"


def test_a_handshake_that_stalls_times_out_and_lets_go_of_the_socket() -> None:
    async def run() -> Attempt:
        async with receiver(is_silent, speaks_first=True) as there:  # leaves only when the socket is closed
            return await outbound(resolve=names(["127.0.0.1"]), timeout_seconds=0.2).post(
                f"https://hooks.test:{there.port}/", HEADERS, BODY
            )

    attempt = asyncio.run(run())
    assert (attempt.status, attempt.error) == (None, "timeout")


# --- cancellation


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_cancelled_attempts_leave_no_socket_behind(scheme: str, certificate: Path) -> None:
    """An unclosed socket would show twice: as a warning, which is an error here, and at the receiver."""

    async def slow(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await asyncio.sleep(0.01)
        writer.write(b"hello")
        await writer.drain()

    async def run() -> int:
        cancelled = 0
        tls = server_tls(certificate) if scheme == "https" else None
        lot = random.Random(7)
        async with receiver(slow, tls=tls) as there:
            sender = outbound(tls=client_tls(certificate), resolve=names(*[["127.0.0.1"]] * 300))
            for _ in range(30):
                posts = [
                    asyncio.create_task(sender.post(f"{scheme}://hooks.test:{there.port}/", HEADERS, BODY))
                    for _ in range(10)
                ]
                for post in posts:
                    await asyncio.sleep(lot.choice([0, 0, 0.001, 0.003]))
                    post.cancel()
                ended = await asyncio.gather(*posts, return_exceptions=True)
                cancelled += sum(isinstance(end, asyncio.CancelledError) for end in ended)
                assert all(isinstance(end, asyncio.CancelledError | Attempt) for end in ended)
        return cancelled

    assert asyncio.run(run()) > 100
    gc.collect()


def test_cancelling_while_connecting_is_immediate() -> None:
    async def run() -> float:
        async with receiver(is_silent) as there:
            post = asyncio.create_task(outbound().post(f"http://127.0.0.1:{there.port}/", HEADERS, BODY))
            await asyncio.sleep(0.05)
            started = time.monotonic()
            post.cancel()
            with pytest.raises(asyncio.CancelledError):
                await post
            return time.monotonic() - started

    assert asyncio.run(run()) < 1

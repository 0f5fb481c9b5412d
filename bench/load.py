"""A lean HTTP client in a process of its own: `python -m bench.load`, told by one JSON object on stdin.

Raw asyncio over keep-alive connections: it spends about 20 µs on a request, so that what is measured is the server."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bench.processes import end, python


@dataclass(frozen=True)
class Measured:
    """Of one run: answers a second, milliseconds at two quantiles, how often each status came, the client's CPU."""

    rate: float
    p50_ms: float
    p99_ms: float
    statuses: dict[str, int]
    client_cpu: float


def request(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def measure(port: int, sent: bytes, *, connections: int, seconds: float) -> Measured:
    """Send the same request again and again over each connection."""
    asked = {
        "port": port,
        "request": base64.b64encode(sent).decode(),
        "connections": connections,
        "seconds": seconds,
    }
    load = python("-m", "bench.load", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        told, _ = load.communicate(json.dumps(asked).encode(), timeout=seconds + 60)
    finally:
        end(load)
    return Measured(**json.loads(told))


@contextmanager
def listening(port: int, sent: bytes, *, connections: int) -> Iterator[Any]:
    """Event streams that are open, all of them, when the block begins; each event's arrivals are lines of its stdout.

    A line: [sequence, number of streams, seconds (monotonic) of the last arrival, of the median one]."""
    asked = {"port": port, "request": base64.b64encode(sent).decode(), "streams": connections}
    load = python("-m", "bench.load", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert load.stdin is not None
    assert load.stdout is not None
    load.stdin.write(json.dumps(asked).encode() + b"\n")
    load.stdin.close()
    try:
        yield load
    finally:
        end(load)


# --- the client's own process ----------------------------------------------------------------------------------------


class _Repeating(asyncio.Protocol):
    """Sends, reads the whole answer, sends again until the time is over."""

    def __init__(self, sent: bytes, until: float, latencies: list[float], statuses: Counter[str]) -> None:
        self._sent, self._until, self._latencies, self._statuses = sent, until, latencies, statuses
        self._buffer = bytearray()
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._at = time.perf_counter()
        self._transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = bytes(self._buffer[:head]).lower()
        _, has_length, rest = fields.partition(b"\r\ncontent-length:")
        length = int(rest.partition(b"\r\n")[0]) if has_length else 0
        if len(self._buffer) < head + 4 + length:
            return
        now = time.perf_counter()
        self._latencies.append(now - self._at)
        self._statuses[fields[9:12].decode()] += 1
        self._buffer.clear()
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class _Listening(asyncio.Protocol):
    """Reads an event stream, and says when each event's id came, or that it has ended."""

    def __init__(self, sent: bytes, came: Any, broken: asyncio.Future[None]) -> None:
        self._sent, self._came, self._broken = sent, came, broken
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._sent)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            if line.startswith(b"id: "):
                self._came(int(line[4:]), now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._broken.done():
            self._broken.set_exception(RuntimeError("A stream was refused, or has ended."))


async def _repeat(asked: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    statuses: Counter[str] = Counter()
    began = time.perf_counter()
    until = began + asked["seconds"]
    sent = base64.b64decode(asked["request"])
    made = [
        await loop.create_connection(lambda: _Repeating(sent, until, latencies, statuses), "127.0.0.1", asked["port"])
        for _ in range(asked["connections"])
    ]
    await asyncio.gather(*(protocol.ended for _, protocol in made))
    took = time.perf_counter() - began
    latencies.sort()
    return {
        "rate": len(latencies) / took,
        "p50_ms": latencies[len(latencies) // 2] * 1000,
        "p99_ms": latencies[len(latencies) * 99 // 100] * 1000,
        "statuses": dict(statuses),
        "client_cpu": time.process_time() / took,
    }


async def _listen(asked: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    sent, streams = base64.b64decode(asked["request"]), asked["streams"]
    arrivals: dict[int, list[float]] = {}
    broken: asyncio.Future[None] = loop.create_future()

    def came(sequence: int, at: float) -> None:
        seen = arrivals.setdefault(sequence, [])
        seen.append(at)
        if len(seen) == streams:
            print(json.dumps([sequence, len(seen), seen[-1], seen[len(seen) // 2]]), flush=True)

    for start in range(0, streams, 50):  # no more at once than the listen queue takes
        await asyncio.gather(
            *(
                loop.create_connection(lambda: _Listening(sent, came, broken), "127.0.0.1", asked["port"])
                for _ in range(min(50, streams - start))
            )
        )
    await broken


def main() -> None:
    asked = json.loads(sys.stdin.readline())
    if "streams" in asked:
        asyncio.run(_listen(asked))
    else:
        print(json.dumps(asyncio.run(_repeat(asked))))


if __name__ == "__main__":
    main()

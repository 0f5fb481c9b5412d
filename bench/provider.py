"""An OpenAI-compatible server that is never the bottleneck: `python -m bench.provider --port 0 --latency-ms 500`.

Hand-written on asyncio.Protocol: one scan for the end of the request, one shared clock for all delayed answers, bodies
made beforehand.  Prints `{"port": …}` once it listens and serves until its standard input closes, so it cannot outlive
the benchmark.  GET /stats tells what it has seen and what it cost.

With --rpm or --tpm it refuses what is above them with 429, Retry-After and x-ratelimit headers, as OpenAI does: token
buckets, refilled without pause, that hold `--burst-seconds` worth (OpenAI says it may enforce a minute's limit in
pieces as short as a second)."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import sys
import time
from collections import deque

_WORDS = 4_000  # of the made-up language the answers are written in; compresses about as English does
_ANSWERS = 512  # different answers, given in turn
_OK_HEADERS = "Content-Type: application/json\r\nx-request-id: req_{:012x}\r\nContent-Length: {}\r\n\r\n"
_TICK_SECONDS = 0.002  # delayed answers are due on this grid


def answers(size: int, *, tokens: int, seed: int = 7) -> list[bytes]:
    """Chat completions whose JSON is about `size` bytes."""
    rng = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(_WORDS)]
    weights = [1 / (rank + 1) for rank in range(_WORDS)]  # Zipf's law
    made = []
    for number in range(_ANSWERS):
        body = {
            "id": f"chatcmpl-{rng.getrandbits(120):030x}",
            "object": "chat.completion",
            "created": 1_790_000_000 + number,
            "model": "bench-teacher",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "", "refusal": None, "annotations": []},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": 60,
                "completion_tokens": tokens,
                "total_tokens": 60 + tokens,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
            },
            "service_tier": "default",
            "system_fingerprint": "fp_bench",
        }
        room = max(2, size - len(json.dumps(body)))
        text = " ".join(rng.choices(words, weights, k=room // 3 + 1))[:room]
        body["choices"][0]["message"]["content"] = text
        made.append(json.dumps(body).encode())
    return made


class Bucket:
    """A minute's limit, refilled without pause."""

    def __init__(self, per_minute: int, burst_seconds: float) -> None:
        self.per_minute = per_minute
        self._rate = per_minute / 60
        self._room = self._rate * burst_seconds
        self._left = self._room
        self._at = time.monotonic()

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much is there; 0 when it is."""
        self._left = min(self._room, self._left + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (amount - self._left) / self._rate)

    def take(self, amount: float) -> None:
        self._left -= amount

    @property
    def left(self) -> int:
        return max(0, int(self._left))


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.latency = options.latency_ms / 1000
        self.ready = [
            _OK_HEADERS.format(number, len(body)).encode() + body
            for number, body in enumerate(answers(options.answer_bytes, tokens=options.answer_tokens))
        ]
        self.answer_tokens = options.answer_tokens
        self.requests = Bucket(options.rpm, options.burst_seconds) if options.rpm else None
        self.tokens = Bucket(options.tpm, options.burst_seconds) if options.tpm else None
        self.due: deque[tuple[float, Connection]] = deque()
        self.calls = self.answered = self.refused = self.bytes_in = self.tokens_granted = 0
        self.out = self.out_max = 0
        self.first_at: float | None = None
        self.last_at = 0.0
        self.connections = 0
        self.ticking = False
        self.loop: asyncio.AbstractEventLoop

    def chat(self, connection: Connection, head: bytes, body_bytes: int) -> None:
        now = time.monotonic()
        self.calls += 1
        self.bytes_in += body_bytes
        self.last_at = now
        if self.first_at is None:
            self.first_at = now
        if self.requests is not None or self.tokens is not None:
            refusal = self._refusal(now, body_bytes)
            if refusal is not None:
                self.refused += 1
                connection.transport.write(refusal)
                return
        self.out += 1
        self.out_max = max(self.out_max, self.out)
        if self.latency <= 0:
            self._answer(connection)
            return
        self.due.append((now + self.latency, connection))
        if not self.ticking:
            self.ticking = True
            self.loop.call_at(now + self.latency, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        due = self.due
        while due and due[0][0] <= now:
            self._answer(due.popleft()[1])
        if due:
            self.loop.call_at(max(due[0][0], now + _TICK_SECONDS), self._tick)
        else:
            self.ticking = False

    def _answer(self, connection: Connection) -> None:
        self.out -= 1
        self.answered += 1
        limits = self.limit_headers().encode() if self.requests is not None or self.tokens is not None else b""
        connection.transport.write(b"HTTP/1.1 200 OK\r\n" + limits + self.ready[self.answered % _ANSWERS])

    def _refusal(self, now: float, body_bytes: int) -> bytes | None:
        tokens = body_bytes // 4 + self.answer_tokens  # counted before the answer, as OpenAI does
        waits = []
        if self.requests is not None:
            waits.append((self.requests.wait(1, now), self.requests, "requests"))
        if self.tokens is not None:
            waits.append((self.tokens.wait(tokens, now), self.tokens, "tokens"))
        wait, _, what = max(waits, key=lambda entry: entry[0])
        if wait <= 0:
            if self.requests is not None:
                self.requests.take(1)
            if self.tokens is not None:
                self.tokens.take(tokens)
            self.tokens_granted += tokens
            return None
        body = json.dumps(
            {"error": {"message": "Rate limit reached.", "type": what, "param": None, "code": "rate_limit_exceeded"}}
        ).encode()
        return (
            "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
            f"Retry-After: {max(1, round(wait + 0.5))}\r\nretry-after-ms: {int(wait * 1000) + 1}\r\n"
            f"{self.limit_headers()}Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    def limit_headers(self) -> str:
        text = ""
        for bucket, name in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket is not None:
                text += (
                    f"x-ratelimit-limit-{name}: {bucket.per_minute}\r\nx-ratelimit-remaining-{name}: {bucket.left}\r\n"
                )
        return text

    def other(self, connection: Connection, head: bytes) -> None:
        path = head.split(b" ", 2)[1]
        if path.startswith(b"/v1/models/"):
            body = json.dumps(
                {"id": path.rpartition(b"/")[2].decode(), "object": "model", "created": 1, "owned_by": "bench"}
            )
        elif path.startswith(b"/v1/fine_tuning/jobs?"):  # a job begins only where training is served
            body = json.dumps({"object": "list", "data": [], "has_more": False})
        elif path == b"/stats":
            body = json.dumps(self.stats())
        else:
            body = '{"error": {"message": "bench", "type": "invalid_request_error", "code": "bench_ends_here"}}'
        status = "200 OK" if not body.startswith('{"error"') else "404 Not Found"
        connection.transport.write(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )

    def stats(self) -> dict[str, object]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "calls": self.calls,
            "answered": self.answered,
            "refused": self.refused,
            "in_flight_max": self.out_max,
            "connections": self.connections,
            "bytes_in": self.bytes_in,
            "tokens_granted": self.tokens_granted,
            "first_at": self.first_at,
            "last_at": self.last_at,
            "now": time.monotonic(),
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
        }


class Connection(asyncio.Protocol):
    """One keep-alive connection.  A client sends its next request after the answer, so there is one at a time."""

    __slots__ = ("_body", "_head", "_need", "_parts", "_server", "transport")

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parts = b""
        self._need = -1  # bytes missing of the request's body; -1 while its head is not whole
        self._head = b""
        self._body = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=1 << 22)
        self._server.connections += 1

    def data_received(self, data: bytes) -> None:
        if self._need < 0:
            if self._parts:
                data = self._parts + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._parts = data
                return
            self._parts = b""
            self._head = data[:end]
            self._body = _content_length(self._head)
            self._need = self._body - (len(data) - end - 4)
        else:
            self._need -= len(data)
        if self._need > 0:
            return
        self._need = -1
        if self._head.startswith(b"POST") and b"/chat/completions" in self._head[:120]:
            self._server.chat(self, self._head, self._body)
        else:
            self._server.other(self, self._head)


def _content_length(head: bytes) -> int:
    for name in (b"content-length:", b"Content-Length:"):
        at = head.find(name)
        if at >= 0:
            return int(head[at + len(name) :].split(b"\r\n", 1)[0])
    return 0


async def serve(options: argparse.Namespace) -> None:
    server = Server(options)
    server.loop = loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", options.port, backlog=4096)
    print(json.dumps({"port": listener.sockets[0].getsockname()[1]}), flush=True)
    gc.freeze()
    gc.disable()
    ended = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), lambda: sys.stdin.buffer.read1(1024) or ended.set())
    await ended.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=500)
    parser.add_argument("--answer-bytes", type=int, default=2_000)
    parser.add_argument("--answer-tokens", type=int, default=350)
    parser.add_argument("--rpm", type=int, default=0)
    parser.add_argument("--tpm", type=int, default=0)
    parser.add_argument("--burst-seconds", type=float, default=1.0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

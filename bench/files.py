"""Prompts from a file: how fast does the API take them in, and does its memory stay flat?

The API is a process of its own, HTTP goes over loopback, and every chunk is on Valkey's disk before the answer."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import httpx2
import msgspec

from bench.processes import cost, end, python, reset_peak
from bench.stack import stack
from bench.tables import show

KEY = "dk_bench_0123456789abcdefghjkmnpqrstv"
_TEXT = " my invoice is wrong, and nobody answers." * 6


def main(*, quick: bool) -> None:
    rows = []
    for count in (1_000, 50_000) if quick else (1_000, 50_000, 1_000_000):
        with stack(latency_ms=0, answer_bytes=500, answer_tokens=10) as made:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            env = {name: value for name, value in os.environ.items() if not name.startswith(("DISTILL_", "OPENAI_"))}
            env |= {
                "DISTILL_REDIS_URL": made.server.url,
                "DISTILL_SECRET_KEY": "benchmark-" * 4,
                "DISTILL_ADMIN_KEY": KEY,
                "DISTILL_API_PORT": str(port),
                "DISTILL_LOG_LEVEL": "warning",
                "DISTILL_PROVIDERS__BENCH__BASE_URL": made.provider.url,
            }
            api = python("-m", "api", env=env)
            try:
                rows.append([f"{count:,}", *_upload(f"http://127.0.0.1:{port}", api.pid, made.redis, count)])
            finally:
                end(api)
    show(
        "files: prompts of 270 bytes with a key each, uploaded as JSON lines",
        [
            "prompts",
            "MB",
            "s",
            "MB/s",
            "API CPU s",
            "API MB",
            "at its peak",
            "Redis B each",
            "job ms",
        ],
        rows,
        [
            "API MB: before the upload.  Target: the peak less than 30 MB above; 16 to 27 tell a million keys apart",
            "job ms: until a job from the file was accepted; nothing is copied for it.",
        ],
    )


def _upload(url: str, pid: int, redis: object, count: int) -> list[object]:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/jsonl"}
    with httpx2.Client(base_url=url, headers=headers, timeout=600) as http:
        while True:
            try:
                http.get("/healthz")
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        http.post("/v1/files", content=b'"warm"\n').raise_for_status()
        blocks = list(_lines(count))  # made before the clock runs
        reset_peak(pid)
        before, redis_before = cost(pid), redis.info("memory")["used_memory"]
        size = sum(map(len, blocks))
        start = time.perf_counter()
        file = http.post("/v1/files", content=iter(blocks)).raise_for_status().json()
        seconds = time.perf_counter() - start
        after = cost(pid)
        kept = redis.info("memory")["used_memory"] - redis_before
        request = {
            "teacher": {"provider": "bench", "model": "bench", "params": {"max_completion_tokens": 400}},
            "students": [{"provider": "bench", "model": "bench"}],
            "system_prompt": "You triage support tickets.",
            "source": {"type": "file", "file_id": file["id"]},
        }
        start = time.perf_counter()
        http.post("/v1/jobs", json=request, headers={"Content-Type": "application/json"}).raise_for_status()
        accepted_ms = (time.perf_counter() - start) * 1000
    spent = after.cpu_seconds - before.cpu_seconds
    return [size / 1e6, seconds, size / 1e6 / seconds, spent, before.peak_mb, after.peak_mb, kept // count, accepted_ms]


def _lines(count: int) -> Iterator[bytes]:
    """In blocks of a thousand."""
    encode = msgspec.json.Encoder().encode_lines
    for first in range(0, count, 1_000):
        yield encode(
            {"key": f"t-{n}", "messages": [{"role": "user", "content": f"Ticket {n}:{_TEXT}"}]}
            for n in range(first, first + 1_000)
        )

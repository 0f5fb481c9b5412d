"""The API beside a FastAPI app that does nothing: new jobs, 304s, and a thousand open event streams.

One API process on a real Valkey (appendfsync always), one bare process, the client in a third.  The two are measured in
short turns, so that a noisy moment falls on both; the middle of the rounds counts."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from bench.load import Measured, listening, measure, request
from bench.processes import cost, end, python
from bench.tables import show
from cli import embedded
from shared.catalogue import Catalogue, ListedModel
from shared.ids import JobId, new_event_id
from shared.models import Event
from shared.store import Store
from shared.store.jobs import Change

KEY = "dk_bench_0123456789abcdefghjkmnpqrstv"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}
CONNECTIONS = 16
STREAMS = 1_000
_TEXT = " my invoice is wrong, and nobody answers." * 2
BODY = json.dumps(
    {
        "teacher": {"provider": "bench", "model": "bench", "params": {"max_completion_tokens": 400}},
        "students": [{"provider": "bench", "model": "bench"}],
        "system_prompt": "You triage support tickets.",
        "source": {"type": "inline", "prompts": [f"Ticket {n}:{_TEXT}" for n in range(100)]},
        "metadata": {"team": "support"},
    }
).encode()


def main(*, quick: bool) -> None:
    rounds, seconds = (9, 0.7) if quick else (25, 1.0)
    folder = Path(tempfile.mkdtemp(prefix="distill-bench-"))
    try:
        with (
            embedded.start(folder) as server,
            api_process(server.url) as (port, pid),
            bare_process() as (bare_port, bare_pid),
        ):
            job_id = _created(port)
            post = request("POST", "/v1/jobs", AUTHORIZED | {"Content-Type": "application/json"}, BODY)
            get = request("GET", f"/v1/jobs/{job_id}", AUTHORIZED | {"If-None-Match": 'W/"1"'})
            rows = []
            for what, sent, status, target in (
                (f"POST a job, {len(BODY) / 1000:.0f} KB", post, "202", 0.35),
                ("GET a job: 304", get, "304", 0.6),
            ):
                rows += _compared(what, sent, status, target, ((port, pid), (bare_port, bare_pid)), rounds, seconds)
        with embedded.start(folder) as server, api_process(server.url) as (port, pid):
            streams = _fan_out(server.url, port, pid, events=5 if quick else 20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(
        f"api: one process, {CONNECTIONS} connections, every job on Valkey's disk before its answer",
        ["", "requests/s", "p50 ms", "p99 ms", "of bare", "target", "CPU ms each", "of bare, by CPU", "client CPU"],
        rows,
        [
            "of bare, by CPU: the same share on a machine with nothing else to do but this process.",
            "client CPU: share of a core that the client takes; far below 1, it is not what is measured.",
        ],
    )
    show(
        f"api: {STREAMS:,} open event streams of one job",
        ["", "MB before", "MB with streams", "target", "to all, ms", "worst ms", "to half, ms"],
        [streams],
        ["to all: from the event's write to the last of the streams having it; the middle of all events."],
    )


def _compared(
    what: str,
    sent: bytes,
    status: str,
    target: float,
    servers: tuple[tuple[int, int], tuple[int, int]],
    rounds: int,
    seconds: float,
) -> list[list[object]]:
    """servers: (port, pid) of ours and of the bare one."""
    for server in servers:
        _one_run(server, sent, status, 1.0)
    taken = [tuple(_one_run(server, sent, status, seconds) for server in servers) for _ in range(rounds)]
    (ours, our_cpu), (bare, bare_cpu) = sorted(taken, key=lambda pair: pair[0][0].rate / pair[1][0].rate)[rounds // 2]
    share, cpu_share = ours.rate / bare.rate, bare_cpu / our_cpu
    return [
        [what, ours.rate, ours.p50_ms, ours.p99_ms, share, target, our_cpu, cpu_share, ours.client_cpu],
        ["  bare FastAPI", bare.rate, bare.p50_ms, bare.p99_ms, None, None, bare_cpu, None, bare.client_cpu],
    ]


def _one_run(server: tuple[int, int], sent: bytes, status: str, seconds: float) -> tuple[Measured, float]:
    """With the server's CPU milliseconds per request."""
    port, pid = server
    before = cost(pid).cpu_seconds
    measured = measure(port, sent, connections=CONNECTIONS, seconds=seconds)
    if set(measured.statuses) != {status}:
        raise RuntimeError(f"Not all were answered {status}: {measured.statuses}")
    return measured, (cost(pid).cpu_seconds - before) * 1000 / sum(measured.statuses.values())


def _fan_out(redis_url: str, port: int, pid: int, *, events: int) -> list[object]:
    job_id = _created(port)
    before = cost(pid).peak_mb
    sent = request("GET", f"/v1/jobs/{job_id}/events", AUTHORIZED | {"Accept": "text/event-stream"})
    took_ms, half_ms = [], []
    with listening(port, sent, connections=STREAMS) as load:
        assert load.stdout is not None
        json.loads(load.stdout.readline())  # the job's first event has reached them all

        async def write() -> None:
            store = Store.at(redis_url, patient=True)
            job = await store.jobs.load(JobId(job_id))
            assert job is not None
            for _ in range(events):
                await asyncio.sleep(1.0)
                at = time.time_ns() // 1_000_000
                event = Event(id=new_event_id(), level="info", type="message", message="A word.", created_at_ms=at)
                written = time.monotonic()
                await store.jobs.change(job, Change(events=[event]))
                _, count, last, middle = json.loads(await asyncio.to_thread(load.stdout.readline))
                assert count == STREAMS
                took_ms.append((last - written) * 1000)
                half_ms.append((middle - written) * 1000)
            await store.close()

        asyncio.run(write())
        with_streams = cost(pid).peak_mb
    return [
        f"{events} events",
        before,
        with_streams,
        "below 150",
        statistics.median(took_ms),
        max(took_ms),
        statistics.median(half_ms),
    ]


def _created(port: int) -> str:
    url = f"http://127.0.0.1:{port}/v1/jobs"
    made = httpx2.post(url, content=BODY, headers=AUTHORIZED | {"Content-Type": "application/json"}, timeout=30)
    return str(made.raise_for_status().json()["id"])


@contextmanager
def api_process(redis_url: str) -> Iterator[tuple[int, int]]:
    """(port, pid) of an API process that counts requests and refuses none."""
    port = _free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("DISTILL_", "OPENAI_"))}
    env |= {
        "DISTILL_REDIS_URL": redis_url,
        "DISTILL_SECRET_KEY": "benchmark-" * 4,
        "DISTILL_ADMIN_KEY": KEY,
        "DISTILL_API_PORT": str(port),
        "DISTILL_LOG_LEVEL": "warning",
        "DISTILL_REQUESTS_PER_MINUTE": "10000000",
        "DISTILL_ACTIVE_JOBS_MAX": "0",
        "DISTILL_PROVIDERS__BENCH__BASE_URL": "http://127.0.0.1:1/v1",
    }
    module = (
        ["-m", "api"] if "BENCH_PROFILE" not in os.environ else ["-m", "bench.profiled", os.environ["BENCH_PROFILE"]]
    )
    process = python(*module, env=env)
    try:
        _ready(port)
        asyncio.run(_list_models(redis_url))
        yield port, process.pid
    finally:
        end(process)


async def _list_models(redis_url: str) -> None:
    """As a worker would, who keeps the catalogue of what the provider has."""
    store, now_ms = Store.at(redis_url, patient=True), time.time_ns() // 1_000_000
    catalogue = Catalogue(outcome="ok", tried_at_ms=now_ms, read_at_ms=now_ms, models={"bench": ListedModel()})
    await store.catalogues.put("bench", catalogue)
    await store.close()


@contextmanager
def bare_process(*arguments: str) -> Iterator[tuple[int, int]]:
    """(port, pid)."""
    port = _free_port()
    process = python("-m", "bench.bare", str(port), *arguments)
    try:
        _ready(port)
        yield port, process.pid
    finally:
        end(process)


def _ready(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"http://127.0.0.1:{port}/healthz")
        except httpx2.TransportError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError("The server did not start.")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])

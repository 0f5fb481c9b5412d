"""N prompts → N completions stored in Redis by one worker process, beside what a user would write instead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass

from bench.processes import cost, end, python
from bench.stack import Provider, Stack, broker_url, prompts, stack
from bench.tables import show

LATENCY = 0.5
ANSWER_BYTES = 2_000


@dataclass(frozen=True)
class Row:
    what: str
    in_flight: int
    done: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    provider_share: float

    @property
    def rate(self) -> float:
        return self.done / self.seconds

    @property
    def share(self) -> float:
        """Of the rate that the latency allows."""
        return self.rate * LATENCY / self.in_flight

    @property
    def cpu_per_1000(self) -> float:
        return self.cpu_seconds / max(1, self.done) * 1000


def engine(in_flight: int, count: int) -> tuple[Row, float, float]:
    """One worker: (row, seconds from acceptance to the first call, Redis CPU seconds per 1,000)."""
    with stack(latency_ms=LATENCY * 1000, answer_bytes=ANSWER_BYTES) as made:
        # The trial of eight completions before the rest is a constant of every job; `fairness` has it in its times.
        made.start_worker(in_flight, smoke_completions=0)
        drawn = made.draw(count)
        row = Row(
            "distillery, stored",
            in_flight,
            drawn.settled,
            drawn.seconds,
            drawn.worker.cpu_seconds,
            drawn.worker.peak_mb,
            drawn.provider_share,
        )
        return row, drawn.start_seconds, drawn.redis_cpu / max(1, drawn.settled) * 1000


def baseline(what: str, label: str, in_flight: int, count: int, for_seconds: float) -> Row:
    with Provider(latency_ms=LATENCY * 1000, answer_bytes=ANSWER_BYTES) as provider:
        before = provider.stats()["cpu_seconds"]
        arguments = ["--url", provider.url, "--count", str(count), "--in-flight", str(in_flight)]
        child = python(
            "-m", "bench.baselines", what, *arguments, "--for-seconds", str(for_seconds), stdout=subprocess.PIPE
        )
        try:
            out, _ = child.communicate(timeout=for_seconds + 60)
        finally:
            end(child)
        found = json.loads(out)
        share = (provider.stats()["cpu_seconds"] - before) / found["seconds"]
        return Row(label, in_flight, found["done"], found["seconds"], found["cpu_seconds"], found["peak_mb"], share)


def celery(threads: int, count: int, for_seconds: float) -> Row:
    """Tasks are queued before the clock starts; it runs from the first call to the last answer in Redis."""
    with Provider(latency_ms=LATENCY * 1000, answer_bytes=ANSWER_BYTES) as provider, Stack(provider) as made:
        env = os.environ | {
            "BENCH_BROKER": broker_url(made.server.url),
            "BENCH_URL": provider.url,
            "BENCH_REDIS": made.server.url,
        }
        publish = (
            "import json, sys\nfrom bench.baseline_celery import complete\n"
            "for line in sys.stdin: complete.delay(*json.loads(line))"
        )
        lines = "\n".join(json.dumps([i, prompt.messages]) for i, prompt in enumerate(prompts(count)))
        subprocess.run([sys.executable, "-c", publish], input=lines, text=True, env=env, check=True, timeout=120)
        arguments = ["-A", "bench.baseline_celery", "--quiet", "worker", "-P", "threads", "-c", str(threads)]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=error"]
        worker = python("-m", "celery", *arguments, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while provider.stats()["first_at"] is None:
                time.sleep(0.02)
            started, spent = provider.stats()["first_at"], cost(worker.pid).cpu_seconds
            while made.redis.hlen("bench:answers") < count and time.monotonic() < started + for_seconds:
                time.sleep(0.02)
            seconds, used = time.monotonic() - started, cost(worker.pid)
            done = made.redis.hlen("bench:answers")
        finally:
            end(worker)
        return Row(
            "Celery task per prompt, sync SDK",
            threads,
            done,
            seconds,
            used.cpu_seconds - spent,
            used.peak_mb,
            provider.stats()["cpu_seconds"] / seconds,
        )


def main(*, quick: bool, only: str | None = None) -> None:
    scale = 1 if quick else 3
    rows, starts, redis_cpu = [], [], {}
    engines: dict[int, Row] = {}
    bare: dict[int, Row] = {}
    sdk: dict[int, Row] = {}
    for in_flight, count in ((200, 4_000 * scale), (1_000, 10_000 * scale)):
        engines[in_flight], start, redis_cpu[in_flight] = engine(in_flight, count)
        rows.append(engines[in_flight])
        starts.append(start)
        if only == "engine":
            continue
        bare[in_flight] = baseline("lean", "bare loop over the same client", in_flight, count, 60)
        sdk[in_flight] = baseline("openai", "AsyncOpenAI, gather, semaphore", in_flight, 2_000 * scale, 15 * scale)
        rows += [bare[in_flight], sdk[in_flight]]
    if only != "engine":
        rows.append(celery(200, 2_000 * scale, 15 * scale))
    show(
        f"completions: {LATENCY * 1000:.0f} ms latency, {ANSWER_BYTES:,} byte answers, one process each",
        ["", "in flight", "done", "completions/s", "of ideal", "CPU s/1,000", "peak MB", "provider CPU"],
        [[r.what, r.in_flight, r.done, r.rate, r.share, r.cpu_per_1000, r.peak_mb, r.provider_share] for r in rows],
        [f"From acceptance to the first call: {max(starts):.2f} s at most (not in the rates above)."]
        + [f"Redis CPU at {n} in flight: {cpu:.2f} s per 1,000." for n, cpu in redis_cpu.items()],
    )
    targets = [
        ["share of the ideal at 200", engines[200].share, ">= 0.90"],
        ["CPU s per 1,000 stored, 200 in flight", engines[200].cpu_per_1000, "<= 0.60"],
        ["CPU s per 1,000 stored, 1,000 in flight", engines[1_000].cpu_per_1000, "<= 0.60"],
    ]
    if bare:
        targets += [
            ["share of the bare loop at 1,000", engines[1_000].rate / bare[1_000].rate, ">= 0.80"],
            ["times AsyncOpenAI at 1,000", engines[1_000].rate / sdk[1_000].rate, ">= 5"],
        ]
    show("completions, targets", ["", "measured", "target"], targets)

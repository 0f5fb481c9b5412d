"""A small job alone, and beside what keeps the workers busy: one large job, or very many of one other tenant."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.processes import cost
from bench.stack import CHUNK, Stack, prompts, stack
from bench.tables import show
from shared.models import Prompt
from shared.queue import QUEUE

SMALL, LARGE = 10, 100_000
IN_FLIGHT = 200
CROWDS = (200, 500, 1_000)
_PROMPTS_OF_THE_CROWD = 200_000  # together, so that the work outlasts the measurement
_PATIENCE = 120.0  # seconds


def _small(made: Stack, tenant: str) -> float:
    """Seconds from acceptance to the last completion; infinite when it took too long."""
    started = time.monotonic()
    job_id = made.accept(prompts(SMALL), SMALL, tenant=tenant)
    ended = made.wait(job_id, for_seconds=_PATIENCE)
    _, complete = made.settled(job_id)
    return ended - started if complete else float("inf")


def _median(times: list[float]) -> float:
    return sorted(times)[len(times) // 2]


def _until_busy(made: Stack) -> None:
    while made.provider.stats()["in_flight_max"] < IN_FLIGHT * 0.9:
        time.sleep(0.05)


def _large(times: int) -> None:
    with stack(latency_ms=500) as made:
        made.start_worker(IN_FLIGHT)
        _small(made, "warm-up")
        alone = [_small(made, "small") for _ in range(times)]
        made.accept(prompts(LARGE), LARGE, tenant="large")
        _until_busy(made)
        beside = [_small(made, "small") for _ in range(times)]
        same = [_small(made, "large") for _ in range(times)]
    limit = 2 * max(alone) + 1
    show(
        f"fairness: a job of {SMALL} prompts, one worker, {IN_FLIGHT} in flight, 500 ms latency, trial included",
        ["", "median s", "worst s", "target s"],
        [
            ["alone", _median(alone), max(alone), None],
            [f"beside {LARGE:,} of another tenant", _median(beside), max(beside), limit],
            [f"beside {LARGE:,} of the same tenant", _median(same), max(same), limit],
        ],
        ["From acceptance to the teacher's last completion."],
    )


def _crowd(jobs: int, times: int) -> list[object]:
    """One row: a small job beside so many active jobs of another tenant, the first one right after they came in."""

    def sources() -> Iterator[tuple[Iterator[Prompt], int]]:
        each = _PROMPTS_OF_THE_CROWD // jobs // CHUNK * CHUNK
        for _ in range(jobs):
            yield prompts(each, words=5), each

    with stack(latency_ms=500) as made:
        made.start_worker(IN_FLIGHT)
        _small(made, "warm-up")
        alone = [_small(made, "b") for _ in range(times)]
        made.accept_all(sources(), tenant="a")
        first = _small(made, "b")
        _until_busy(made)
        before, spent, at = made.provider.stats()["answered"], cost(made.workers[0].pid).cpu_seconds, time.monotonic()
        beside = [_small(made, "b") for _ in range(times)]
        time.sleep(max(0.0, 10 - (time.monotonic() - at)))
        answered = made.provider.stats()["answered"] - before
        seconds, spent = time.monotonic() - at, cost(made.workers[0].pid).cpu_seconds - spent
        waiting = made.redis.llen(QUEUE)
    ratio = _median(beside) / _median(alone)
    rate = answered / seconds
    return [jobs, _median(alone), first, _median(beside), max(beside), ratio, rate, spent / answered * 1000, waiting]


def main(*, quick: bool) -> None:
    times = 3 if quick else 10
    _large(times)
    show(
        f"fairness: 1 job of tenant B ({SMALL} prompts) while tenant A has very many active jobs, one worker",
        ["A's jobs", "alone s", "first s", "beside s", "worst s", "ratio", "all/s", "CPU s/1,000", "bells queued"],
        [_crowd(jobs, times) for jobs in CROWDS],
        [
            "first: accepted right after the last of A's.  beside, worst: median and longest of those after it.",
            f"all/s, CPU: of the worker, {IN_FLIGHT} in flight at 500 ms allow {IN_FLIGHT * 2}/s.  Target: ratio <= 2.",
        ],
    )

"""A job of ten prompts alone, and while one of a hundred thousand runs."""

from __future__ import annotations

import time

from bench.stack import Stack, prompts, stack
from bench.tables import show

SMALL, LARGE = 10, 100_000
IN_FLIGHT = 200


def _small(made: Stack, tenant: str) -> float:
    started = time.monotonic()
    job_id = made.accept(prompts(SMALL), SMALL, tenant=tenant)
    ended = made.wait(job_id, for_seconds=60)
    _, complete = made.settled(job_id)
    return ended - started if complete else float("inf")


def main(*, quick: bool) -> None:
    times = 3 if quick else 10
    with stack(latency_ms=500) as made:
        made.start_worker(IN_FLIGHT)
        _small(made, "warm-up")
        alone = [_small(made, "small") for _ in range(times)]
        made.accept(prompts(LARGE), LARGE, tenant="large")
        while made.provider.stats()["in_flight_max"] < IN_FLIGHT * 0.9:
            time.sleep(0.05)
        beside = [_small(made, "small") for _ in range(times)]
        same = [_small(made, "large") for _ in range(times)]
    limit = 2 * max(alone) + 1
    show(
        f"fairness: a job of {SMALL} prompts, one worker, {IN_FLIGHT} in flight, 500 ms latency, trial included",
        ["", "median s", "worst s", "target s"],
        [
            ["alone", sorted(alone)[times // 2], max(alone), None],
            [f"beside {LARGE:,} of another tenant", sorted(beside)[times // 2], max(beside), limit],
            [f"beside {LARGE:,} of the same tenant", sorted(same)[times // 2], max(same), limit],
        ],
        ["From acceptance to the teacher's last completion."],
    )

"""Two workers on one job against one."""

from __future__ import annotations

from bench.stack import Drawn, stack
from bench.tables import show

IN_FLIGHT = 200
LATENCY = 0.5


def main(*, quick: bool) -> None:
    per_worker = 4_000 if quick else 12_000
    found: dict[int, Drawn] = {}
    for workers in (1, 2):
        with stack(latency_ms=LATENCY * 1000) as made:
            for _ in range(workers):
                made.start_worker(IN_FLIGHT, smoke_completions=0)
            found[workers] = made.draw(per_worker * workers)
    one, two = found[1], found[2]
    show(
        f"workers: {IN_FLIGHT} in flight each, {LATENCY * 1000:.0f} ms latency (the limit, not the cores)",
        ["workers", "completions", "completions/s", "of ideal", "CPU s/1,000", "Redis CPU s/1,000", "provider CPU"],
        [
            [
                str(n),
                d.settled,
                d.rate,
                d.rate * LATENCY / (IN_FLIGHT * n),
                d.worker.cpu_seconds / d.settled * 1000,
                d.redis_cpu / d.settled * 1000,
                d.provider_share,
            ]
            for n, d in found.items()
        ],
        [
            f"Share of doubling: {two.rate / one.rate / 2:.2f}",
            f"calls made for {two.settled:,} prompts: {two.stats['calls']:,}",
        ],
    )

"""A million prompts, short answers, no latency: does memory stay flat and time linear?"""

from __future__ import annotations

from bench.stack import stack
from bench.tables import show

IN_FLIGHT = 500


def main(*, quick: bool) -> None:
    rows = []
    per_1000: list[tuple[float, float]] = []
    for count in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        with stack(latency_ms=0, answer_bytes=500, answer_tokens=10) as made:
            made.start_worker(IN_FLIGHT, smoke_completions=0)
            drawn = made.draw(count, for_seconds=1_800, words=8)
            settled = max(1, drawn.settled) / 1000
            per_1000.append((drawn.seconds / settled, drawn.worker.cpu_seconds / settled))
            (wall, cpu), (first_wall, first_cpu) = per_1000[-1], per_1000[0]
            rows.append(
                [
                    f"{count:,}",
                    drawn.settled,
                    drawn.seconds,
                    wall,
                    wall / first_wall,
                    cpu,
                    cpu / first_cpu,
                    drawn.worker.peak_mb,
                    drawn.redis_bytes // max(1, drawn.settled),
                    drawn.provider_share,
                ]
            )
    show(
        f"million: answers of 500 bytes, no latency, {IN_FLIGHT} in flight, one worker",
        [
            "prompts",
            "stored",
            "s",
            "s/1,000",
            "growth",
            "CPU s/1,000",
            "CPU growth",
            "worker peak MB",
            "Redis B each",
            "provider CPU",
        ],
        rows,
        [
            "Targets: growth 1 (linear), worker below 400 MB.",
            "On a busy machine trust the growth of CPU time rather than that of the clock.",
        ],
    )

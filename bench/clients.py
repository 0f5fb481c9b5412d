"""What sends a completion: the choice of docs/decisions/0003, measured again."""

from __future__ import annotations

from bench.completions import ANSWER_BYTES, LATENCY, Row, baseline
from bench.tables import show

CLIENTS = {
    "lean": "pyreqwest (client = lean)",
    "aiohttp": "aiohttp",
    "sdk": "openai SDK, our parser (client = sdk)",
    "openai": "openai SDK, its models, gather",
}


def main(*, quick: bool) -> None:
    seconds = 6 if quick else 20
    rows: list[Row] = [
        baseline(what, label, in_flight, int(in_flight / LATENCY * seconds), seconds * 1.2)
        for what, label in CLIENTS.items()
        for in_flight in (200, 1_000)
    ]
    show(
        f"clients: {LATENCY * 1000:.0f} ms latency, {ANSWER_BYTES:,} byte answers, nothing stored",
        ["", "in flight", "done", "completions/s", "of ideal", "CPU s/1,000", "peak MB", "provider CPU"],
        [[r.what, r.in_flight, r.done, r.rate, r.share, r.cpu_per_1000, r.peak_mb, r.provider_share] for r in rows],
    )

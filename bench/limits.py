"""A provider of 10,000 requests and 2,000,000 tokens a minute that answers 429 above either."""

from __future__ import annotations

import time

from bench.stack import prompts, stack
from bench.tables import show

RPM, TPM = 10_000, 2_000_000
LATENCY = 0.5


def main(*, quick: bool) -> None:
    seconds = 20 if quick else 60
    rows = []
    # Small calls meet the limit on requests, large ones that on tokens.
    for binding, words, tokens in (("requests", 20, 60), ("tokens", 160, 400)):
        with stack(latency_ms=LATENCY * 1000, answer_bytes=1_000, answer_tokens=tokens, rpm=RPM, tpm=TPM) as made:
            made.start_worker(200)
            made.accept(prompts(60_000, words=words), 60_000, tokens=tokens)
            while made.provider.stats()["first_at"] is None:
                time.sleep(0.02)
            # The first seconds teach the governor the limit; they are a part of the truth and stay in.
            time.sleep(seconds)
            seen = made.provider.stats()
            lasted = seen["now"] - seen["first_at"]
            granted = seen["calls"] - seen["refused"]
            requests, used_tokens = granted / (RPM / 60 * lasted), seen["tokens_granted"] / (TPM / 60 * lasted)
            rows.append(
                [
                    binding,
                    lasted,
                    seen["calls"],
                    seen["refused"],
                    f"{seen['refused'] / seen['calls']:.1%}",
                    f"{requests:.1%}",
                    f"{used_tokens:.1%}",
                    f"{max(requests, used_tokens):.1%}",
                ]
            )
    show(
        f"limits: {RPM:,} requests and {TPM:,} tokens a minute, 429 above (buckets of one second)",
        ["limit met", "seconds", "calls", "refused", "refused share", "of RPM", "of TPM", "limit used"],
        rows,
        ["Targets: limit used > 95 %, refused < 1 %."],
    )

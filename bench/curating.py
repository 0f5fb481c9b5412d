"""What `bench.dataset` measures in a process of its own: the curate stage, and the least that its lines could cost.

`python -m bench.curating job REDIS_URL JOB_ID` curates and writes the manifest into the job's row;
`python -m bench.curating lines FROM TO` reads lines of JSON and writes them out.  Prints one JSON line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.processes import cost, reset_peak
from shared.ids import JobId
from shared.pricing import Prices
from shared.settings import Settings
from shared.store import Store
from shared.store.jobs import Change
from worker.outcomes import Done
from worker.providers import Providers
from worker.stages import Tools
from worker.stages.curate import curate


def _curated(redis_url: str, job_id: str) -> None:
    async def run() -> None:
        store = Store.at(redis_url, patient=True)
        settings = Settings(_env_file=None, redis_url=redis_url, secret_key="benchmark-" * 4)
        tools = Tools(store, Providers({}, trainer_timeout_seconds=60), Prices(), settings, lambda: None)
        job = await store.jobs.load(JobId(job_id))
        assert job is not None

        async def save(*_: object) -> None:
            raise AssertionError("Curating saves nothing on its way.")

        outcome = await curate(job, tools, save)
        assert isinstance(outcome, Done), outcome
        await store.jobs.change(job, Change(set=outcome.set))
        await store.close()

    asyncio.run(run())


def _copied(source: str, target: str) -> None:
    """Line by line, as JSON, with the sha256 of them all: what any curating does at least."""
    digest = hashlib.sha256()
    with Path(source).open("rb") as lines, Path(target).open("wb") as out:
        for line in lines:
            text = msgspec.json.encode(msgspec.json.decode(line)) + b"\n"
            digest.update(text)
            out.write(text)


def main() -> None:
    run: Callable[[str, str], None] = {"job": _curated, "lines": _copied}[sys.argv[1]]
    reset_peak(os.getpid())
    before, started = cost(os.getpid()), time.monotonic()
    run(*sys.argv[2:4])
    seconds, after = time.monotonic() - started, cost(os.getpid())
    spent = after.cpu_seconds - before.cpu_seconds
    json.dump(
        {"seconds": seconds, "cpu_seconds": spent, "before_mb": before.peak_mb, "peak_mb": after.peak_mb}, sys.stdout
    )


if __name__ == "__main__":
    main()

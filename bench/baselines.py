"""What a user would pick instead, each in a process of its own: `python -m bench.baselines lean|openai …`.

Prints one JSON line: completions, seconds, CPU seconds, peak memory.  None of them keeps what it got, which favours
them.  The Celery one lies in baseline_celery.py, because Celery wants a module."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from bench.processes import cost
from bench.stack import prompts

Run = Callable[[str, list[dict], int, float], Awaitable[int]]


def lean() -> Run:
    """A bare loop over the client our engine uses."""
    from shared.ports import CompletionRequest  # noqa: PLC0415  # each pays for its own imports
    from shared.settings import ProviderSettings  # noqa: PLC0415
    from worker.providers.lean import LeanTeacher  # noqa: PLC0415

    async def run(url: str, bodies: list[dict], in_flight: int, latest: float) -> int:
        teacher = LeanTeacher(ProviderSettings(base_url=url, api_key="sk-bench", max_in_flight=in_flight))
        left = iter(bodies)
        done = 0

        async def loop() -> None:
            nonlocal done
            for body in left:
                await teacher.complete(CompletionRequest(body, 120))
                done += 1
                if time.monotonic() > latest:
                    return

        await asyncio.gather(*(loop() for _ in range(in_flight)))
        return done

    return run


def openai() -> Run:
    """The idiom of every tutorial: gather over a semaphore."""
    from openai import AsyncOpenAI  # noqa: PLC0415

    async def run(url: str, bodies: list[dict], in_flight: int, latest: float) -> int:
        client = AsyncOpenAI(api_key="sk-bench", base_url=url, max_retries=0, timeout=120)
        slots = asyncio.Semaphore(in_flight)
        done = 0

        async def ask(body: dict) -> None:
            nonlocal done
            async with slots:
                await client.chat.completions.create(**body)
                done += 1

        with suppress(TimeoutError):
            async with asyncio.timeout(latest - time.monotonic()):
                await asyncio.gather(*(ask(body) for body in bodies))
        return done

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["lean", "openai"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--for-seconds", type=float, default=60)
    options = parser.parse_args()
    # Imports and prompts come first: they are not what is measured.
    run = {"lean": lean, "openai": openai}[options.what]()
    bodies = [
        {"model": "bench-teacher", "messages": prompt.messages, "max_completion_tokens": 400}
        for prompt in prompts(options.count)
    ]
    before = resource.getrusage(resource.RUSAGE_SELF)
    started = time.monotonic()
    done = asyncio.run(run(options.url, bodies, options.in_flight, started + options.for_seconds))
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    json.dump({"done": done, "seconds": seconds, "cpu_seconds": cpu, "peak_mb": cost(os.getpid()).peak_mb}, sys.stdout)


if __name__ == "__main__":
    main()

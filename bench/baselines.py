"""What a user would pick instead, each in a process of its own: `python -m bench.baselines lean|sdk|aiohttp|openai …`.

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

import msgspec

from bench.processes import cost
from bench.stack import prompts
from shared.ports import Completion, CompletionRequest, TeacherPort
from shared.settings import ProviderSettings

Run = Callable[[str, list[dict], int, float], Awaitable[int]]


def _teacher_loop(make: Callable[[str, int], TeacherPort]) -> Run:
    """A bare loop over a client behind our port: as many coroutines as calls in flight."""

    async def run(url: str, bodies: list[dict], in_flight: int, latest: float) -> int:
        teacher = make(url, in_flight)
        left = iter(bodies)
        done = 0

        async def loop() -> None:
            nonlocal done
            for body in left:
                await teacher.complete(CompletionRequest(body, 120))
                done += 1

        with suppress(TimeoutError):
            async with asyncio.timeout(latest - time.monotonic()):
                await asyncio.gather(*(loop() for _ in range(in_flight)))
        await teacher.close()
        return done

    return run


def lean() -> Run:
    """The client our engine uses."""
    from worker.providers.lean import LeanTeacher  # noqa: PLC0415  # each baseline pays for its own imports

    return _teacher_loop(
        lambda url, width: LeanTeacher(ProviderSettings(base_url=url, api_key="sk-bench", max_in_flight=width))
    )


def sdk() -> Run:
    """Our fallback: the SDK for sending, our parser for the answer."""
    from worker.providers.openai import OpenAITeacher  # noqa: PLC0415

    return _teacher_loop(lambda url, _: OpenAITeacher(ProviderSettings(base_url=url, api_key="sk-bench")))


def aiohttp() -> Run:
    """The usual asynchronous client, told to keep as many connections as calls in flight, and the same parser."""
    import aiohttp as http  # noqa: PLC0415

    from worker.providers.answers import parse_completion  # noqa: PLC0415

    class Teacher:
        def __init__(self, url: str, width: int) -> None:
            self._url = url + "/chat/completions"
            self._session = http.ClientSession(
                connector=http.TCPConnector(limit=width), headers={"Authorization": "Bearer sk-bench"}
            )

        async def complete(self, request: CompletionRequest) -> Completion:
            body = msgspec.json.encode(request.body)
            async with self._session.post(
                self._url, data=body, headers={"Content-Type": "application/json"}
            ) as response:
                return parse_completion(await response.read(), response.headers.get, latency_ms=0)

        async def close(self) -> None:
            await self._session.close()

    return _teacher_loop(Teacher)


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
    parser.add_argument("what", choices=["lean", "sdk", "aiohttp", "openai"])
    parser.add_argument("--url", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    parser.add_argument("--for-seconds", type=float, default=60)
    options = parser.parse_args()
    # Imports and prompts come first: they are not what is measured.
    run = {"lean": lean, "sdk": sdk, "aiohttp": aiohttp, "openai": openai}[options.what]()
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

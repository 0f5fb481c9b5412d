"""Pumps for tests: impatient, running beside the test, and abandoned as by kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from doubles import Lab

from shared.pricing import Prices
from shared.retries import RetryPolicy
from shared.store import Store
from worker.pump import Pump, PumpLimits


def limits(**fields: Any) -> PumpLimits:
    """Impatient: what takes half a minute in production takes a moment here."""
    defaults: dict[str, Any] = {
        "in_flight": 20,
        "chunk_lease_seconds": 0.6,
        "takeover_grace_seconds": 0.05,
        "shutdown_grace_seconds": 2,
        "smoke_completions": 0,
        "retry": RetryPolicy(attempts_max=3, base_seconds=0.02, cap_seconds=0.1),
        "discover_seconds": 0.05,
    }
    return PumpLimits(**defaults | fields)


@contextlib.asynccontextmanager
async def pumping(
    store: Store, lab: Lab, *, prices: Prices | None = None, **of_limits: Any
) -> AsyncIterator[tuple[Pump, list[str]]]:
    """A running pump, and the jobs it has called the engine for.  At the end it is abandoned, as by kill -9."""
    called: list[str] = []

    async def on_complete(job_id: str) -> None:
        called.append(job_id)

    pump = Pump(
        store,
        lab,  # type: ignore[arg-type]  # the in-memory twin of Providers
        prices or Prices(),
        limits(**of_limits),
        secret=b"s" * 32,
        on_complete=on_complete,  # type: ignore[arg-type]  # a JobId is a str
    )
    running = asyncio.create_task(pump.run())
    try:
        yield pump, called
    finally:
        await abandon(pump, running)


async def abandon(pump: Pump, running: asyncio.Task[None] | None = None) -> None:
    """What is left of a pump after kill -9: nothing; its leases and marks stay in the store."""
    pump._supply.stop()  # a fetch that ends starts the next one, however it ends
    asking = [allowance._asking for allowance in pump._allowances.values() if allowance._asking]
    left = {*pump._tasks, *asking, *([running] if running else [])}
    while left:
        for task in left:
            task.cancel()
        # redis-py may swallow a cancellation that comes together with an answer, and what goes on may start others.
        _, late = await asyncio.wait(left, timeout=0.5)
        left = late | pump._tasks


async def until(condition: Callable[[], Awaitable[Any] | Any], *, seconds: float = 5) -> None:
    """Wait for something that must come true; say what did not."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        assert time.monotonic() < deadline, f"Still not so after {seconds} s."
        await asyncio.sleep(0.01)

"""What the service as a whole is at, read at one moment, for whoever watches over it: sums over all tenants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import redis.asyncio as redis

from shared.ids import TenantId
from shared.lifecycle import JobStatus
from shared.models import Usage
from shared.store import keys
from shared.store.connection import ask

_DAY_SECONDS: Final = 86_400
_TENANTS_AT_ONCE: Final = 200
_OF_DAY: Final = ("spent_nano", "unconfirmed_nano", "bought", "reused", *Usage.__struct_fields__)


@dataclass
class Readings:
    """jobs: by status.  due: rows whose time has come.  oldest_due_seconds: of the one that waits longest.
    queued: messages to workers.  memory_share: of the server's maxmemory; None without one.
    reserved_nano: held at this moment.  today: sums since midnight UTC, of all tenants, named as in `keys.day`."""

    jobs: dict[str, int] = field(default_factory=lambda: dict.fromkeys(JobStatus, 0))
    due: int = 0
    oldest_due_seconds: float = 0.0
    queued: int = 0
    workers: int = 0
    open_passes: int = 0
    memory_bytes: int = 0
    memory_share: float | None = None
    reserved_nano: int = 0
    today: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_OF_DAY, 0))


async def read(client: redis.Redis) -> Readings:
    """Costs a few commands, and a dozen more per tenant.  Raises StoreError."""
    seconds, micros = await ask(client.time())
    now_ms = seconds * 1000 + micros // 1000
    memory = await ask(client.info("memory"))
    pipe = client.pipeline(transaction=False)
    pipe.zcount(keys.DUE, "-inf", now_ms)
    pipe.zrange(keys.DUE, 0, 0, withscores=True)
    pipe.llen(keys.QUEUE)
    pipe.zcount(keys.WORKERS, now_ms, "+inf")
    pipe.smembers(keys.TENANTS)
    due, first, queued, workers, tenants = await ask(pipe.execute())
    limit = memory.get("maxmemory", 0)
    readings = Readings(
        due=due,
        oldest_due_seconds=max(0.0, (now_ms - first[0][1]) / 1000) if first else 0.0,
        queued=queued,
        workers=workers,
        memory_bytes=memory["used_memory"],
        memory_share=memory["used_memory"] / limit if limit else None,
    )
    named = sorted(tenant.decode() for tenant in tenants)
    for start in range(0, len(named), _TENANTS_AT_ONCE):
        await _add(client, readings, named[start : start + _TENANTS_AT_ONCE], seconds // _DAY_SECONDS)
    return readings


async def _add(client: redis.Redis, readings: Readings, tenants: Sequence[str], today: int) -> None:
    pipe = client.pipeline(transaction=False)
    for name in tenants:
        tenant = TenantId(name)
        pipe.zcard(keys.open_passes(tenant))
        pipe.hget(keys.spending(tenant), "reserved_nano")
        pipe.hmget(keys.day(tenant, today), list(_OF_DAY))
        for status in JobStatus:
            pipe.zcard(keys.tenant_jobs(tenant, status))
    answers: list[Any] = await ask(pipe.execute())
    width = 3 + len(JobStatus)
    for at in range(0, len(answers), width):
        passes, reserved, day, *jobs = answers[at : at + width]
        readings.open_passes += passes
        readings.reserved_nano += int(reserved or 0)
        for name, value in zip(_OF_DAY, day, strict=True):
            readings.today[name] += int(value or 0)
        for status, number in zip(JobStatus, jobs, strict=True):
            readings.jobs[status] += number

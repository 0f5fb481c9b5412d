"""The store: everything that must not be lost, in Redis, reached only through here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Self

import msgspec
import redis.asyncio as redis
from redis.exceptions import ResponseError

from shared.errors import StoreFull
from shared.store import keys
from shared.store.api_keys import ApiKeyStore
from shared.store.catalogues import CatalogueStore
from shared.store.cleanups import CleanupStore
from shared.store.connection import Scripts, ask, connect
from shared.store.content import ContentStore
from shared.store.deliveries import DeliveryStore
from shared.store.due import DueClock
from shared.store.files import FileStore
from shared.store.followed import FollowedStore
from shared.store.idempotency import IdempotencyStore
from shared.store.jobs import JobStore
from shared.store.metrics import MetricStore
from shared.store.passes import PassStore
from shared.store.purging import PurgeStore
from shared.store.rates import RateStore
from shared.store.readings import Readings, read
from shared.store.spending import DayLimit, SpendingStore, any_amount
from shared.store.together import Together
from shared.store.webhooks import WebhookStore

_ADMISSION_SHARE = 0.8  # of maxmemory: below it new jobs come in, above it only work already accepted goes on
_MEMORY_CHECK_SECONDS = 1.0


class Store:
    """One connection pool and the parts that share it.

    day_limit: what each tenant may spend a day.  The store is told, and not its callers, so that nobody who moves money
    can forget it."""

    def __init__(self, client: redis.Redis, *, script_headers: bool = True, day_limit: DayLimit = any_amount) -> None:
        self._redis = client
        self._together = together = Together(client)
        scripts = Scripts(client, together, headers=script_headers)
        self._scripts = scripts
        self.day_limit = day_limit
        self.jobs = JobStore(client, scripts, together, day_limit)
        self.due = DueClock(client, scripts)
        self.metrics = MetricStore(client)
        self.passes = PassStore(client, scripts, day_limit)
        self.spending = SpendingStore(client, day_limit)
        self.content = ContentStore(client)
        self.files = FileStore(client, scripts)
        self.followed = FollowedStore(client, scripts)
        self.deliveries = DeliveryStore(client, scripts)
        self.webhooks = WebhookStore(client, scripts)
        self.catalogues = CatalogueStore(client, together)
        self.rates = RateStore(client, scripts)
        self.api_keys = ApiKeyStore(client)
        self.purging = PurgeStore(client, scripts)
        self.cleanups = CleanupStore(client, scripts)
        self.idempotency = IdempotencyStore(scripts)
        self._memory_checked_at = float("-inf")
        self._memory_share = 0.0

    @classmethod
    def at(cls, url: str, *, patient: bool, day_limit: DayLimit = any_amount) -> Self:
        """patient: see `connection.connect`.  Connects on first use."""
        return cls(connect(url, patient=patient), day_limit=day_limit)

    async def close(self) -> None:
        await self._together.settled()
        await self._redis.aclose()

    async def ping(self) -> None:
        """Raises StoreError when the server does not answer."""
        await ask(self._redis.ping())

    async def require_room(self) -> None:
        """Raises StoreFull above 80 % of the server's memory, so that accepted work always has room to finish."""
        now = time.monotonic()
        if now - self._memory_checked_at > _MEMORY_CHECK_SECONDS:
            memory = await ask(self._redis.info("memory"))
            limit = memory.get("maxmemory", 0)
            self._memory_share = memory["used_memory"] / limit if limit else 0.0
            self._memory_checked_at = now
        if self._memory_share > _ADMISSION_SHARE:
            raise StoreFull("The store is nearly full; jobs already accepted go on.  Try again later.")

    async def durability(self) -> dict[str, str]:
        """The server's settings on which "accepted" rests: appendonly, appendfsync, maxmemory-policy.

        Empty where the server does not say, as hosted ones may not."""
        names = ("appendonly", "appendfsync", "maxmemory-policy")
        try:
            return {name: str((await ask(self._redis.config_get(name))).get(name, "")) for name in names}
        except ResponseError:
            return {}

    async def sweep(self, *, grace_seconds: float, limit: int) -> list[str]:
        """Members of the due clock whose time has come, up to `limit` of each kind."""
        return await self.due.sweep(grace_seconds=grace_seconds, limit=limit)

    async def oldest_due_seconds(self) -> float:
        """How long the most overdue row has waited: the alarm for stuck jobs.  0 when nothing is overdue."""
        return await self.due.oldest_seconds()

    async def readings(self) -> Readings:
        """What the whole service is at."""
        return await read(self._redis)

    async def announce_worker(self, worker_id: str, about: dict[str, Any], *, for_seconds: float) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.set(keys.worker(worker_id), msgspec.json.encode(about), px=int(for_seconds * 1000))
        pipe.zadd(keys.WORKERS, {worker_id: (time.time() + for_seconds) * 1000})
        pipe.zremrangebyscore(keys.WORKERS, "-inf", time.time() * 1000 - 60_000)
        await ask(pipe.execute())

    async def retire_worker(self, worker_id: str) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.delete(keys.worker(worker_id))
        pipe.zrem(keys.WORKERS, worker_id)
        await ask(pipe.execute())

    async def workers(self) -> Sequence[str]:
        """Ids of the workers that have been heard of lately."""
        members = await ask(self._redis.zrange(keys.WORKERS, 0, -1))
        alive = [m for m in members if await ask(self._redis.exists(keys.worker(m.decode())))]
        return [member.decode() for member in alive]

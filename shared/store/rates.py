"""The rate at which all workers together call one model of one provider: learned, shared, cut and grown back."""

from __future__ import annotations

import redis.asyncio as redis

from shared.ids import TenantId
from shared.store import keys
from shared.store.connection import Scripts


class RateStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def permit(
        self,
        endpoint: str,
        model: str,
        *,
        calls: int,
        tokens_per_call: int,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        bucket_seconds: float,
    ) -> tuple[int, float]:
        """(calls granted, seconds to wait before asking again).  Limits are those configured or just learned."""
        granted, wait_ms = await self._scripts.run(
            "permit",
            [keys.rate(endpoint, model)],
            [calls, tokens_per_call, requests_per_minute or 0, tokens_per_minute or 0, bucket_seconds],
        )
        return int(granted), wait_ms / 1000

    async def take(self, tenant: TenantId, *, per_minute: int, wanted: int, unused: int) -> tuple[int, int, float]:
        """Requests of a tenant to our own API: (taken, left in its bucket, seconds until one is there).

        unused: of those taken before."""
        taken, left, wait_ms = await self._scripts.run("take", [keys.allowance(tenant)], [per_minute, wanted, unused])
        return int(taken), int(left), wait_ms / 1000

    async def throttle(self, endpoint: str, model: str, *, retry_after_seconds: float | None) -> None:
        """The provider refused for rate: everybody slows down, and waits as long as it asked."""
        await self._scripts.run("throttle", [keys.rate(endpoint, model)], [int((retry_after_seconds or 0.0) * 1000)])

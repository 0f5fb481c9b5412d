"""Webhook deliveries: rows with due times, written in the same script as the event they tell of."""

from __future__ import annotations

import msgspec
import redis.asyncio as redis

from shared.ids import DeliveryId, JobId
from shared.models import Delivery
from shared.store import keys
from shared.store.connection import Scripts, ask


class DeliveryStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def claim(self, delivery_id: DeliveryId, *, lease_seconds: float) -> Delivery | None:
        """Take a delivery for one attempt; None when it is gone, settled or not yet due, or another worker is at it."""
        row = await self._scripts.run(
            "claim_delivery", [keys.delivery(delivery_id), keys.DUE], [delivery_id, int(lease_seconds * 1000)]
        )
        return msgspec.json.decode(row, type=Delivery) if row else None

    async def settle(self, delivery: Delivery, *, next_attempt_in_seconds: float | None) -> None:
        """Write down how the attempt went.  None: there will be no further one."""
        wait = -1 if next_attempt_in_seconds is None else int(next_attempt_in_seconds * 1000)
        delivery_id = DeliveryId(delivery.id)
        await self._scripts.run(
            "settle_delivery",
            [keys.delivery(delivery_id), keys.DUE],
            [delivery_id, msgspec.json.encode(delivery), wait],
        )

    async def of_job(self, job_id: JobId) -> list[Delivery]:
        """The delivery log of one job, oldest first."""
        ids = await ask(self._redis.zrange(keys.job_deliveries(job_id), 0, -1))
        rows = [await ask(self._redis.hget(keys.delivery(DeliveryId(i.decode())), "row")) for i in ids]
        return [msgspec.json.decode(row, type=Delivery) for row in rows if row]

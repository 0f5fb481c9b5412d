"""Webhook deliveries: rows with due times, written in the same script as the event they tell of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import redis.asyncio as redis
from msgspec.structs import replace

from shared.errors import NotFound, StoreError
from shared.ids import DeliveryId, EndpointId, JobId, TenantId
from shared.store import keys
from shared.store.connection import Scripts, ask
from shared.webhook_records import Delivery

_TRIES: Final = 8
_delivery: Final = msgspec.json.Decoder(Delivery)


def entry(delivery: Delivery) -> dict[str, str]:
    """A new delivery as the scripts that write one take it."""
    log = (
        {} if delivery.endpoint_id is None else {"log": keys.endpoint_deliveries(delivery.tenant, delivery.endpoint_id)}
    )
    key = keys.delivery(DeliveryId(delivery.id))
    return {"key": key, "id": delivery.id, "row": msgspec.json.encode(delivery).decode(), **log}


class DeliveryStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def claim(self, delivery_id: DeliveryId, *, lease_seconds: float) -> Delivery | None:
        """Take a delivery for one attempt; None when it is gone, settled or not yet due, or another worker is at it."""
        row = await self._scripts.run(
            "claim_delivery", [keys.delivery(delivery_id), keys.DUE], [delivery_id, int(lease_seconds * 1000)]
        )
        return _delivery.decode(row) if row else None

    async def settle(self, delivery: Delivery, *, next_attempt_in_seconds: float | None) -> None:
        """Write down how the attempt went.  None: there will be no further one.

        What told of a deleted job at the job's own address is in no log any more, and goes once it is settled."""
        never = -2 if delivery.event_type == "job.deleted" and delivery.endpoint_id is None else -1
        wait = never if next_attempt_in_seconds is None else int(next_attempt_in_seconds * 1000)
        delivery_id = DeliveryId(delivery.id)
        await self._scripts.run(
            "settle_delivery",
            [keys.delivery(delivery_id), keys.DUE],
            [delivery_id, msgspec.json.encode(delivery), wait],
        )

    async def get(self, tenant: TenantId, delivery_id: DeliveryId) -> Delivery:
        """Raises NotFound, the same for a foreign delivery and for none."""
        return _own(tenant, await ask(self._redis.hget(keys.delivery(delivery_id), "row")))

    async def redeliver(self, tenant: TenantId, delivery_id: DeliveryId) -> Delivery:
        """Make it due now, with all its attempts before it.  Raises NotFound as `get` does."""
        for _ in range(_TRIES):
            row = await ask(self._redis.hget(keys.delivery(delivery_id), "row"))
            delivery = _own(tenant, row)
            again = replace(delivery, status="pending", counted_from=len(delivery.attempts))
            written = await self._scripts.run(
                "redeliver",
                [keys.delivery(delivery_id), keys.DUE],
                [delivery_id, row, msgspec.json.encode(again)],
            )
            if written:
                return again
        raise StoreError("The delivery is changing too fast.  Try again in a moment.")

    async def of_job(self, job_id: JobId) -> list[Delivery]:
        """The delivery log of one job, oldest first."""
        ids = await ask(self._redis.zrange(keys.job_deliveries(job_id), 0, -1))
        rows = [await ask(self._redis.hget(keys.delivery(DeliveryId(i.decode())), "row")) for i in ids]
        return [_delivery.decode(row) for row in rows if row]

    async def of_endpoint(
        self, tenant: TenantId, endpoint_id: EndpointId, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[Delivery], bool]:
        """Up to `limit` deliveries in order of creation, and whether there are more.  Entries of those that are gone
        are removed on the way, so each is passed once."""
        key, found = keys.endpoint_deliveries(tenant, endpoint_id), list[Delivery]()
        while True:
            wanted = limit + 1 - len(found)
            if newest_first:
                ids = await ask(self._redis.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, wanted))
            else:
                ids = await ask(self._redis.zrangebylex(key, f"({after}" if after else "-", "+", 0, wanted))
            rows = await self._rows(ids)
            gone = [delivery_id for delivery_id, row in zip(ids, rows, strict=True) if row is None]
            found += [_delivery.decode(row) for row in rows if row is not None]
            if gone:
                await ask(self._redis.zrem(key, *gone))
            if len(found) > limit or len(ids) < wanted:
                return found[:limit], len(found) > limit
            after = ids[-1].decode()

    async def _rows(self, ids: Sequence[bytes]) -> list[bytes | None]:
        pipe = self._redis.pipeline(transaction=False)
        for delivery_id in ids:
            pipe.hget(keys.delivery(DeliveryId(delivery_id.decode())), "row")
        return list(await ask(pipe.execute())) if ids else []


def _own(tenant: TenantId, row: bytes | None) -> Delivery:
    delivery = None if row is None else _delivery.decode(row)
    if delivery is None or delivery.tenant != tenant:
        raise NotFound("There is no such webhook delivery.")
    return delivery

"""Webhook endpoints: a few per tenant, each changed as a whole and only as it was read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.errors import Conflict, NotFound, StoreError
from shared.ids import EndpointId, TenantId
from shared.store import keys
from shared.store.connection import Scripts, ask
from shared.store.deliveries import entry
from shared.webhook_records import Delivery, WebhookEndpoint

ENDPOINTS_MAX: Final = 20  # per tenant; every event is held against all of them
_TRIES: Final = 8
_endpoint: Final = msgspec.json.Decoder(WebhookEndpoint)


class WebhookStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def create(self, endpoint: WebhookEndpoint) -> None:
        """Raises Conflict `too_many_webhook_endpoints`."""
        if await self._put(endpoint, b"", msgspec.json.encode(endpoint), ()) < 0:
            raise Conflict(
                f"A tenant has at most {ENDPOINTS_MAX} webhook endpoints.  Delete one, or let one take more events.",
                code="too_many_webhook_endpoints",
            )

    async def all(self, tenant: TenantId) -> list[WebhookEndpoint]:
        """In order of creation."""
        rows = await ask(self._redis.hvals(keys.webhook_endpoints(tenant)))
        return sorted((_endpoint.decode(row) for row in rows), key=lambda endpoint: endpoint.id)

    async def find(self, tenant: TenantId, endpoint_id: EndpointId) -> WebhookEndpoint | None:
        row = await ask(self._redis.hget(keys.webhook_endpoints(tenant), endpoint_id))
        return None if row is None else _endpoint.decode(row)

    async def get(self, tenant: TenantId, endpoint_id: EndpointId) -> WebhookEndpoint:
        """Raises NotFound, the same for a foreign endpoint and for none."""
        found = await self.find(tenant, endpoint_id)
        if found is None:
            raise _none()
        return found

    async def change(
        self,
        tenant: TenantId,
        endpoint_id: EndpointId,
        decide: Callable[[WebhookEndpoint], WebhookEndpoint | None],
        *,
        tell: Sequence[Delivery] = (),
    ) -> WebhookEndpoint:
        """Decide on the endpoint as it stands, and again when it was changed meanwhile.  Returns it as it is then, or
        as it was when it is removed.  decide: None removes it.  tell: written with the change.  Raises NotFound."""
        for _ in range(_TRIES):
            row = await ask(self._redis.hget(keys.webhook_endpoints(tenant), endpoint_id))
            if row is None:
                raise _none()
            endpoint = _endpoint.decode(row)
            wanted = decide(endpoint)
            after = b"" if wanted is None else msgspec.json.encode(wanted)
            if await self._put(endpoint, row, after, tell):
                if wanted is None:
                    await ask(self._redis.unlink(keys.endpoint_deliveries(tenant, endpoint_id)))
                return wanted or endpoint
        raise StoreError("The webhook endpoint is changing too fast.  Try again in a moment.")

    async def _put(self, endpoint: WebhookEndpoint, before: bytes, after: bytes, tell: Sequence[Delivery]) -> int:
        done: int = await self._scripts.run(
            "put_webhook_endpoint",
            [keys.webhook_endpoints(endpoint.tenant), keys.DUE],
            [endpoint.id, before, after, ENDPOINTS_MAX, msgspec.json.encode([entry(delivery) for delivery in tell])],
        )
        return done


def _none() -> NotFound:
    return NotFound("There is no such webhook endpoint.")

"""The use cases of webhook endpoints: what the API offers its callers, without HTTP."""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from msgspec.structs import replace

from shared.errors import BadRequest, Conflict, Fault, NotFound, ValidationFailed
from shared.ids import DeliveryId, EndpointId, TenantId, is_id, new_endpoint_id
from shared.notices import trial_of
from shared.store import Store
from shared.webhook_records import Delivery, RetiredSecret, WebhookEndpoint
from shared.webhooks import check_url, still_signing

OVERLAP_MS: Final = 86_400_000  # for so long after a rotation the old secret signs beside the new one
SECRETS_MAX: Final = 5  # that sign one delivery: each makes its head longer, and who rotates in a loop is stopped
_SECRET_BYTES: Final = 32


@dataclass(frozen=True)
class Destinations:
    """Where the operator lets webhooks go; as in shared.webhooks."""

    allow_http: bool
    ports: tuple[int, ...]
    allow_networks: tuple[IPv4Network | IPv6Network, ...]


class Endpoints:
    """Everything a caller can do with webhook endpoints and their deliveries.  One per process."""

    def __init__(self, store: Store, destinations: Destinations) -> None:
        self._store = store
        self._destinations = destinations

    async def create(
        self, tenant: TenantId, url: str, events: Sequence[str], *, description: str | None, enabled: bool
    ) -> WebhookEndpoint:
        """Its secret is in the answer, and nowhere else.  Raises ValidationFailed `url_not_allowed`, or Conflict."""
        self._check(url)
        await self._store.require_room()
        endpoint = WebhookEndpoint(
            id=new_endpoint_id(),
            tenant=tenant,
            url=url,
            events=list(events),
            secret=_new_secret(),
            created_at_ms=_now_ms(),
            description=description,
            enabled=enabled,
        )
        await self._store.webhooks.create(endpoint)
        return endpoint

    async def get(self, tenant: TenantId, endpoint_id: str) -> WebhookEndpoint:
        """Raises NotFound, the same for a foreign endpoint, for none and for what is no id at all."""
        return await self._store.webhooks.get(tenant, _checked(endpoint_id))

    async def page(
        self, tenant: TenantId, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[WebhookEndpoint], bool]:
        """after: id of the last endpoint seen.  Raises BadRequest `invalid_cursor` when it is none."""
        _check_cursor("whe", after)
        found = await self._store.webhooks.all(tenant)
        if newest_first:
            found.reverse()
        if after is not None:
            found = [endpoint for endpoint in found if (endpoint.id < after) == newest_first and endpoint.id != after]
        return found[:limit], len(found) > limit

    async def change(self, tenant: TenantId, endpoint_id: str, fields: Mapping[str, Any]) -> WebhookEndpoint:
        """fields: of url, events, description, enabled, those that are to change."""
        checked = _checked(endpoint_id)
        await self._store.webhooks.get(tenant, checked)  # a foreign one is not found, whatever is wrong with the rest
        if "url" in fields:
            self._check(fields["url"])
        more = {"disabled_reason": None} if "enabled" in fields else {}
        return await self._store.webhooks.change(tenant, checked, lambda endpoint: replace(endpoint, **fields, **more))

    async def delete(self, tenant: TenantId, endpoint_id: str) -> WebhookEndpoint:
        """What is on its way to it is not sent any more."""
        return await self._store.webhooks.change(tenant, _checked(endpoint_id), lambda _: None)

    async def rotate(self, tenant: TenantId, endpoint_id: str) -> WebhookEndpoint:
        """A new secret.  The one before signs beside it for a day, as those before that do until their day is over.

        Raises Conflict `too_many_webhook_secrets`."""
        secret, now_ms = _new_secret(), _now_ms()

        def rotated(endpoint: WebhookEndpoint) -> WebhookEndpoint:
            replaced = RetiredSecret(secret=endpoint.secret, until_ms=now_ms + OVERLAP_MS)
            retired = [replaced, *still_signing(endpoint, now_ms)]
            if len(retired) >= SECRETS_MAX:
                raise Conflict(
                    f"{SECRETS_MAX} secrets of this endpoint still sign.  Rotate again once the oldest has ended, or"
                    " make another endpoint.",
                    code="too_many_webhook_secrets",
                )
            return replace(endpoint, secret=secret, retired_secrets=retired)

        return await self._store.webhooks.change(tenant, _checked(endpoint_id), rotated)

    async def test(self, tenant: TenantId, endpoint_id: str) -> Delivery:
        """Send it a `webhook.test`.  Raises Conflict when it is disabled."""
        endpoint = _enabled(await self.get(tenant, endpoint_id))
        delivery = trial_of(endpoint)
        await self._store.webhooks.change(tenant, endpoint.id, lambda present: present, tell=[delivery])
        return delivery

    async def deliveries(
        self, tenant: TenantId, endpoint_id: str, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[Delivery], bool]:
        endpoint = await self.get(tenant, endpoint_id)
        _check_cursor("dlv", after)
        return await self._store.deliveries.of_endpoint(
            tenant, endpoint.id, limit=limit, after=after, newest_first=newest_first
        )

    async def redeliver(self, tenant: TenantId, delivery_id: str) -> Delivery:
        """Send it again, now and by the whole schedule.  Raises Conflict when its endpoint is disabled."""
        if not is_id("dlv", delivery_id):
            raise NotFound("There is no such webhook delivery.")
        delivery = await self._store.deliveries.get(tenant, DeliveryId(delivery_id))
        if delivery.endpoint_id is not None:
            _enabled(await self._store.webhooks.get(tenant, delivery.endpoint_id))
        return await self._store.deliveries.redeliver(tenant, DeliveryId(delivery_id))

    def _check(self, url: str) -> None:
        allowed = self._destinations
        try:
            check_url(url, allow_http=allowed.allow_http, ports=allowed.ports, allow_networks=allowed.allow_networks)
        except ValidationFailed as error:
            faults = [Fault("/url", fault.code, fault.detail) for fault in error.faults]
            raise ValidationFailed(str(error), code=error.code, param="url", faults=faults) from None


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _checked(endpoint_id: str) -> EndpointId:
    if not is_id("whe", endpoint_id):
        raise NotFound("There is no such webhook endpoint.")
    return EndpointId(endpoint_id)


def _check_cursor(prefix: str, after: str | None) -> None:
    if after is not None and not is_id(prefix, after):
        raise BadRequest(
            "`after` is not an id of this list.  Pass `last_id` of the page before.",
            code="invalid_cursor",
            param="after",
        )


def _enabled(endpoint: WebhookEndpoint) -> WebhookEndpoint:
    if not endpoint.enabled:
        raise Conflict(
            "The webhook endpoint is disabled, so nothing is sent to it.  Enable it first.",
            code="webhook_endpoint_disabled",
        )
    return endpoint

"""Webhook endpoints: made, listed, changed, tried out, deleted; what was sent to them, and sent again."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response

from api.deps import Caller, Wired, authenticate, body_docs, json_body, known_query_only, requires
from api.idempotency import NOT_REPEATABLE
from api.problems import documented
from api.schemas.common import Deleted, Page, page_of
from api.schemas.webhooks import (
    NewWebhookEndpointOut,
    WebhookDeliveryOut,
    WebhookEndpointChange,
    WebhookEndpointCreate,
    WebhookEndpointOut,
)

router = APIRouter(
    prefix="/v1",
    tags=["webhooks"],
    dependencies=[Depends(authenticate), Depends(known_query_only)],
    responses=documented(401, 403, 422, 429, 503),
)
Writer = Annotated[Caller, requires("webhooks:write")]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="`last_id` of the page before")]
Order = Annotated[Literal["asc", "desc"], Query()]


@router.post(
    "/webhook_endpoints",
    status_code=201,
    dependencies=[NOT_REPEATABLE],
    responses=documented(400, 409, 413, 415),
    openapi_extra=body_docs(WebhookEndpointCreate),
)
async def create_webhook_endpoint(
    caller: Writer,
    body: Annotated[WebhookEndpointCreate, json_body(WebhookEndpointCreate)],
    services: Wired,
    response: Response,
) -> NewWebhookEndpointOut:
    """Be told of what happens to any of your jobs.  `secret` is shown in this answer and never again."""
    endpoint = await services.endpoints.create(
        caller.tenant, body.url, body.events, description=body.description, enabled=body.enabled
    )
    response.headers["Location"] = f"/v1/webhook_endpoints/{endpoint.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewWebhookEndpointOut.made(endpoint)


@router.get("/webhook_endpoints", responses=documented(400))
async def list_webhook_endpoints(
    caller: Writer, services: Wired, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> Page[WebhookEndpointOut]:
    """Your endpoints, newest first."""
    found, more = await services.endpoints.page(caller.tenant, limit=limit, after=after, newest_first=order == "desc")
    return page_of([WebhookEndpointOut.of(endpoint) for endpoint in found], has_more=more)


@router.get("/webhook_endpoints/{endpoint_id}", responses=documented(404))
async def get_webhook_endpoint(endpoint_id: str, caller: Writer, services: Wired) -> WebhookEndpointOut:
    return WebhookEndpointOut.of(await services.endpoints.get(caller.tenant, endpoint_id))


@router.patch(
    "/webhook_endpoints/{endpoint_id}",
    responses=documented(400, 404, 413, 415),
    openapi_extra=body_docs(WebhookEndpointChange),
)
async def change_webhook_endpoint(
    endpoint_id: str,
    caller: Writer,
    body: Annotated[WebhookEndpointChange, json_body(WebhookEndpointChange)],
    services: Wired,
) -> WebhookEndpointOut:
    """Change where and what you are told.  What is on its way goes to the new URL; while disabled, nothing is sent."""
    return WebhookEndpointOut.of(await services.endpoints.change(caller.tenant, endpoint_id, body.changed()))


@router.delete("/webhook_endpoints/{endpoint_id}", responses=documented(404))
async def delete_webhook_endpoint(endpoint_id: str, caller: Writer, services: Wired) -> Deleted:
    """Nothing further is sent, and the log of its deliveries is gone."""
    endpoint = await services.endpoints.delete(caller.tenant, endpoint_id)
    return Deleted(id=endpoint.id, object="webhook_endpoint", deleted=True)


@router.post(
    "/webhook_endpoints/{endpoint_id}/rotate_secret",
    dependencies=[NOT_REPEATABLE],
    responses=documented(400, 404, 409),
)
async def rotate_webhook_secret(
    endpoint_id: str, caller: Writer, services: Wired, response: Response
) -> NewWebhookEndpointOut:
    """A new secret, shown in this answer and never again.  For 24 hours the old one signs beside it,
    as do those before it until their own 24 hours are over; at most 5 sign at once."""
    endpoint = await services.endpoints.rotate(caller.tenant, endpoint_id)
    response.headers["Cache-Control"] = "no-store"
    return NewWebhookEndpointOut.made(endpoint)


@router.post(
    "/webhook_endpoints/{endpoint_id}/test",
    status_code=202,
    dependencies=[NOT_REPEATABLE],
    responses=documented(400, 404, 409),
)
async def test_webhook_endpoint(endpoint_id: str, caller: Writer, services: Wired) -> WebhookDeliveryOut:
    """Send a `webhook.test`, whether or not the endpoint subscribes to it.  The log says how it went."""
    return WebhookDeliveryOut.of(await services.endpoints.test(caller.tenant, endpoint_id))


@router.get("/webhook_endpoints/{endpoint_id}/deliveries", responses=documented(400, 404))
async def list_webhook_deliveries(
    endpoint_id: str, caller: Writer, services: Wired, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> Page[WebhookDeliveryOut]:
    """What was sent to the endpoint within 30 days, newest first, with every attempt; at most the last 1,000."""
    found, more = await services.endpoints.deliveries(
        caller.tenant, endpoint_id, limit=limit, after=after, newest_first=order == "desc"
    )
    return page_of([WebhookDeliveryOut.of(delivery) for delivery in found], has_more=more)


@router.post(
    "/webhook_deliveries/{delivery_id}/redeliver",
    status_code=202,
    dependencies=[NOT_REPEATABLE],
    responses=documented(400, 404, 409),
)
async def redeliver_webhook(delivery_id: str, caller: Writer, services: Wired) -> WebhookDeliveryOut:
    """Send it again, now, with the same `webhook-id`; if that fails, by the whole schedule."""
    return WebhookDeliveryOut.of(await services.endpoints.redeliver(caller.tenant, delivery_id))

"""Events that providers send us, authenticated by their signature alone."""

from __future__ import annotations

from fastapi import APIRouter, Request

from api.deps import Wired, read_body, require_json
from api.problems import documented
from shared.errors import BadRequest, NotFound
from shared.ids import TenantId
from shared.provider_events import verify

router = APIRouter(prefix="/v1", tags=["providers"])
_BODY_MAX_BYTES = 65_536


@router.post(
    "/provider_events/{provider}",
    status_code=204,
    responses=documented(400, 404, 413, 415, 429, 503),
    openapi_extra={
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "parameters": [
            {"name": f"webhook-{part}", "in": "header", "required": True, "schema": {"type": "string"}}
            for part in ("id", "timestamp", "signature")
        ],
    },
)
async def take_provider_event(provider: str, request: Request, services: Wired) -> None:
    """Where a provider's own webhooks go (Standard Webhooks; no API key).  Set its `webhook_secret`.

    A verified event makes the job that waits for it look at once.  An event of an unknown type, about an unknown
    object, or delivered again is taken all the same, and does nothing."""
    secret = services.provider_events.secret(provider)
    if secret is None:
        raise NotFound("No provider of this name sends events.")
    require_json(request)
    body = await read_body(request, _BODY_MAX_BYTES)
    try:
        verify(secret, request.headers, body)
    except BadRequest:
        # Counted apart, so that strangers cannot use up what the provider may send.
        await services.event_allowances.spend(TenantId(f"provider-strangers:{provider}"))
        raise
    await services.event_allowances.spend(TenantId(f"provider:{provider}"))
    await services.provider_events.take(provider, request.headers["webhook-id"], body)

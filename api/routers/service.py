"""The service about itself: health, the pages behind problem types, webhook event types."""

from __future__ import annotations

from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from api.deps import Caller, Wired, authenticate, known_query_only, requires
from api.problem_table import page
from api.problems import documented, problem
from api.schemas.common import Page, page_of
from api.schemas.webhooks import WebhookEventType
from shared.errors import NotFound, StoreError
from shared.webhooks import EVENT_TYPES

router = APIRouter(tags=["service"])
_LATE_SECONDS: Final = 60.0  # the most overdue row may wait so long before the service counts as stuck
_DURABLE: Final = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process lives.  Never touches the store."""
    return {"status": "ok"}


@router.get("/readyz", response_model=dict[str, Any], responses=documented(503))
async def readyz(request: Request, services: Wired) -> Any:
    """Whether jobs are accepted durably and moved: store, its settings, a live worker, no work left lying."""
    store = services.store
    try:
        await store.ping()
        durability = await store.durability()
        workers = len(await store.workers())
        late = await store.oldest_due_seconds()
    except StoreError:
        return _not_ready(request, "The store does not answer.", {"store": "unreachable"})
    wrong = sorted(name for name, value in durability.items() if value != _DURABLE[name])
    checks = {
        "store": "ok",
        "durability": "wrong: " + ", ".join(wrong) if wrong else "ok" if durability else "unknown",
        "workers": workers,
        "oldest_due_seconds": round(late, 1),
    }
    if wrong:
        return _not_ready(request, f"The store would lose accepted jobs: {', '.join(wrong)}.", checks)
    if not workers:
        return _not_ready(request, "No worker is alive; jobs are accepted and wait.", checks)
    if late > _LATE_SECONDS:
        return _not_ready(request, "Due work has not been looked at for over a minute.", checks)
    return {"status": "ready", "checks": checks}


def _not_ready(request: Request, detail: str, checks: dict[str, Any]) -> Response:
    return problem(request, "not_ready", detail, extra={"checks": checks})


@router.get("/problems/{code}", response_class=HTMLResponse, responses=documented(404))
async def problem_page(code: str) -> HTMLResponse:
    """The page behind a problem's `type`."""
    text = page(code)
    if text is None:
        raise NotFound("There is no such problem type.")
    return HTMLResponse(
        text, headers={"Content-Security-Policy": "default-src 'none'", "Cache-Control": "max-age=3600"}
    )


_DESCRIPTIONS: Final = {
    "job.running": "A worker has taken the job up, or it was resumed.",
    "job.stage_changed": "The job has entered another stage.",
    "job.awaiting_deployment": "A student is trained, or not found where it was told: its owner tells where.",
    "job.paused": "The job waits for its owner; see its `paused_reason`.",
    "job.succeeded": "The students are trained and judged.",
    "job.failed": "The job ended with an error.",
    "job.cancelled": "The job was stopped on request.",
    "job.deleted": "The job and its content were deleted.",
    "budget.threshold_reached": "A share of the job's budget is spent.",
    "webhook_endpoint.disabled": "An endpoint no longer receives events.",
    "webhook.test": "Sent on request, to try an endpoint.",
}


@router.get(
    "/v1/webhook_event_types", tags=["webhooks"], dependencies=[Depends(authenticate), Depends(known_query_only)]
)
async def list_webhook_event_types(caller: Annotated[Caller, requires("jobs:read")]) -> Page[WebhookEventType]:
    """What `webhook.events` may name, with an example of each body."""
    shown = [
        WebhookEventType(id=name, object="webhook_event_type", description=_DESCRIPTIONS[name], example=_example(name))
        for name in EVENT_TYPES
    ]
    return page_of(shown, has_more=False)


def _example(name: str) -> dict[str, Any]:
    about_endpoint = {
        "id": "whe_06cr9d2v7r3k5m8n0p2q4s6t8v0w2x4y6z",
        "object": "webhook_endpoint",
        "enabled": name == "webhook.test",
    }
    return {
        "id": "evt_06cr9d2v7r3k5m8n0p2q4s6t8v0w2x4y6z",
        "object": "event",
        "type": name,
        "created_at": 1_795_345_200,
        "data": about_endpoint
        if name.startswith("webhook")
        else {
            "id": "job_06cr9d2v7r3k5m8n0p2q4s6t8v0w2x4y6z",
            "object": "distillation.job",
            "status": name.removeprefix("job.")
            if name in {"job.succeeded", "job.failed", "job.cancelled"}
            else "running",
            "version": 41,
            "metadata": {},
        },
    }

"""What a tenant may, has spent, and can ask of the providers."""

from __future__ import annotations

import re
import time
from datetime import UTC, date, datetime
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query

from api.deps import Caller, Wired, authenticate, known_query_only, requires
from api.problems import documented
from api.schemas.account import LimitsOut, ModelOut, UsageDayOut
from api.schemas.common import Page, page_of
from api.validation import query_fault
from shared.errors import BadRequest

router = APIRouter(
    prefix="/v1",
    tags=["account"],
    dependencies=[Depends(authenticate), Depends(known_query_only)],
    responses=documented(401, 403, 422, 429, 503),
)
Reader = Annotated[Caller, requires("jobs:read")]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query()]
Moment = Annotated[int | None, Query(ge=0, le=100_000_000_000, description="unix seconds, not included")]
_DAY: Final = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_DAY_SECONDS: Final = 86_400


@router.get("/models", responses=documented(400))
async def list_models(
    caller: Reader,
    services: Wired,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=400, description="`last_id` of the page before")] = None,
    order: Order = "asc",
    provider: Annotated[str | None, Query(max_length=64)] = None,
) -> Page[ModelOut]:
    """Models of the providers you may use, as a worker has read them in the last quarter of an hour, by name.

    Of fine-tuned models only those that your own jobs have made, the latest too."""
    settings = services.settings.providers
    names = _usable(caller, list(settings))
    if provider is not None:
        if provider not in names:
            raise query_fault("provider", "unknown_provider", "The provider is not one that you may use")
        names = [provider]
    if after is not None and "/" not in after:
        raise BadRequest("`after` is not the id of a model of this list.", code="invalid_cursor", param="after")
    found: list[tuple[str, str]] = []
    shown = {}
    for name in names:
        catalogue, own = await services.catalogues.visible(name, caller.tenant)
        if catalogue is not None:
            shown[name] = (catalogue.models, own, services.catalogues.today_at(catalogue))
            found += [(name, model) for model in catalogue.models]
    found.sort(reverse=order == "desc")
    if after is not None:
        place, _, model = after.partition("/")
        seen = (place, model)
        found = [each for each in found if (each < seen if order == "desc" else each > seen)]
    page = [
        ModelOut.of(
            name,
            model,
            shown[name][0][model],
            settings=settings[name],
            prices=services.prices,
            today=shown[name][2],
            fine_tuned=model in shown[name][1],
        )
        for name, model in found[:limit]
    ]
    return page_of(page, has_more=len(found) > limit)


@router.get("/usage", responses=documented(400))
async def list_usage(
    caller: Reader,
    services: Wired,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=100, description="`last_id` of the page before")] = None,
    order: Order = "desc",
    created_after: Moment = None,
    created_before: Moment = None,
) -> Page[UsageDayOut]:
    """What your jobs have spent, day by day (UTC), newest first.  Kept for 400 days, also of jobs that are deleted."""
    days, more = await services.store.spending.page(
        caller.tenant,
        limit=limit,
        after=None if after is None else _day(after),
        newest_first=order == "desc",
        first=None if created_after is None else _day_of(created_after + _DAY_SECONDS),
        last=None if created_before is None else _day_of(max(0, created_before - 1)),
    )
    return page_of([UsageDayOut.of(day) for day in days], has_more=more)


@router.get("/limits")
async def get_limits(caller: Reader, services: Wired) -> LimitsOut:
    """What you may, and what is left of it."""
    return LimitsOut.of(
        services.settings,
        caller.tenant,
        await services.store.spending.standing(caller.tenant),
        active=await services.store.jobs.count_active(caller.tenant),
        requests_left=services.allowances.left(caller.tenant),
        providers=_usable(caller, list(services.settings.providers)),
        now=int(time.time()),
    )


def _usable(caller: Caller, configured: list[str]) -> list[str]:
    return sorted(name for name in configured if caller.providers is None or name in caller.providers)


def _day(text: str) -> date:
    wrong = BadRequest("`after` is not the id of a day.", code="invalid_cursor", param="after")
    if not _DAY.fullmatch(text):
        raise wrong
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise wrong from None


def _day_of(moment: int) -> date:
    return datetime.fromtimestamp(moment, UTC).date()

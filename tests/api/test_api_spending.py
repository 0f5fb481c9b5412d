"""What a tenant may spend a day, and what it has spent: at submit, in its limits, in its usage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from api_kit import Api, FakeServer, a_request, problem_of, some_settings

from api.deps import SCOPES
from shared.ids import TenantId
from shared.settings import TenantSettings
from shared.store import Store, keys
from shared.store.spending import day_number

pytestmark = pytest.mark.anyio
ACME, RIVAL = TenantId("acme"), TenantId("rival")
DOLLAR = 1_000_000_000


@pytest.fixture
async def limited() -> AsyncIterator[Api]:
    """An installation where a tenant may spend 10 dollars a day, and acme 2."""
    redis = FakeServer()
    settings = some_settings(daily_spend_max_usd="10", tenants={"acme": TenantSettings(daily_spend_max_usd="2")})
    made = Api(settings, Store(redis, script_headers=False, day_limit=settings.day_limit_nano), redis)
    async with made.http:
        yield made
    await redis.aclose()


async def spent(api: Api, tenant: TenantId, **fields: Any) -> None:
    number = day_number(datetime.now(UTC).date())
    await api.redis.hset(keys.day(tenant, number), mapping=fields)
    await api.redis.zadd(keys.days(tenant), {str(number): number})


async def as_tenant(api: Api, tenant: TenantId) -> dict[str, str]:
    _, secret = await api.store.api_keys.create(tenant, SCOPES)
    return {"Authorization": f"Bearer {secret}"}


async def test_a_job_is_refused_when_the_tenant_has_spent_its_day(limited: Api):
    acme = await as_tenant(limited, ACME)
    await spent(limited, ACME, spent_nano=DOLLAR)
    assert (await limited.http.post("/v1/jobs", json=a_request(), headers=acme)).status_code == 202
    await limited.redis.hset(keys.spending(ACME), "reserved_nano", DOLLAR)

    refused = await limited.http.post("/v1/jobs", json=a_request(), headers=acme)

    problem = problem_of(refused)
    assert (problem["status"], problem["code"], problem["retryable"]) == (429, "daily_spend_exhausted", False)
    assert "2 dollars" in problem["detail"]
    assert 0 < int(refused.headers["retry-after"]) <= 86_400
    assert (await limited.http.post("/v1/jobs", json=a_request())).status_code == 202, "another tenant"


async def test_what_a_request_would_do_can_be_asked_at_the_limit(limited: Api):
    acme = await as_tenant(limited, ACME)
    await spent(limited, ACME, spent_nano=2 * DOLLAR)

    asked = await limited.http.post("/v1/jobs?validate_only=true", json=a_request(), headers=acme)

    assert asked.status_code == 200

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
    settings = some_settings(
        daily_spend_max_usd="10",
        tenants={"acme": TenantSettings(daily_spend_max_usd="2"), "idle": TenantSettings(daily_spend_max_usd="0")},
    )
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


async def test_a_limit_of_nothing_is_called_that(limited: Api):
    idle = await as_tenant(limited, TenantId("idle"))
    problem = problem_of(await limited.http.post("/v1/jobs", json=a_request(), headers=idle))
    assert (problem["status"], problem["code"]) == (429, "daily_spend_exhausted")
    assert "spend nothing" in problem["detail"]


async def test_what_a_request_would_do_can_be_asked_at_the_limit(limited: Api):
    acme = await as_tenant(limited, ACME)
    await spent(limited, ACME, spent_nano=2 * DOLLAR)

    asked = await limited.http.post("/v1/jobs?validate_only=true", json=a_request(), headers=acme)

    assert asked.status_code == 200


async def test_usage_is_shown_by_day_to_its_tenant_alone(api: Api):
    acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
    today = day_number(datetime.now(UTC).date())
    for back in range(3):
        await api.redis.hset(keys.day(ACME, today - back), mapping={"spent_nano": back * DOLLAR, "bought": back})
        await api.redis.zadd(keys.days(ACME), {str(today - back): today - back})
    await spent(api, RIVAL, spent_nano=7 * DOLLAR)

    first = (await api.http.get("/v1/usage?limit=2", headers=acme)).json()
    assert [day["spent_usd"] for day in first["data"]] == ["0", "1"]
    assert first["has_more"]
    assert first["data"][0]["id"] == datetime.now(UTC).date().isoformat() == first["first_id"]
    rest = (await api.http.get(f"/v1/usage?after={first['last_id']}", headers=acme)).json()
    assert [(day["spent_usd"], day["completions_bought"]) for day in rest["data"]] == [("2", 2)]

    begun = first["data"][1]["created_at"]
    for query, wanted in (
        (f"created_after={begun}", ["0"]),
        (f"created_after={begun - 1}&order=asc", ["1", "0"]),
        (f"created_before={begun + 1}", ["1", "2"]),
        (f"created_before={begun}", ["2"]),
    ):
        found = (await api.http.get(f"/v1/usage?{query}", headers=acme)).json()["data"]
        assert [day["spent_usd"] for day in found] == wanted, query
    assert [d["spent_usd"] for d in (await api.http.get("/v1/usage", headers=rival)).json()["data"]] == ["7"]


@pytest.mark.parametrize("after", ["yesterday", "2026-13-01", "job_x", "20261125", "2026-11-2５"])
async def test_a_cursor_that_is_no_day_is_refused(api: Api, after: str):
    problem = problem_of(await api.http.get("/v1/usage", params={"after": after}))
    assert (problem["status"], problem["code"]) == (400, "invalid_cursor")


async def test_a_tenant_sees_what_it_may_and_what_is_left(limited: Api):
    acme = await as_tenant(limited, ACME)
    await limited.http.post("/v1/jobs", json=a_request(), headers=acme)
    await spent(limited, ACME, spent_nano=DOLLAR // 2, unconfirmed_nano=DOLLAR // 4)
    await limited.redis.hset(keys.spending(ACME), "reserved_nano", DOLLAR // 4)

    limits = (await limited.http.get("/v1/limits", headers=acme)).json()

    assert limits["jobs"] == {"active": 1, "active_max": None, "retention_days_max": 365}
    assert limits["prompts"] == {"inline_max": 1_000, "file_max": 1_000_000, "max_chars": 400_000}
    assert limits["requests"]["per_minute"] == 60_000
    assert 0 < limits["requests"]["left"] <= 60_000
    assert limits["providers"] == sorted(limited.settings.providers)
    resets_at = limits["spend"].pop("resets_at")
    assert limits["spend"] == {
        "limit_usd": "2",
        "spent_usd": "0.5",
        "unconfirmed_usd": "0.25",
        "reserved_usd": "0.25",
        "left_usd": "1",
    }
    assert resets_at % 86_400 in {0, 1, 86_399}
    operators = (await limited.http.get("/v1/limits")).json()
    assert (operators["spend"]["limit_usd"], operators["jobs"]["active"]) == ("10", 0)


async def test_without_limits_the_limits_say_so():
    redis = FakeServer()
    free = Api(some_settings(requests_per_minute=0), Store(redis, script_headers=False), redis)
    async with free.http:
        limits = (await free.http.get("/v1/limits")).json()
    assert limits["requests"] == {"per_minute": None, "left": None}
    assert (limits["spend"]["limit_usd"], limits["spend"]["left_usd"]) == (None, None)


async def test_each_tenant_has_its_own_number_of_jobs_and_requests():
    redis = FakeServer()
    own = TenantSettings(active_jobs_max=1, requests_per_minute=3)
    api = Api(some_settings(tenants={"acme": own}), Store(redis, script_headers=False), redis)
    async with api.http:
        acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
        answers = [await api.http.post("/v1/jobs", json=a_request(), headers=acme) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202, 429, 429, 429]
        codes = [problem_of(answer)["code"] for answer in answers[1:]]
        assert codes == ["too_many_active_jobs", "too_many_active_jobs", "rate_limited"]
        for _ in range(4):
            assert (await api.http.post("/v1/jobs", json=a_request(), headers=rival)).status_code == 202


async def test_a_model_without_a_price_is_refused_where_the_day_has_a_limit(limited: Api):
    teacher = {"provider": "openai", "model": "house-model", "params": {}}

    refused = problem_of(await limited.http.post("/v1/jobs", json=a_request(teacher=teacher)))

    assert (refused["status"], refused["code"], refused["param"]) == (422, "model_unpriced", "teacher.model")
    assert "limit of the day" in refused["detail"]

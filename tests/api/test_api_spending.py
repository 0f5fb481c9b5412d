"""What a tenant may spend a day, and what it has spent: at submit, in its limits, in its usage."""

from __future__ import annotations

import json
import math
import re
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

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_a_day")]
ACME, RIVAL, POOR = TenantId("acme"), TenantId("rival"), TenantId("poor")
DOLLAR = 1_000_000_000

TEACHER = {"provider": "openai", "model": "gpt-4.1"}
CAPPED = TEACHER | {"params": {"max_completion_tokens": 100}}
MEASURED = TEACHER | {"params": {"max_completion_tokens": 20_000}}  # a call costs 16 cents, one of a student 24
STUDENT = {"provider": "openai", "model": "gpt-4.1-nano"}
JUDGE = {"type": "score_model", "name": "judge", "provider": "openai", "model": "gpt-4.1"}
TALKATIVE_JUDGE = JUDGE | {"sampling_params": {"max_completion_tokens": 30_000}}
TICKETS = [f"Ticket {n}: my invoice is wrong." for n in range(20)]
LONG = "my invoice is wrong. " * 8_000


@pytest.fixture
async def limited() -> AsyncIterator[Api]:
    """An installation where a tenant may spend 10 dollars a day, acme 2 and poor 20 cents."""
    redis = FakeServer()
    settings = some_settings(
        daily_spend_max_usd="10",
        tenants={
            name: TenantSettings(daily_spend_max_usd=most)
            for name, most in (("acme", "2"), ("idle", "0"), ("poor", "0.2"))
        },
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


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"teacher": TEACHER}, "teacher.model"),
        ({"source": {"type": "inline", "prompts": [LONG, *TICKETS]}}, "teacher.model"),
        ({"students": [STUDENT | {"model": "gpt-4.1"}], "teacher": MEASURED}, "students.0.model"),
        ({"evaluation": {"graders": [TALKATIVE_JUDGE]}}, "evaluation.graders.0.model"),
        ({"curation": {"min_accepted": 5, "grader": TALKATIVE_JUDGE}}, "curation.grader.model"),
    ],
)
async def test_a_job_of_which_one_call_is_dearer_than_a_day_is_refused_and_told_both_sums(
    limited: Api, changes: dict[str, Any], param: str
):
    poor = await as_tenant(limited, POOR)
    request = a_request(teacher=CAPPED, students=[STUDENT]) | changes

    for path in ("/v1/jobs", "/v1/jobs?validate_only=true"):
        refused = problem_of(await limited.http.post(path, json=request, headers=poor))
        assert (refused["status"], refused["code"], refused["param"]) == (422, "cost_above_limit", param)
        assert "dollars a call, more than the 0.2 dollars that your jobs may spend a day" in refused["detail"]
    assert (await limited.http.post("/v1/jobs", json=request)).status_code == 202, "another tenant"


async def test_of_a_file_the_longest_prompt_must_fit_into_a_day(limited: Api):
    poor = await as_tenant(limited, POOR)
    for longest, status in ((TICKETS[0], 202), (LONG, 422)):
        prompts = [{"messages": [{"role": "user", "content": text}]} for text in [*TICKETS, longest]]
        lines = "".join(json.dumps(prompt) + "\n" for prompt in prompts)
        headers = poor | {"Content-Type": "application/jsonl"}
        file = (await limited.http.post("/v1/files", content=lines, headers=headers)).json()
        request = a_request(teacher=CAPPED, students=[STUDENT], source={"type": "file", "file_id": file["id"]})
        assert (await limited.http.post("/v1/jobs", json=request, headers=poor)).status_code == status


async def warned(api: Api, tenant: TenantId, **changes: Any) -> str | None:
    """What an accepted job of the tenant's is told of the limit of the day."""
    request = a_request(teacher=CAPPED, students=[STUDENT]) | changes
    answer = await api.http.post("/v1/jobs", json=request, headers=await as_tenant(api, tenant))
    assert answer.status_code == 202, answer.text
    return next((w["message"] for w in answer.json()["warnings"] if w["code"] == "daily_spend_short"), None)


MANY = {"type": "inline", "prompts": [f"{n} {LONG[:4_000]}" for n in range(300)]}


async def test_a_job_that_takes_days_is_accepted_and_says_how_many(limited: Api):
    slow = {
        "teacher": CAPPED | {"model": "o1"},
        "students": [STUDENT | {"hyperparameters": {"n_epochs": 1}}],
        "source": MANY,
    }
    assert await warned(limited, ACME) is None
    message = await warned(limited, ACME, **slow, deadline_seconds=86_400)
    low, high = re.search(r"cost ([\d.]+) to ([\d.]+) dollars and your jobs may spend 2 a day", message).groups()
    assert f"about {math.ceil(float(low) / 2)} to {math.ceil(float(high) / 2)} days" in message
    assert "Its deadline comes before" in message
    assert "operator" not in message
    assert "deadline" not in await warned(limited, ACME, **slow, deadline_seconds=2_000_000)


async def test_a_training_that_no_day_allows_waits_for_a_higher_limit_and_no_days_are_named(limited: Api):
    message = await warned(limited, POOR, source=MANY)
    assert re.search(r"A training reserves [\d.]+ dollars or more, which no day allows", message)
    assert "until your operator allows more or its deadline" in message
    assert "about" not in message


async def test_a_training_that_may_be_more_than_a_day_allows_says_up_to_how_much(limited: Api):
    some = {"type": "inline", "prompts": [f"{n} {LONG[:1_000]}" for n in range(40)]}
    message = await warned(limited, POOR, source=some, teacher=TEACHER | {"params": {"max_completion_tokens": 1_000}})
    reserved = re.search(r"A training may reserve up to ([\d.]+) dollars; if no day allows that", message)
    assert float(reserved[1]) > 0.2
    assert "until your operator allows more or its deadline" in message


async def test_a_model_without_a_price_is_refused_where_the_day_has_a_limit(limited: Api):
    teacher = {"provider": "openai", "model": "house-model", "params": {}}

    refused = problem_of(await limited.http.post("/v1/jobs", json=a_request(teacher=teacher)))

    assert (refused["status"], refused["code"], refused["param"]) == (422, "model_unpriced", "teacher.model")
    assert "limit of the day" in refused["detail"]

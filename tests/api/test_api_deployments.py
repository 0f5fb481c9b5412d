"""POST /v1/jobs/{id}/students/{n}/endpoint: where a student answers that its owner has deployed."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from api_kit import Api, FakeServer, begin, loaded, problem_of, some_settings
from msgspec.structs import replace

from shared.lifecycle import JobStatus, Stage
from shared.models import FineTune, Job, StudentEndpoint
from shared.plan import evaluation_plans
from shared.store import Store, keys
from shared.store.jobs import Change
from shared.store.passes import Beginning, PassId, Settlement

pytestmark = pytest.mark.anyio


async def an_awaiting_job(api: Api, **fields: Any) -> Job:
    """Its first student waits for its deployment; further ones are as `others` says."""
    job = await begin(api, await api.create())
    tune = FineTune(step="awaiting", status="awaiting_deployment", fine_tuned_model="gpt-4.1-mini.ft-1")
    await api.store.jobs.change(
        job, Change(set={"stage": Stage.TRAINING, "fine_tunes": [tune], **fields}, due_in_seconds=9_999)
    )
    return await stored(api, job)


async def stored(api: Api, job: Job) -> Job:
    return await loaded(api, {"id": job.id})


async def tell(api: Api, job: Job, number: int | str = 0, **body: Any) -> httpx2.Response:
    return await api.http.post(f"/v1/jobs/{job.id}/students/{number}/endpoint", json={"model": "triage-ft"} | body)


async def test_an_awaiting_student_is_told_where_it_answers(api: Api):
    job = await an_awaiting_job(api)
    api.bell.rung.clear()

    answer = await tell(api, job, provider="open", base_model="triage-base")

    assert answer.status_code == 200, answer.text
    student = answer.json()["students"][0]
    assert student["endpoint"] == {"provider": "open", "model": "triage-ft", "base_model": "triage-base"}
    assert student["fine_tuned_model"] == "gpt-4.1-mini.ft-1"
    kept = StudentEndpoint(provider="open", model="triage-ft", base_model="triage-base")
    [told] = (await stored(api, job)).endpoints.values()
    assert told.is_same_place(kept)
    assert await api.store.sweep(grace_seconds=1, limit=10) == [f"job:{job.id}"]
    assert len(api.bell.rung) == 1
    events = (await api.http.get(f"/v1/jobs/{job.id}/events")).json()["data"]
    assert events[0]["data"] == {"student": 0, "provider": "open", "model": "triage-ft"}


@pytest.mark.parametrize("number", ["00", "+0", "-0", "%200", "0%20", "0%0A", "1.0", "1_0", "%D9%A0", "99"])
async def test_a_student_has_one_address(api: Api, number: str):
    job = await an_awaiting_job(api)
    refused = problem_of(await tell(api, job, number))
    assert (refused["status"], refused["code"], refused["param"]) == (422, "validation_failed", "number")
    assert (await stored(api, job)).endpoints == {}
    assert (await tell(api, job, "0")).status_code == 200


@pytest.mark.parametrize("field", ["model", "base_model", "provider"])
@pytest.mark.parametrize("sign", ["\0", "\n", "\x1b", "\x7f", "\x85"])
async def test_a_place_has_no_control_characters(api: Api, field: str, sign: str):
    refused = problem_of(await tell(api, await an_awaiting_job(api), **{field: f"triage{sign}ft"}))
    assert (refused["status"], refused["code"]) == (422, "validation_failed")
    assert refused["errors"] == [
        {"pointer": f"/{field}", "code": "invalid_value", "detail": "must not have control characters"}
    ]


async def test_the_students_own_provider_is_meant_when_none_is_named(api: Api):
    answer = await tell(api, await an_awaiting_job(api))

    assert answer.json()["students"][0]["endpoint"] == {"provider": "openai", "model": "triage-ft", "base_model": None}


async def taken(api: Api, job: Job, **fields: Any) -> Job:
    """A worker has taken up what was told."""
    told = (await stored(api, job)).endpoints[0]
    tune = FineTune(step="ended", status="succeeded", endpoint=told)
    await api.store.jobs.change(job, Change(set={"fine_tunes": [tune], "stage": Stage.EVALUATING, **fields}))
    return await stored(api, job)


async def test_told_again_the_same_nothing_changes(api: Api):
    job = await an_awaiting_job(api)
    first, again = await tell(api, job), await tell(api, job)

    assert (again.status_code, again.json()["version"]) == (200, first.json()["version"])
    job = await taken(api, job)
    once_taken = await tell(api, job)
    assert (once_taken.status_code, once_taken.json()["version"]) == (200, job.version)


async def settle(api: Api, job: Job, index: int, outcome: Any) -> None:
    """One of the three prompts of the deployed student's pass is settled."""
    [plan] = [plan for plan in evaluation_plans(job) if plan.role == "student"]
    passes, pass_id = api.store.passes, PassId(job.id, plan.name)
    await passes.open(pass_id, prompts=3, chunk_size=10, smoke=0)
    await passes.claim_chunk(pass_id, "w", lease_seconds=60)
    await passes.tick(pass_id, job.tenant, "w", [], [Beginning(0, index, f"w.{index}", 0)])
    await passes.tick(pass_id, job.tenant, "w", [Settlement(0, index, f"w.{index}", b"x", 0, outcome)], [])


async def test_another_place_is_told_until_the_model_has_given_its_first_answer(api: Api):
    job = await an_awaiting_job(api)
    await tell(api, job, model="triage-tf")
    assert (await tell(api, job)).json()["students"][0]["endpoint"]["model"] == "triage-ft"
    job = await taken(api, job)
    assert (await tell(api, job, model="third")).json()["students"][0]["endpoint"]["model"] == "third"
    job = await taken(api, job)
    await settle(api, job, 0, "failed")
    assert (await tell(api, job, model="fourth")).status_code == 200  # a refusal is no answer

    await settle(api, await taken(api, job), 1, "accepted")
    too_late = await tell(api, job, model="fifth")
    assert (too_late.status_code, problem_of(too_late)["code"]) == (409, "student_not_awaiting")


async def test_a_place_where_no_such_model_was_found_is_told_again(api: Api):
    job = await an_awaiting_job(api)
    await tell(api, job)
    [tune] = (await taken(api, job)).fine_tunes
    given_back = replace(tune, step="awaiting", status="awaiting_deployment")
    await api.store.jobs.change(job, Change(set={"fine_tunes": [given_back], "stage": Stage.TRAINING}))
    assert (await api.http.get(f"/v1/jobs/{job.id}")).json()["students"][0]["endpoint"] is None

    assert (await tell(api, job)).json()["students"][0]["endpoint"]["model"] == "triage-ft"
    assert (await stored(api, job)).untaken_endpoint(0) is not None


async def test_of_two_who_tell_at_once_one_is_believed(api: Api):
    job = await an_awaiting_job(api)

    answers = await asyncio.gather(*(tell(api, job, model=f"m-{n}") for n in range(8)))

    kept = (await stored(api, job)).endpoints[0].model
    believed = [a.json()["students"][0]["endpoint"]["model"] for a in answers if a.status_code == 200]
    assert kept in believed
    assert {answer.status_code for answer in answers} <= {200, 409}


@pytest.mark.parametrize("step", ["new", "submitted", "ended"])
async def test_a_student_that_does_not_await_is_not_told(api: Api, step: Any):
    job = await an_awaiting_job(api, fine_tunes=[FineTune(step=step, status="succeeded")])

    answer = await tell(api, job)

    assert (answer.status_code, problem_of(answer)["code"]) == (409, "student_not_awaiting")


@pytest.mark.parametrize("status", [JobStatus.CANCELLING, JobStatus.FAILED])
async def test_a_job_that_ends_takes_no_endpoint(api: Api, status: JobStatus):
    job = await an_awaiting_job(api)
    await api.store.jobs.change(job, Change(status=status))

    assert (await tell(api, job)).status_code == 409


async def test_a_paused_job_keeps_the_endpoint_for_later(api: Api):
    job = await an_awaiting_job(api)
    await api.store.jobs.change(job, Change(status=JobStatus.PAUSED))

    assert (await tell(api, job)).status_code == 200
    assert 0 in (await stored(api, job)).endpoints


async def test_what_is_wrong_is_named_and_placed(api: Api):
    job = await an_awaiting_job(api)

    unknown = await tell(api, job, provider="opanai")
    assert (unknown.status_code, problem_of(unknown)["errors"][0]["pointer"]) == (422, "/provider")
    address = await tell(api, job, base_url="https://evil.example/v1")
    assert (address.status_code, problem_of(address)["errors"][0]["pointer"]) == (422, "/base_url")
    assert (await tell(api, job, model="")).status_code == 422
    assert (await tell(api, job, 7)).status_code == 404
    assert (await tell(api, job, 8)).status_code == 422
    assert (await tell(api, job, "x")).status_code == 422
    assert (await stored(api, job)).endpoints == {}


async def test_a_job_with_a_budget_can_be_told_of_priced_providers_alone(api: Api):
    job = await an_awaiting_job(api, limit_nano=10**10)

    unpriced = await tell(api, job, provider="closed")  # which answers, and trains nobody
    assert (unpriced.status_code, problem_of(unpriced)["code"]) == (422, "model_unpriced")
    assert (await tell(api, job, provider="open")).status_code == 200


@pytest.mark.parametrize("provider", ["openai", "open"])
async def test_another_tenants_model_is_nobodys_endpoint(api: Api, provider: str):
    """Nor is one of a provider at the same address, by whichever name a job has made it."""
    job = await an_awaiting_job(api)
    await api.redis.hset(keys.tuned_models(provider), "ft:gpt-4.1:acme::1", "acme")

    foreign = await tell(api, job, model="ft:gpt-4.1:acme::1")
    base = await tell(api, job, base_model="ft:gpt-4.1:acme::1")
    assert [(a.status_code, problem_of(a)["code"]) for a in (foreign, base)] == [(422, "model_unknown")] * 2
    assert (await stored(api, job)).endpoints == {}


async def test_a_key_that_is_held_to_other_providers_cannot_name_this_one(api: Api):
    job = await an_awaiting_job(api)
    body = {"tenant": "local", "scopes": ["jobs:write"], "providers": ["openai"]}
    made = (await api.http.post("/v1/api_keys", json=body)).json()
    api.http.headers["authorization"] = f"Bearer {made['key']}"

    assert problem_of(await tell(api, job, provider="open"))["code"] == "provider_not_allowed"
    assert (await tell(api, job, provider="openai")).status_code == 200


async def test_a_place_without_a_price_is_refused_where_the_day_has_a_limit():
    redis = FakeServer()
    settings = some_settings(daily_spend_max_usd="5")
    api = Api(settings, Store(redis, script_headers=False, day_limit=settings.day_limit_nano), redis)
    async with api.http:
        job = await an_awaiting_job(api)
        refused = problem_of(await tell(api, job, provider="closed"))
        assert (refused["status"], refused["code"], refused["param"]) == (422, "model_unpriced", "provider")
        assert (await tell(api, job)).status_code == 200  # a deployment's calls cost what the student's model does

"""Cancel, pause, resume and retry."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest
from api_kit import Api, FakeServer, answer_all, begin, loaded, problem_of, some_settings

from shared.ids import JobId
from shared.lifecycle import JobStatus, PausedReason
from shared.store import Store
from shared.store.jobs import Change, Refused

pytestmark = pytest.mark.anyio
HOOK = {"url": "https://ci.example.com/hooks", "events": ["job.cancelled", "job.paused"]}


async def test_a_queued_job_is_cancelled_at_once_and_its_owner_told(api: Api):
    job = await api.create(webhook=HOOK, metadata={"team": "a"})
    answer = await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    cancelled = answer.json()
    assert (answer.status_code, cancelled["status"], cancelled["version"]) == (200, "cancelled", 2)
    assert cancelled["finished_at"] is not None
    assert cancelled["expires_at"] == cancelled["finished_at"] + 30 * 86_400
    [delivery] = await api.store.deliveries.of_job(JobId(job["id"]))
    body = json.loads(delivery.body)
    assert (delivery.url, body["type"]) == (HOOK["url"], "job.cancelled")
    assert body["data"]["status"] == "cancelled"
    assert body["data"]["version"] == 2
    assert body["data"]["metadata"] == {"team": "a"}
    due = await api.store.sweep(grace_seconds=1, limit=10)
    assert due == [f"dlv:{delivery.id}"]


async def test_nobody_is_told_what_they_did_not_ask_for(api: Api):
    job = await api.create(webhook=HOOK | {"events": ["job.succeeded"]})
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert await api.store.deliveries.of_job(JobId(job["id"])) == []


async def test_a_running_job_is_cancelled_by_its_worker_and_asking_again_changes_nothing(api: Api):
    job = await begin(api, await api.create())
    api.bell.rung.clear()
    first = await api.http.post(f"/v1/jobs/{job.id}/cancel")
    again = await api.http.post(f"/v1/jobs/{job.id}/cancel")
    assert (first.status_code, first.json()["status"]) == (202, "cancelling")
    assert (again.status_code, again.json()["version"]) == (202, first.json()["version"])
    assert len(api.bell.rung) == 1
    assert f"job:{job.id}" in await api.store.sweep(grace_seconds=1, limit=10)
    await api.store.jobs.change(job, Change(status=JobStatus.CANCELLED))
    done = await api.http.post(f"/v1/jobs/{job.id}/cancel")
    assert (done.status_code, done.json()["status"]) == (200, "cancelled")


async def test_what_failed_before_a_cancel_takes_nothing_from_the_attempts_to_stop(api: Api):
    job = await begin(api, await api.create())
    await api.store.jobs.change(job, Change(set={"stage_attempts": 9}))
    await api.http.post(f"/v1/jobs/{job.id}/cancel")
    assert (await api.store.jobs.load(job.id)).stage_attempts == 0


@pytest.mark.parametrize("status", [JobStatus.SUCCEEDED, JobStatus.FAILED])
async def test_an_ended_job_cannot_be_cancelled(api: Api, status: JobStatus):
    job = await begin(api, await api.create())
    await api.store.jobs.change(job, Change(status=status))
    answer = await api.http.post(f"/v1/jobs/{job.id}/cancel")
    assert (answer.status_code, problem_of(answer)["code"]) == (409, "job_not_cancellable")


async def test_a_cancel_that_meets_a_moving_job_decides_again(api: Api, monkeypatch: pytest.MonkeyPatch):
    job = await api.create()
    change, met = api.store.jobs.change, []

    async def raced(*args, **kwargs):
        if not met:
            met.append(True)
            await change(await loaded(api, job), Change(status=JobStatus.RUNNING))
        return await change(*args, **kwargs)

    monkeypatch.setattr(api.store.jobs, "change", raced)
    answer = await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelling")


async def test_a_job_is_paused_and_resumed_with_a_larger_budget(api: Api):
    job = await begin(api, await api.create(budget={"max_cost_usd": "2"}, webhook=HOOK))
    paused = await api.http.post(f"/v1/jobs/{job.id}/pause")
    assert (paused.status_code, paused.json()["status"], paused.json()["paused_reason"]) == (200, "paused", "requested")
    assert (await api.http.post(f"/v1/jobs/{job.id}/pause")).json()["version"] == paused.json()["version"]
    assert len(await api.store.deliveries.of_job(job.id)) == 1
    budget = {"max_cost_usd": "2.5", "on_limit": "fail"}
    resumed = await api.http.post(f"/v1/jobs/{job.id}/resume", json={"budget": budget})
    assert (resumed.status_code, resumed.json()["status"], resumed.json()["paused_reason"]) == (200, "running", None)
    assert resumed.json()["budget"] == budget
    assert resumed.json()["cost"]["limit_usd"] == "2.5"
    assert (await loaded(api, {"id": job.id})).money.limit_nano == 2_500_000_000
    assert (await api.http.post(f"/v1/jobs/{job.id}/resume")).status_code == 200


async def test_a_budget_that_is_spent_already_resumes_nothing(api: Api):
    job = await begin(api, await api.create(budget={"max_cost_usd": "2"}))
    paused = Change(status=JobStatus.PAUSED, set={"paused_reason": PausedReason.BUDGET, "spent_nano": 900_000_000})
    await api.store.jobs.change(job, paused)
    answer = await api.http.post(f"/v1/jobs/{job.id}/resume", json={"budget": {"max_cost_usd": "0.9"}})
    assert (answer.status_code, problem_of(answer)["code"]) == (422, "cost_above_limit")
    assert (await loaded(api, {"id": job.id})).status is JobStatus.PAUSED


async def test_a_budget_into_which_the_next_step_does_not_fit_resumes_nothing_and_one_that_does_is_forgotten(api: Api):
    job = await begin(api, await api.create(budget={"max_cost_usd": "2"}))
    money = {"paused_reason": PausedReason.BUDGET, "spent_nano": 1_900_000_000, "needs_nano": 250_000_000}
    await api.store.jobs.change(job, Change(status=JobStatus.PAUSED, set=money))

    async def resume(dollars: str) -> httpx2.Response:
        return await api.http.post(f"/v1/jobs/{job.id}/resume", json={"budget": {"max_cost_usd": dollars}})

    refused = problem_of(await resume("2.149999999"))
    assert (refused["status"], refused["code"], refused["param"]) == (422, "cost_above_limit", "budget.max_cost_usd")
    assert "must be at least 2.15: 1.9 is used, and the next step may cost 0.25" in refused["detail"]
    assert (await loaded(api, {"id": job.id})).status is JobStatus.PAUSED
    assert (await resume("2.15")).status_code == 200

    await api.http.post(f"/v1/jobs/{job.id}/pause")
    assert (await resume("1.95")).status_code == 200, "what another pause needed does not hold for this one"


@pytest.mark.parametrize(
    ("reason", "reserved", "status"),
    [(PausedReason.BUDGET, 0, 422), (PausedReason.BUDGET, 1_000, 200), (PausedReason.REQUESTED, 0, 200)],
)
async def test_a_job_that_would_pause_for_its_budget_at_once_is_not_resumed_without_a_larger_one(
    api: Api, reason: PausedReason, reserved: int, status: int
):
    job = await begin(api, await api.create(budget={"max_cost_usd": "2"}))
    money = {"spent_nano": 1_900_000_000, "reserved_nano": reserved, "needs_nano": 250_000_000}
    await api.store.jobs.change(job, Change(status=JobStatus.PAUSED, set=money | {"paused_reason": reason}))

    answer = await api.http.post(f"/v1/jobs/{job.id}/resume")

    assert answer.status_code == status
    if status == 422:
        refused = problem_of(answer)
        assert (refused["code"], refused["param"]) == ("cost_above_limit", "budget.max_cost_usd")
        assert "must be at least 2.15" in refused["detail"]
        assert (await loaded(api, {"id": job.id})).status is JobStatus.PAUSED
        larger = {"budget": {"max_cost_usd": "2.15"}}
        assert (await api.http.post(f"/v1/jobs/{job.id}/resume", json=larger)).status_code == 200


async def test_only_what_fits_the_status_is_possible(api: Api):
    path = f"/v1/jobs/{(await api.create())['id']}"
    for verb, code in (("resume", "job_not_paused"), ("retry", "job_not_terminal")):
        answer = await api.http.post(f"{path}/{verb}")
        assert (answer.status_code, problem_of(answer)["code"]) == (409, code)
    await api.http.post(f"{path}/cancel")
    answer = await api.http.post(f"{path}/pause")
    assert (answer.status_code, problem_of(answer)["code"]) == (409, "job_not_running")


async def test_a_job_can_be_held_from_its_first_moment_and_begins_when_it_is_resumed(api: Api):
    job = await api.create(webhook=HOOK | {"events": ["job.running", "job.paused"]})
    path = f"/v1/jobs/{job['id']}"
    held = (await api.http.post(f"{path}/pause")).json()
    assert (held["status"], held["paused_reason"], held["stage"]) == ("paused", "requested", "generating")
    assert held["started_at"] is None
    assert (await api.http.post(f"{path}/pause")).json() == held

    begun = (await api.http.post(f"{path}/resume")).json()
    assert (begun["status"], begun["paused_reason"], begun["stage"]) == ("running", None, "generating")
    assert begun["started_at"] >= job["created_at"]
    told = [delivery.event_type for delivery in await api.store.deliveries.of_job(JobId(job["id"]))]
    assert sorted(told) == ["job.paused", "job.running"]
    await api.http.post(f"{path}/pause")
    again = (await api.http.post(f"{path}/resume")).json()
    assert again["started_at"] == begun["started_at"]


async def test_a_job_that_waits_for_another_day_is_held_by_its_owner_and_goes_on_no_more_by_itself(api: Api):
    job = await begin(api, await api.create())
    of_the_day = {"paused_reason": PausedReason.DAILY_SPEND, "needs_nano": 250_000_000}
    await api.store.jobs.change(job, Change(status=JobStatus.PAUSED, set=of_the_day))
    goes_on = Change(
        status=JobStatus.RUNNING, set={"paused_reason": None}, only_with={"paused_reason": PausedReason.DAILY_SPEND}
    )

    held = (await api.http.post(f"/v1/jobs/{job.id}/pause")).json()

    assert (held["status"], held["paused_reason"]) == ("paused", "requested")
    assert f"job:{job.id}" in await api.store.sweep(grace_seconds=1, limit=10), "what trains is to be paused, too"
    refused = await api.store.jobs.change(job, goes_on)
    assert refused == Refused(JobStatus.PAUSED, stale=False), "a worker that saw it before the owner did"
    assert (await api.http.post(f"/v1/jobs/{job.id}/pause")).json() == held


async def test_no_more_jobs_are_resumed_than_may_be_active():
    redis = FakeServer()
    api = Api(some_settings(active_jobs_max=2), Store(redis, script_headers=False), redis)
    jobs = []
    for _ in range(3):
        jobs.append(await api.create())
        await api.http.post(f"/v1/jobs/{jobs[-1]['id']}/pause")

    resumed = [await api.http.post(f"/v1/jobs/{job['id']}/resume") for job in jobs]

    assert [answer.status_code for answer in resumed] == [200, 200, 429]
    assert problem_of(resumed[2])["code"] == "too_many_active_jobs"
    assert (await loaded(api, jobs[2])).status is JobStatus.PAUSED
    await api.http.post(f"/v1/jobs/{jobs[0]['id']}/cancel")
    assert (await loaded(api, jobs[0])).status is JobStatus.CANCELLING
    assert (await api.http.post(f"/v1/jobs/{jobs[2]['id']}/resume")).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"), [(b"", 200), (b"{}", 200), (b'{"budget": null}', 200), (b"[", 400), (b'{"bugdet": 1}', 422)]
)
async def test_the_body_of_resume_may_be_missing_but_not_wrong(api: Api, body: bytes, status: int):
    job = await begin(api, await api.create())
    await api.http.post(f"/v1/jobs/{job.id}/pause")
    headers = {"Content-Type": "application/json"} if body else {}
    assert (await api.http.post(f"/v1/jobs/{job.id}/resume", content=body, headers=headers)).status_code == status


async def test_a_retry_is_a_new_job_that_asks_the_same_and_leaves_the_old_one_alone(api: Api):
    job = await begin(api, await api.create(system_prompt="You triage."))
    await answer_all(api, job)
    await api.store.jobs.change(job, Change(status=JobStatus.FAILED))
    answer = await api.http.post(f"/v1/jobs/{job.id}/retry", json={"budget": {"max_cost_usd": "3"}})
    new = answer.json()
    assert answer.status_code == 202
    assert new["id"] != job.id
    assert (new["retry_of"], new["status"], new["cost"]["limit_usd"]) == (job.id, "queued", "3")
    assert new["system_prompt"] == "You triage."
    prompts = await api.store.content.prompt_chunk(JobId(new["id"]), "source", 0)
    assert prompts == await api.store.content.prompt_chunk(job.id, "source", 0)
    assert [message["role"] for message in prompts[2].messages] == ["system", "user"]
    assert (await api.http.get(f"/v1/jobs/{job.id}")).json()["status"] == "failed"


async def test_jobs_that_ring_all_at_once_share_a_bell_and_none_is_forgotten(api: Api):
    jobs = api.app.state.services.jobs
    for n in range(1_000):
        jobs.ring(JobId(f"job_{n}"))
    await asyncio.sleep(0)
    at_once = len(api.bell.rung)
    assert 1 <= at_once <= 20
    async with asyncio.timeout(10):
        while len(api.bell.rung) == at_once:
            await asyncio.sleep(0.01)

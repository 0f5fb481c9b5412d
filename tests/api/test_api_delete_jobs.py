"""Deleting a job: unseen at once, purged to the last word, and a receipt for it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from accounts import Account
from api_kit import Api, a_request, answer_all, begin, curate, loaded, problem_of

from shared.ids import DeliveryId, JobId, TenantId
from shared.lifecycle import JobStatus
from shared.models import FineTune, Prompt
from shared.notices import deliveries_for
from shared.plan import teacher_plan
from shared.pricing import Prices
from shared.queue import CLEAN_UP_JOB, PURGE_JOB
from shared.store import keys
from shared.store.jobs import Change
from shared.store.passes import PassId
from shared.webhook_records import DeliveryAttempt
from worker.cleaner import Cleaner, CleaningLimits
from worker.completions import Scribe
from worker.janitor import Janitor

pytestmark = pytest.mark.anyio
CANARY = "canary-7c1f"
DAY_MS = 86_400_000


def an_account() -> Account:
    """What the provider keeps of the job below, and one thing of another."""
    account = Account()
    account.files = {"file-1": "distill-x-0-train.jsonl", "file-2": "distill-job_other-0-train.jsonl"}
    account.models = {"ft:x"}
    return account


async def clean_up(api: Api, job_id: str, account: Account | None = None) -> None:
    await Cleaner(api.store, account or an_account(), CleaningLimits(lag_seconds=0)).clean(JobId(job_id))


def a_janitor(api: Api, *, now_ms: int | None = None) -> Janitor:
    clock = {} if now_ms is None else {"clock": lambda: now_ms / 1000}
    return Janitor(api.store, Prices(None), api.settings.providers, secret=api.settings.secret, **clock)


async def an_ended_job(api: Api, *events: str, **changes: Any) -> str:
    """A whole one, with canaries wherever a caller can put words."""
    request = a_request(
        name=CANARY,
        system_prompt=CANARY,
        metadata={"team": CANARY, CANARY: "x"},
        source={"type": "inline", "prompts": [f"{CANARY} {n}" for n in range(20)]},
        webhook={"url": f"https://example.com/{CANARY}", "events": ["job.succeeded", *events]},
        **changes,
    )
    created = await api.http.post("/v1/jobs", json=request, headers={"Idempotency-Key": CANARY})
    assert created.status_code == 202, created.text
    job = await begin(api, created.json())
    await answer_all(api, job)
    await curate(api, job)
    scribe = Scribe(job, teacher_plan(job), Prices(None), "openai", secret=api.settings.secret)
    for index, prompt in enumerate(await api.store.content.prompt_chunk(job.id, "source", 0)):
        entry = keys.ledger(job.tenant, scribe.fingerprint(prompt))
        owner = "job_of_another" if index == 0 else job.id
        await api.redis.set(entry, f"paid|{owner}|teacher|0|{index}")
    job = await loaded(api, {"id": job.id})
    tune = FineTune(step="ended", training_file="file-1", fine_tuning_job_id="ftjob-1", fine_tuned_model="ft:x")
    end = Change(
        status=JobStatus.SUCCEEDED,
        set={"expires_at_ms": job.created_at_ms + 30 * DAY_MS, "fine_tunes": [tune]},
        results={"words": CANARY},
        deliveries=deliveries_for(job, "job.succeeded", job.version + 1),
        due_in_seconds=-1.0,
    )
    await api.store.jobs.change(job, end)
    return job.id


async def dump(api: Api) -> bytes:
    """Everything in the database, names included, with what is compressed as it is."""
    read = {
        b"string": api.redis.get,
        b"hash": api.redis.hgetall,
        b"zset": lambda name: api.redis.zrange(name, 0, -1, withscores=True),
        b"set": api.redis.smembers,
        b"stream": api.redis.xrange,
    }
    parts = [(name, await read[await api.redis.type(name)](name)) for name in sorted(await api.keys())]
    return repr(parts).encode()


async def test_deleting_purges_everything_and_the_receipt_says_what(api: Api):
    job_id = await an_ended_job(api)
    path = f"/v1/jobs/{job_id}"
    accepted = await api.http.delete(path)
    assert (accepted.status_code, accepted.json()["status"], accepted.json()["purged"]) == (202, "purging", None)
    for request in ("", "/events", "/results", "/completions", "/dataset"):
        gone = await api.http.get(path + request)
        assert (gone.status_code, problem_of(gone)["code"]) == (410, "job_deleted")
    assert {(PURGE_JOB, job_id), (CLEAN_UP_JOB, job_id)} <= set(api.bell.rung)
    assert (await api.http.get(path, headers={"If-None-Match": "*"})).status_code == 410
    assert (await api.http.post(f"{path}/retry")).status_code == 410
    assert (await api.http.get("/v1/jobs", params={"metadata[team]": CANARY})).json()["data"] == []
    assert (await api.http.delete(path)).status_code == 202

    await a_janitor(api).purge(JobId(job_id))

    receipt = await api.http.delete(path)
    assert (receipt.status_code, receipt.json()["status"]) == (202, "cleaning")
    assert receipt.json()["purged_at"] is None
    assert receipt.json()["content_purged_at"] >= receipt.json()["deleted_at"]
    removed = {"prompts": 20, "completions": 20, "events": 1, "webhook_deliveries": 1}
    left = {
        "files": ["file-1"],
        "fine_tuning_jobs": ["ftjob-1"],
        "fine_tuned_models": ["ft:x"],
        "stored_completions": False,
        "unlisted_files": True,
        "unlisted_models": True,
    }
    nothing = {"files": 0, "stored_completions": 0, "fine_tuned_models": 0}
    assert receipt.json()["purged"] == {**removed, "deleted_at_provider": nothing, "left_at_provider": left}
    assert CANARY.encode() not in await dump(api)

    account = an_account()
    await clean_up(api, job_id, account)

    assert set(account.files) == {"file-2"}
    receipt = await api.http.delete(path)
    assert (receipt.status_code, receipt.json()["status"]) == (200, "purged")
    assert receipt.json()["purged_at"] >= receipt.json()["content_purged_at"]
    assert receipt.json()["purged"] == {
        **removed,
        "deleted_at_provider": {**nothing, "files": 1},
        "left_at_provider": {**left, "files": [], "unlisted_files": False, "unlisted_models": False},
    }
    kept = await dump(api)
    assert CANARY.encode() not in kept
    named = [key for key in await api.keys() if job_id.encode() in key]
    assert sorted(named) == sorted(key(JobId(job_id)).encode() for key in (keys.job, keys.cleanup))
    assert await api.redis.zrange(keys.DUE, 0, -1) == []
    assert 0 < await api.redis.ttl(keys.job(JobId(job_id))) <= 30 * 86_400
    [foreign] = await api.redis.keys("*:ledger:*")
    assert (await api.redis.get(foreign)).startswith(b"paid|job_of_another|")
    assert (await api.http.get(path)).status_code == 410


async def test_a_late_repetition_does_not_make_the_deleted_job_again(api: Api):
    job_id = await an_ended_job(api)
    await api.http.delete(f"/v1/jobs/{job_id}")
    request = a_request(
        name=CANARY,
        system_prompt=CANARY,
        metadata={"team": CANARY, CANARY: "x"},
        source={"type": "inline", "prompts": [f"{CANARY} {n}" for n in range(20)]},
        webhook={"url": f"https://example.com/{CANARY}", "events": ["job.succeeded"]},
    )
    again = await api.http.post("/v1/jobs", json=request, headers={"Idempotency-Key": CANARY})
    assert (again.status_code, problem_of(again)["code"]) == (410, "job_deleted")
    assert (await api.http.get("/v1/jobs")).json()["data"] == []


async def test_a_job_that_has_not_ended_stays(api: Api):
    job = await api.create()
    for _ in range(2):
        answer = await api.http.delete(f"/v1/jobs/{job['id']}")
        assert (answer.status_code, problem_of(answer)["code"]) == (409, "job_not_terminal")
        await begin(api, job)
    assert (await api.http.get(f"/v1/jobs/{job['id']}")).json()["status"] == "running"


async def test_a_job_goes_when_its_retention_ends_and_not_before(api: Api):
    job_id = JobId(await an_ended_job(api))
    job = await loaded(api, {"id": job_id})
    assert job.expires_at_ms is not None
    assert await api.redis.zscore(keys.DUE, f"exp:{job_id}") == job.expires_at_ms
    await a_janitor(api, now_ms=job.expires_at_ms - 1).purge(job_id)
    assert (await api.http.get(f"/v1/jobs/{job_id}")).status_code == 200
    await a_janitor(api, now_ms=job.expires_at_ms).purge(job_id)
    assert (await api.http.get(f"/v1/jobs/{job_id}")).status_code == 410
    assert await api.redis.zscore(keys.DUE, f"exp:{job_id}") is None
    assert CANARY.encode() not in await dump(api)


async def test_a_purge_that_breaks_off_is_begun_anew_and_one_too_many_does_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
):
    job_id = JobId(await an_ended_job(api))
    await api.http.delete(f"/v1/jobs/{job_id}")

    async def broken(*_: Any) -> None:
        raise RuntimeError

    with monkeypatch.context() as broken_off:
        broken_off.setattr(api.store.purging, "bury", broken)
        with pytest.raises(RuntimeError):
            await a_janitor(api).purge(job_id)
    assert await api.redis.zscore(keys.DUE, f"exp:{job_id}") is not None
    assert (await api.http.delete(f"/v1/jobs/{job_id}")).status_code == 202
    for _ in range(2):
        await a_janitor(api).purge(job_id)
    assert (await api.http.delete(f"/v1/jobs/{job_id}")).json()["purged"]["completions"] == 20  # also those gone before
    await clean_up(api, job_id)
    assert (await api.http.delete(f"/v1/jobs/{job_id}")).status_code == 200
    assert CANARY.encode() not in await dump(api)


async def test_an_answer_that_comes_after_the_end_is_not_kept(api: Api):
    job_id = JobId(await an_ended_job(api))
    job = await loaded(api, {"id": job_id})
    await api.http.delete(f"/v1/jobs/{job_id}")
    await a_janitor(api).purge(job_id)
    scribe = Scribe(job, teacher_plan(job), Prices(None), "openai", secret=api.settings.secret)
    had = Prompt(messages=[{"role": "user", "content": "x"}], completion={"role": "assistant", "content": CANARY})
    late = scribe.supplied(0, 0, had)
    await api.store.passes.tick(PassId(job_id, "teacher"), job.tenant, "token", [late], [])
    assert await api.redis.keys(f"d:{{{job_id}}}:pass:teacher:c:*") == []


async def test_while_one_worker_purges_the_others_leave_it_alone(api: Api):
    job_id = JobId(await an_ended_job(api))
    await api.http.delete(f"/v1/jobs/{job_id}")
    assert await api.store.purging.begin(job_id, lease_seconds=30)
    await a_janitor(api).purge(job_id)
    assert (await api.http.delete(f"/v1/jobs/{job_id}")).json()["status"] == "purging"
    await api.store.purging.end(job_id)
    await a_janitor(api).purge(job_id)
    assert (await api.http.delete(f"/v1/jobs/{job_id}")).json()["status"] == "cleaning"
    left = {keys.job(job_id).encode(), keys.cleanup(job_id).encode()}
    assert set(await api.redis.keys(f"d:{{{job_id}}}:*")) == left


async def test_models_are_deleted_on_request_alone_which_can_come_later(api: Api):
    job_id = await an_ended_job(api)
    path, account = f"/v1/jobs/{job_id}", an_account()
    await api.http.delete(path)
    await a_janitor(api).purge(JobId(job_id))
    await clean_up(api, job_id, account)
    assert (await api.http.delete(path)).json()["purged"]["left_at_provider"]["fine_tuned_models"] == ["ft:x"]
    asked = await api.http.delete(path, params={"delete_models": "true"})
    assert (asked.status_code, asked.json()["status"]) == (202, "cleaning")
    await clean_up(api, job_id, account)
    receipt = (await api.http.delete(path, params={"delete_models": "true"})).json()
    assert receipt["status"] == "purged"
    assert receipt["purged"]["deleted_at_provider"]["fine_tuned_models"] == 1
    assert receipt["purged"]["left_at_provider"]["fine_tuned_models"] == []
    assert account.models == set()


async def test_a_job_that_made_nothing_at_a_provider_needs_no_clean_up(api: Api):
    job = await api.create()
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    await api.http.delete(f"/v1/jobs/{job['id']}")
    await a_janitor(api).purge(JobId(job["id"]))
    receipt = await api.http.delete(f"/v1/jobs/{job['id']}")
    assert (receipt.status_code, receipt.json()["status"]) == (200, "purged")
    assert 0 < await api.redis.ttl(keys.cleanup(JobId(job["id"]))) <= 30 * 86_400


async def test_who_asked_is_told_of_the_deletion_without_content_and_the_purge_does_not_stop_it(api: Api):
    endpoint = await api.http.post(
        "/v1/webhook_endpoints", json={"url": "https://hooks.example/a", "events": ["job.deleted"]}
    )
    other = await api.http.post(
        "/v1/webhook_endpoints", json={"url": "https://hooks.example/b", "events": ["job.failed"]}
    )
    assert (endpoint.status_code, other.status_code) == (201, 201)
    job_id = await an_ended_job(api, "job.deleted")
    for _ in range(2):
        await api.http.delete(f"/v1/jobs/{job_id}")
    await a_janitor(api).purge(JobId(job_id))

    due = [member.decode()[4:] for member in await api.redis.zrange(keys.DUE, 0, -1) if member.startswith(b"dlv:")]
    told = [await api.store.deliveries.get(TenantId("local"), DeliveryId(delivery)) for delivery in due]
    assert sorted(delivery.url for delivery in told) == [f"https://example.com/{CANARY}", "https://hooks.example/a"]
    assert len({delivery.event_id for delivery in told}) == 1
    for delivery in told:
        data = msgspec.json.decode(delivery.body)["data"]
        assert (data["id"], data["status"], data["metadata"]) == (job_id, "succeeded", {})
        assert CANARY not in delivery.body
        await api.store.deliveries.settle(msgspec.structs.replace(delivery, status="delivered"),
                                          next_attempt_in_seconds=None)  # fmt: skip
    log = await api.http.get(f"/v1/webhook_endpoints/{endpoint.json()['id']}/deliveries")
    assert [delivery["event_type"] for delivery in log.json()["data"]] == ["job.deleted"]
    assert CANARY.encode() not in await dump(api)  # the job's own address is content, too


async def test_a_receiver_that_said_it_is_gone_is_not_told_of_the_deletion_either(api: Api):
    job_id = JobId(await an_ended_job(api, "job.deleted"))
    [delivery] = await api.store.deliveries.of_job(job_id)
    gone = [DeliveryAttempt(at_ms=1, duration_ms=1, status=410)]
    await api.store.deliveries.settle(
        msgspec.structs.replace(delivery, status="failed", attempts=gone), next_attempt_in_seconds=None
    )
    await api.http.delete(f"/v1/jobs/{job_id}")
    assert [m for m in await api.redis.zrange(keys.DUE, 0, -1) if m.startswith(b"dlv:")] == []

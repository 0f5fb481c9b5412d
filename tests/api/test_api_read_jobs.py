"""Looking at jobs: the job itself, lists, events, completions, the dataset, the verdict."""

from __future__ import annotations

import base64
import gc
import hashlib
import json
import tracemalloc
from typing import Any

import msgspec
import pytest
from api_kit import Api, answer_all, begin, curate, loaded, problem_of

from shared.completions import Decision
from shared.ids import new_event_id
from shared.lifecycle import JobStatus
from shared.models import Event
from shared.store import keys
from shared.store.content import pack_completion
from shared.store.jobs import TEACHER, Change

pytestmark = pytest.mark.anyio


async def every_page(api: Api, path: str, **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        page = (await api.http.get(path, params=query)).json()
        found += page["data"]
        if not page["has_more"]:
            return found
        query["after"] = page["last_id"]


# --- the job ---------------------------------------------------------------------------------------------------------


async def test_a_job_that_has_not_changed_is_304(api: Api):
    path = f"/v1/jobs/{(await api.create())['id']}"
    etag = (await api.http.get(path)).headers["etag"]
    assert etag == 'W/"1"'
    for sent in (etag, etag.removeprefix("W/"), f'"x", {etag}', "*"):
        answer = await api.http.get(path, headers={"If-None-Match": sent})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    await api.http.post(f"{path}/cancel")
    changed = await api.http.get(path, headers={"If-None-Match": etag})
    assert (changed.status_code, changed.headers["etag"]) == (200, 'W/"2"')


async def test_every_key_is_always_there(api: Api):
    before = await api.create()
    job = await begin(api, before)
    after = (await api.http.get(f"/v1/jobs/{job.id}")).json()
    assert set(after) == set(before)
    assert after["status"] == "running"
    assert after["stage"] == "generating"


# --- lists -----------------------------------------------------------------------------------------------------------


async def test_jobs_are_paged_in_either_order(api: Api):
    made = [(await api.create())["id"] for _ in range(5)]
    oldest_first = [job["id"] for job in await every_page(api, "/v1/jobs", limit=2, order="asc")]
    newest_first = [job["id"] for job in await every_page(api, "/v1/jobs", limit=2)]
    assert sorted(oldest_first) == sorted(made)
    assert newest_first == oldest_first[::-1]
    page = (await api.http.get("/v1/jobs?limit=2")).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    assert (page["first_id"], page["last_id"]) == (newest_first[0], newest_first[1])


async def test_jobs_are_filtered_by_status(api: Api):
    kept, stopped = await api.create(), await api.create()
    await api.http.post(f"/v1/jobs/{stopped['id']}/cancel")
    for status, job in (("queued", kept), ("cancelled", stopped)):
        assert [found["id"] for found in await every_page(api, "/v1/jobs", status=status)] == [job["id"]]
    assert (await api.http.get("/v1/jobs?status=failed")).json() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


async def test_jobs_are_filtered_by_metadata_with_every_other_filter(api: Api):
    made = {}
    for n in range(6):
        pairs = {"team": "a" if n % 2 else "b", "env": "prod" if n < 3 else "test", "odd [name] ü": "x=1&y"}
        made[n] = (await api.create(metadata=pairs))["id"]
    await api.http.post(f"/v1/jobs/{made[1]}/cancel")

    async def found(**query: Any) -> list[int]:
        numbers = {job_id: n for n, job_id in made.items()}
        return sorted(numbers[job["id"]] for job in await every_page(api, "/v1/jobs", limit=1, **query))

    assert await found(**{"metadata[team]": "a"}) == [1, 3, 5]
    assert await found(**{"metadata[team]": "a", "metadata[env]": "prod"}) == [1]
    assert await found(**{"metadata[team]": "a", "order": "asc", "status": "queued"}) == [3, 5]
    assert await found(**{"metadata[odd [name] ü]": "x=1&y"}) == list(range(6))
    assert await found(**{"metadata[team]": "c"}) == []
    assert await found(**{"metadata[team]": "a", "metadata[env]": "nowhere", "status": "queued"}) == []
    for query in ({"metadata": "a"}, {"metadata[": "a"}, {f"metadata[{'k' * 65}]": "a"}, {"metadatum[a]": "b"}):
        assert (await api.http.get("/v1/jobs", params=query)).status_code == 422
    twice = await api.http.get("/v1/jobs?metadata[team]=a&metadata[team]=b")
    assert problem_of(twice)["errors"][0]["code"] == "duplicate"
    many = {f"metadata[{n}]": "a" for n in range(17)}
    assert (await api.http.get("/v1/jobs", params=many)).status_code == 422


async def test_what_jobs_are_filtered_by_is_not_kept(api: Api):
    await api.http.get("/v1/jobs", params={"metadata[team]": "a"})
    tracemalloc.start()
    try:
        for n in range(64):
            answer = await api.http.get("/v1/jobs", params={"metadata[team]": f"{n:02}" + "x" * 50_000})
            assert answer.json()["data"] == []
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000


async def test_jobs_are_filtered_by_the_second_they_were_created_in(api: Api):
    jobs = api.app.state.services.jobs
    made = {}
    for second in (1_000, 2_000, 3_000):
        jobs._clock = lambda at=second: at + 0.999
        made[(await api.create(metadata={"at": "x"}))["id"]] = second

    async def found(**query: Any) -> list[int]:
        return [made[job["id"]] for job in await every_page(api, "/v1/jobs", limit=1, **query)]

    for order, all_of_them in (("asc", [1_000, 2_000, 3_000]), ("desc", [3_000, 2_000, 1_000])):
        for filters in ({}, {"metadata[at]": "x"}):
            more = {"order": order, **filters}
            assert await found(created_after=999, **more) == all_of_them
            assert await found(created_after=1_000, **more) == [s for s in all_of_them if s > 1_000]
            assert await found(created_before=3_000, **more) == [s for s in all_of_them if s < 3_000]
            assert await found(created_after=1_000, created_before=3_000, **more) == [2_000]
            assert await found(created_after=2_000, created_before=2_000, **more) == []
    assert (await api.http.get("/v1/jobs?created_after=yesterday")).status_code == 422


# --- events ----------------------------------------------------------------------------------------------------------


async def test_events_are_newest_first_and_paged_by_their_ids(api: Api):
    job = await loaded(api, await api.create())
    for n in range(4):
        event = Event(id=new_event_id(), level="info", type="message", message=f"Note {n}", created_at_ms=1_000 * n)
        await api.store.jobs.change(job, Change(events=[event]))
    path = f"/v1/jobs/{job.id}/events"
    assert [event["sequence"] for event in await every_page(api, path, limit=2)] == [5, 4, 3, 2, 1]
    rising = await every_page(api, path, limit=2, order="asc")
    assert [event["sequence"] for event in rising] == [1, 2, 3, 4, 5]
    assert rising[0]["data"] == {"status": "queued"}
    other = await api.create()
    for cursor in ("evt_1", (await every_page(api, f"/v1/jobs/{other['id']}/events"))[0]["id"]):
        answer = await api.http.get(path, params={"after": cursor})
        assert (answer.status_code, problem_of(answer)["code"]) == (400, "invalid_cursor")


# --- completions -----------------------------------------------------------------------------------------------------


async def test_completions_are_shown_whole_and_found_by_id(api: Api):
    job = await begin(api, await api.create(metadata={"team": "a"}))
    await answer_all(api, job)
    path = f"/v1/jobs/{job.id}/completions"
    found = await every_page(api, path, limit=7)
    assert [completion["prompt_index"] for completion in found] == list(range(20))
    assert [completion["status"] for completion in found[:3]] == ["rejected", "failed", "accepted"]
    third = found[2]
    assert third["output"]["content"] == "Answer 2"
    assert third["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "total_tokens": 15,
        "cached_tokens": 0,
        "reasoning_tokens": 0,
    }
    assert (third["cost_usd"], third["latency_seconds"]) == ("0.00007", 1.5)
    assert (third["provider_completion_id"], third["metadata"]) == ("chatcmpl-2", {"team": "a"})
    assert found[1]["output"] is None
    assert found[1]["error"]["code"] == "provider_rejected"
    assert (await api.http.get(f"{path}/{third['id']}")).json() == third
    other = await api.create()
    for missing in (f"/v1/jobs/{other['id']}/completions/{third['id']}", f"{path}/cmp_nothing"):
        assert (await api.http.get(missing)).status_code == 404
    assert (await api.http.get(path, params={"after": "cmp_nothing"})).status_code == 400


async def test_completions_are_filtered_also_across_pages(api: Api):
    job = await begin(api, await api.create())
    await answer_all(api, job)
    path = f"/v1/jobs/{job.id}/completions"
    assert len(await every_page(api, path, status="accepted", limit=5)) == 18
    assert [found["reason"] for found in await every_page(api, path, reason="refused")] == ["refused"]
    assert await every_page(api, path, role="student") == []
    await curate(api, job)
    splits = [len(await every_page(api, path, split=split)) for split in ("train", "validation", "holdout")]
    assert sum(splits) == 20
    assert all(splits)


@pytest.mark.parametrize("curated", [False, True])
async def test_a_reason_that_a_newer_worker_has_written_is_shown_as_it_is(api: Api, curated: bool):
    job = await begin(api, await api.create())
    await answer_all(api, job)
    kept = await api.store.content.completion(job.id, TEACHER, 0, 2)
    assert kept is not None
    if curated:
        decision = Decision(status="rejected", split="train", reason="too_new")
        await api.store.content.put_decisions(job.id, 0, [decision] * 20)
    else:
        blob = pack_completion(msgspec.structs.replace(kept, reason="too_new"))
        await api.redis.hset(keys.completions(job.id, TEACHER, 0), "2", blob)
    path = f"/v1/jobs/{job.id}/completions"

    listed, one = (await every_page(api, path))[2], await api.http.get(f"{path}/{kept.id}")

    assert (listed["status"], listed["reason"]) == ("rejected", "too_new")
    assert (one.status_code, one.json()) == (200, listed)


# --- the dataset and the verdict -------------------------------------------------------------------------------------


async def test_the_dataset_is_not_there_before_curating(api: Api):
    job = await begin(api, await api.create())
    for what in ("dataset", "results"):
        answer = await api.http.get(f"/v1/jobs/{job.id}/{what}")
        assert (answer.status_code, problem_of(answer)["code"]) == (409, "job_not_finished")
        assert answer.headers["retry-after"]


async def test_the_dataset_is_streamed_with_its_identity(api: Api):
    job = await begin(api, await api.create())
    await answer_all(api, job)
    manifest = await curate(api, job)
    path = f"/v1/jobs/{job.id}/dataset"
    answer = await api.http.get(path)
    digest = hashlib.sha256(answer.content)
    assert answer.headers["content-type"] == "application/jsonl"
    assert f'filename="{job.id}-train.jsonl"' in answer.headers["content-disposition"]
    assert digest.hexdigest() == manifest.sha256
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert int(answer.headers["x-line-count"]) == len(answer.text.splitlines()) == manifest.train
    assert all(set(json.loads(line)) == {"messages"} for line in answer.text.splitlines())
    etag = answer.headers["etag"]
    assert (await api.http.get(path, headers={"If-None-Match": etag})).status_code == 304
    holdout = await api.http.get(path, params={"split": "holdout"})
    assert hashlib.sha256(holdout.content).hexdigest() == manifest.holdout_sha256
    assert holdout.headers["etag"] != etag
    raw = [
        json.loads(line)
        for split in ("train", "validation", "holdout")
        for line in (await api.http.get(path, params={"split": split, "format": "raw"})).text.splitlines()
    ]
    assert len(raw) == 20
    assert sorted({line["status"] for line in raw}) == ["accepted", "failed", "rejected"]


async def test_what_a_cancelled_job_has_paid_for_can_be_exported(api: Api):
    job = await begin(api, await api.create())
    await answer_all(api, job)
    await api.http.post(f"/v1/jobs/{job.id}/cancel")
    await api.store.jobs.change(await loaded(api, {"id": job.id}), Change(status=JobStatus.CANCELLED))
    answer = await api.http.get(f"/v1/jobs/{job.id}/dataset")
    assert answer.status_code == 200
    assert len(answer.text.splitlines()) >= 5
    assert "x-line-count" not in answer.headers


async def test_the_verdict_is_shown_once_it_is_there(api: Api):
    job = await begin(api, await api.create())
    verdict = {"object": "distillation.result", "rows": []}
    await api.store.jobs.change(job, Change(status=JobStatus.SUCCEEDED, results=verdict))
    assert (await api.http.get(f"/v1/jobs/{job.id}/results")).json() == verdict
    shown = (await api.http.get(f"/v1/jobs/{job.id}")).json()
    assert shown["results"]["url"] == f"/v1/jobs/{job.id}/results"


# --- the service -----------------------------------------------------------------------------------------------------


async def test_readiness_asks_for_a_worker_and_durable_settings(api: Api, monkeypatch: pytest.MonkeyPatch):
    answer = await api.http.get("/readyz")
    assert (answer.status_code, problem_of(answer)["checks"]["workers"]) == (503, 0)
    await api.store.announce_worker("w1", {}, for_seconds=5)
    answer = await api.http.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ready")

    async def forgetful() -> dict[str, str]:
        return {"appendonly": "no", "appendfsync": "always", "maxmemory-policy": "noeviction"}

    monkeypatch.setattr(api.store, "durability", forgetful)
    answer = await api.http.get("/readyz")
    assert answer.status_code == 503
    assert "appendonly" in problem_of(answer)["detail"]


async def test_event_types_are_listed_with_examples(api: Api):
    found = (await api.http.get("/v1/webhook_event_types")).json()["data"]
    assert {"job.succeeded", "job.failed", "job.paused"} <= {kind["id"] for kind in found}
    assert all(kind["example"]["type"] == kind["id"] for kind in found)


async def test_the_openapi_document_is_whole_and_no_page_loads_scripts(api: Api):
    document = (await api.http.get("/openapi.json")).json()
    text = json.dumps(document)
    referred = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert referred <= set(document["components"]["schemas"])
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/JobCreate"}
    assert document["components"]["schemas"]["JobCreate"]["examples"]
    required = document["components"]["schemas"]["JobOut"]["required"]
    assert set(required) == set(document["components"]["schemas"]["JobOut"]["properties"])
    for path in ("/docs", "/redoc"):
        assert (await api.http.get(path)).status_code == 404

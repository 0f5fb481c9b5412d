"""Waiting for a job without asking again and again: `Prefer: wait`, and its events as a stream."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
from api_kit import Api, FakeServer, a_request, begin, loaded, problem_of, some_settings

from shared.ids import new_event_id
from shared.lifecycle import JobStatus
from shared.models import Event
from shared.store import Store, keys
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
STREAM = {"Accept": "text/event-stream"}


async def later(seconds: float, what: Callable[[], Awaitable[Any]]) -> None:
    await asyncio.sleep(seconds)
    await what()


async def cancel(api: Api, job: dict[str, Any]) -> None:
    assert (await api.http.post(f"/v1/jobs/{job['id']}/cancel")).status_code == 200


def a_note(text: str) -> Change:
    return Change(events=[Event(id=new_event_id(), level="info", type="message", message=text, created_at_ms=1_000)])


@pytest.fixture
async def narrow() -> AsyncIterator[Api]:
    """An API with room for one who waits and one stream, and a short silence."""
    redis = FakeServer()
    settings = some_settings(waits_max=1, streams_per_tenant_max=1, stream_keepalive_seconds=0.1)
    made = Api(settings, Store(redis, script_headers=False), redis)
    async with made.http:
        yield made
    await redis.aclose()


# --- Prefer: wait ----------------------------------------------------------------------------------------------------


async def test_an_answer_is_held_until_the_job_has_ended(api: Api):
    job = await api.create()
    started = time.monotonic()
    ending = asyncio.create_task(later(0.2, lambda: cancel(api, job)))
    answer = await api.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "respond-async, wait=30"})
    await ending
    assert 0.2 <= time.monotonic() - started < 3
    assert (answer.json()["status"], answer.headers["preference-applied"]) == ("cancelled", "wait=30")
    assert (await api.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": "wait=30"})).json()["status"] == "cancelled"


async def test_a_job_of_a_newer_version_keeps_nobody_from_the_end_of_another(api: Api):
    strange, job = await api.create(), await api.create()
    waits = [
        asyncio.create_task(api.http.get(f"/v1/jobs/{one['id']}", headers={"Prefer": f"wait={seconds}"}))
        for one, seconds in ((strange, 2), (job, 30))
    ]
    await asyncio.sleep(0.1)
    await api.redis.hset(keys.job(strange["id"]), "status", "archived")
    await asyncio.sleep(0.6)
    started = time.monotonic()
    await cancel(api, job)
    assert (await waits[1]).json()["status"] == "cancelled"
    assert time.monotonic() - started < 3
    assert problem_of(await waits[0])["code"] == "newer_version"


async def test_a_new_job_is_waited_for_too_and_so_is_a_repeated_request_for_it(api: Api):
    async def end_it() -> None:
        while not (jobs := (await api.http.get("/v1/jobs")).json()["data"]):
            await asyncio.sleep(0.02)
        await cancel(api, jobs[0])

    headers = {"Prefer": "wait=30", "Idempotency-Key": "k"}
    ending = asyncio.create_task(end_it())
    answer = await api.http.post("/v1/jobs", json=a_request(), headers=headers)
    await ending
    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert answer.headers["preference-applied"] == "wait=30"
    assert answer.headers["etag"] == 'W/"2"'
    again = await api.http.post("/v1/jobs", json=a_request(), headers=headers)
    assert (again.json()["status"], again.headers["idempotent-replayed"]) == ("cancelled", "true")


async def test_the_wait_ends_with_its_time_and_a_304_may_follow(api: Api):
    job = await api.create()
    path = f"/v1/jobs/{job['id']}"
    answer = await api.http.get(path, headers={"Prefer": "wait=1", "If-None-Match": 'W/"1"'})
    assert (answer.status_code, answer.headers["preference-applied"]) == (304, "wait=1")


@pytest.mark.parametrize(
    ("sent", "applied"),
    [
        ("wait=99999", "wait=60"),
        ('wait="5"; x=1', "wait=5"),
        ("wait=" + "9" * 5_000, "wait=60"),
        ("wait=007", "wait=7"),
        ("wait=-1", None),
        ("wait", None),
    ],
)
async def test_a_wait_is_at_most_a_minute_and_an_odd_one_is_ignored(api: Api, sent: str, applied: str | None):
    job = await api.create()
    await cancel(api, job)
    answer = await api.http.get(f"/v1/jobs/{job['id']}", headers={"Prefer": sent})
    assert answer.headers.get("preference-applied") == applied


async def test_beyond_the_cap_nobody_is_held(narrow: Api):
    job = await narrow.create()
    path = f"/v1/jobs/{job['id']}"
    held = asyncio.create_task(narrow.http.get(path, headers={"Prefer": "wait=30"}))
    await asyncio.sleep(0.1)
    at_once = await narrow.http.get(path, headers={"Prefer": "wait=30"})
    assert "preference-applied" not in at_once.headers
    await cancel(narrow, job)
    assert (await held).headers["preference-applied"] == "wait=30"


async def test_a_thousand_waits_cost_the_store_one_look_at_a_time(api: Api, monkeypatch: pytest.MonkeyPatch):
    looks = 0
    glances = api.store.jobs.glances

    async def counted(job_ids: Any) -> Any:
        nonlocal looks
        looks += 1
        assert len(job_ids) == 1
        return await glances(job_ids)

    monkeypatch.setattr(api.store.jobs, "glances", counted)
    job = await api.create()
    watcher = api.app.state.services.watcher

    async def never() -> bool:
        return False

    waits = [watcher.until_ended(job["id"], seconds=1, abandoned=never) for _ in range(1_000)]
    await asyncio.gather(*waits)
    assert 3 <= looks <= 12  # 50 ms apart at first, then ever less often


# --- streams ---------------------------------------------------------------------------------------------------------


def events_in(text: str) -> list[tuple[int, str, dict[str, Any]]]:
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in block.splitlines() if line[:1] not in {":", ""})
        if "data" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found


async def test_a_stream_tells_all_that_happened_and_will_happen_and_ends_with_the_job(api: Api):
    job = await begin(api, await api.create())
    for n in range(250):
        await api.store.jobs.change(job, a_note(f"Note {n}"))

    async def go_on() -> None:
        await api.store.jobs.change(job, a_note("Almost there"))
        await asyncio.sleep(0.2)
        done = Event(id=new_event_id(), level="info", type="status", message="Done", created_at_ms=2_000)
        await api.store.jobs.change(
            await loaded(api, {"id": job.id}), Change(status=JobStatus.SUCCEEDED, events=[done])
        )

    path = f"/v1/jobs/{job.id}/events"
    going_on = asyncio.create_task(later(0.2, go_on))
    answer = await api.http.get(path, headers=STREAM)
    await going_on
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    told = events_in(answer.text)
    assert [sequence for sequence, _, _ in told] == list(range(1, 254))
    assert [event["message"] for _, _, event in told[-2:]] == ["Almost there", "Done"]
    assert [kind for _, kind, _ in told[-2:]] == ["message", "status"]
    listed = (await api.http.get(path, params={"limit": 1})).json()["data"][0]
    assert told[-1][2] == listed


async def test_a_stream_resumes_after_the_last_id_seen_and_204_says_that_there_is_no_more(api: Api):
    job = await begin(api, await api.create())
    for n in range(3):
        await api.store.jobs.change(job, a_note(f"Note {n}"))
    await api.store.jobs.change(job, Change(status=JobStatus.FAILED))
    path = f"/v1/jobs/{job.id}/events"
    resumed = await api.http.get(path, headers=STREAM | {"Last-Event-ID": "2"})
    assert [sequence for sequence, _, _ in events_in(resumed.text)] == [3, 4]
    over = await api.http.get(path, headers=STREAM | {"Last-Event-ID": "4"})
    assert (over.status_code, over.content) == (204, b"")
    cursor = (await api.http.get(path, params={"order": "asc", "limit": 1})).json()["last_id"]
    by_id = await api.http.get(path, params={"after": cursor}, headers=STREAM)
    assert [sequence for sequence, _, _ in events_in(by_id.text)] == [2, 3, 4]
    for sent in ("x", "-1", "", "9" * 20):
        answer = await api.http.get(path, headers=STREAM | {"Last-Event-ID": sent})
        assert (answer.status_code, problem_of(answer)["code"]) == (400, "invalid_cursor")


async def test_a_silent_stream_says_that_it_lives_and_each_tenant_has_so_many(narrow: Api):
    job = await narrow.create()
    path = f"/v1/jobs/{job['id']}/events"
    first = asyncio.create_task(narrow.http.get(path, headers=STREAM))
    await asyncio.sleep(0.35)
    refused = await narrow.http.get(path, headers=STREAM)
    assert (refused.status_code, problem_of(refused)["code"]) == (429, "rate_limited")
    assert (await narrow.http.get(path)).status_code == 200  # the list is no stream
    await cancel(narrow, job)
    assert (await first).text.count(": still here") >= 2
    assert (await narrow.http.get(path, headers=STREAM)).status_code == 200  # its place is free again


async def test_so_does_one_of_a_job_that_changes_all_the_time_and_has_nothing_to_tell(narrow: Api):
    job = await narrow.create()
    stream = asyncio.create_task(narrow.http.get(f"/v1/jobs/{job['id']}/events", headers=STREAM))
    row = await loaded(narrow, job)
    for _ in range(20):
        await asyncio.sleep(0.05)
        await narrow.store.jobs.change(row, Change())
    await cancel(narrow, job)

    assert (await stream).text.count(": still here") >= 3


async def test_followers_of_one_job_share_what_is_read_for_them(api: Api, monkeypatch: pytest.MonkeyPatch):
    job = await begin(api, await api.create())
    reads = 0
    events = api.store.jobs.events

    async def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal reads
        reads += 1
        return await events(*args, **kwargs)

    monkeypatch.setattr(api.store.jobs, "events", counted)
    path = f"/v1/jobs/{job.id}/events"
    streams = [asyncio.create_task(api.http.get(path, headers=STREAM)) for _ in range(50)]
    await asyncio.sleep(0.3)
    done = Event(id=new_event_id(), level="info", type="status", message="Done", created_at_ms=2_000)
    await api.store.jobs.change(job, Change(status=JobStatus.SUCCEEDED, events=[done]))
    told = [events_in((await stream).text) for stream in streams]
    assert {len(events) for events in told} == {2}
    assert reads < 50, "one by one they would read a hundred times"


async def test_a_process_that_ends_lets_go_of_all_who_wait(api: Api):
    job = await api.create()
    path = f"/v1/jobs/{job['id']}"
    held = asyncio.create_task(api.http.get(path, headers={"Prefer": "wait=60"}))
    stream = asyncio.create_task(api.http.get(f"{path}/events", headers=STREAM))
    await asyncio.sleep(0.2)
    api.app.state.services.watcher.drain()
    assert (await held).json()["status"] == "queued"
    assert len(events_in((await stream).text)) == 1


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("text/event-stream", True),
        ("application/json, text/event-stream;q=0.9", True),
        ("text/event-stream; q=0", False),
        ("*/*", False),
        ("application/json", False),
    ],
)
async def test_only_who_names_the_stream_gets_it(api: Api, accept: str, streamed: bool):
    job = await api.create()
    await cancel(api, job)
    answer: httpx2.Response = await api.http.get(f"/v1/jobs/{job['id']}/events", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("text/event-stream") is streamed

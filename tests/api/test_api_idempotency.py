"""A request that is repeated under its idempotency key is carried out once."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import Any

import pytest
import redis.asyncio as redis
from api_kit import Api, a_request, begin, problem_of, some_settings

from api.app import create_app
from shared.lifecycle import JobStatus
from shared.store import Store
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio


async def post(api: Api, key: str, path: str = "/v1/jobs", **changes: Any) -> Any:
    return await api.http.post(path, json=a_request(**changes), headers={"Idempotency-Key": key})


async def jobs_of(api: Api) -> list[str]:
    return [job["id"] for job in (await api.http.get("/v1/jobs?limit=100")).json()["data"]]


async def test_a_repetition_is_answered_byte_by_byte_as_before_and_makes_no_second_job(api: Api):
    first = await post(api, "order-1")
    await begin(api, first.json())  # the job has moved on meanwhile
    again = await post(api, '"order-1"')
    assert (again.status_code, again.content) == (202, first.content)
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["location"] == first.headers["location"]
    assert again.headers["etag"] == first.headers["etag"]
    assert await jobs_of(api) == [first.json()["id"]]


async def test_the_order_of_members_and_spelled_out_defaults_make_no_other_request(api: Api):
    first = await post(api, "k")
    request = a_request(store=False, metadata={}, name=None)
    turned = dict(reversed(request.items()))
    again = await api.http.post("/v1/jobs", json=turned, headers={"Idempotency-Key": "k"})
    assert again.json()["id"] == first.json()["id"]


async def test_another_body_under_the_same_key_is_refused(api: Api):
    await post(api, "k")
    answer = await post(api, "k", name="another")
    assert (answer.status_code, problem_of(answer)["code"]) == (422, "idempotency_key_reused")
    assert len(await jobs_of(api)) == 1


async def test_a_key_counts_per_route_and_the_retry_of_a_job_has_it_too(api: Api):
    job = (await post(api, "k")).json()
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    path = f"/v1/jobs/{job['id']}/retry"
    first, again = [await api.http.post(path, headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert first.json()["retry_of"] == job["id"]
    assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
    other = await api.http.post(path, headers={"Idempotency-Key": "k"}, json={"budget": {"max_cost_usd": "9"}})
    assert problem_of(other)["code"] == "idempotency_key_reused"
    assert len(await jobs_of(api)) == 2


async def test_a_refused_request_leaves_its_key_free(api: Api):
    refused = await post(api, "k", teacher={"provider": "nobody", "model": "m"})
    assert refused.status_code == 422
    assert (await post(api, "k")).status_code == 202


async def test_while_the_first_is_served_a_second_is_told_to_wait(api: Api, monkeypatch: pytest.MonkeyPatch):
    arrived, go_on = asyncio.Event(), asyncio.Event()
    require_room = api.store.require_room

    async def slow() -> None:
        arrived.set()
        await go_on.wait()
        await require_room()

    monkeypatch.setattr(api.store, "require_room", slow)
    first = asyncio.create_task(post(api, "k"))
    await arrived.wait()
    second = await post(api, "k")
    assert (second.status_code, problem_of(second)["code"]) == (409, "idempotency_in_progress")
    assert problem_of(second)["retryable"]
    assert second.headers["retry-after"]
    go_on.set()
    assert (await first).status_code == 202
    assert (await post(api, "k")).headers["idempotent-replayed"] == "true"


@pytest.mark.parametrize("key", ["", '""', "x" * 256, '"open', 'in"side', "\xe4", "\x01", '"a"; b=1'])
async def test_a_key_that_cannot_be_used_is_refused_before_anything_is_stored(api: Api, key: str):
    headers = [(b"idempotency-key", key.encode("latin-1"))]
    answer = await api.http.post("/v1/jobs", json=a_request(), headers=headers)
    assert (answer.status_code, problem_of(answer)["code"]) == (400, "invalid_idempotency_key")
    assert await api.keys() == []


@pytest.mark.parametrize(("sent", "same"), [("a b", '"a b"'), ("a\\b", '"a\\\\b"'), ("x" * 255, f'"{"x" * 255}"')])
async def test_bare_and_quoted_are_the_same_key(api: Api, sent: str, same: str):
    assert (await post(api, sent)).json()["id"] == (await post(api, same)).json()["id"]


async def test_validating_only_uses_no_key_up(api: Api):
    assert (await post(api, "k", "/v1/jobs?validate_only=true")).status_code == 200
    assert await api.keys() == []


async def test_the_record_lives_a_day_and_goes_with_nothing_else(api: Api):
    await post(api, "k")
    [record] = await api.redis.keys("*:once:*")
    assert 86_300 < await api.redis.ttl(record) <= 86_400


async def test_twenty_at_once_make_one_job(valkey_client: redis.Redis):
    api = Api(some_settings(), Store(valkey_client), valkey_client)
    async with api.http:
        answers = await asyncio.gather(*(post(api, "rush") for _ in range(20)))
        codes = Counter(answer.status_code for answer in answers)
        assert set(codes) <= {202, 409}
        assert codes[202] >= 1
        [job] = await jobs_of(api)
        assert {answer.json()["id"] for answer in answers if answer.status_code == 202} == {job}
        assert sum("idempotent-replayed" not in answer.headers for answer in answers if answer.status_code == 202) == 1
        assert {problem_of(answer)["code"] for answer in answers if answer.status_code == 409} <= {
            "idempotency_in_progress"
        }
        assert (await post(api, "rush")).json()["id"] == job


async def test_even_without_the_place_the_first_to_be_written_wins(valkey_client: redis.Redis):
    """The place is a courtesy: it may expire under a slow request, and still there is one job."""
    api = Api(some_settings(), Store(valkey_client), valkey_client)
    async with api.http:
        slow, go_on = asyncio.Event(), asyncio.Event()
        accept = api.store.jobs.accept

        async def held_up(*args: Any, **kwargs: Any) -> None:
            if not slow.is_set():
                slow.set()
                await go_on.wait()
            await accept(*args, **kwargs)

        api.store.jobs.accept = held_up  # type: ignore[method-assign]
        first = asyncio.create_task(post(api, "k"))
        await slow.wait()
        [record] = await valkey_client.keys("*:once:*")
        await valkey_client.delete(record)  # as if its time were up
        second = await post(api, "k")
        go_on.set()
        assert (second.status_code, (await first).status_code) == (202, 409)
        assert await jobs_of(api) == [second.json()["id"]]


async def test_an_ended_job_keeps_its_first_answer(api: Api):
    first = await post(api, "k")
    job = await begin(api, first.json())
    await api.store.jobs.change(job, Change(status=JobStatus.SUCCEEDED))
    assert (await post(api, "k")).content == first.content


#: POSTs that may be repeated as they are: the second finds done what it asks for.
HARMLESS_TWICE = {
    "/v1/jobs/{job_id}/cancel",
    "/v1/jobs/{job_id}/pause",
    "/v1/jobs/{job_id}/resume",
    "/v1/jobs/{job_id}/students/{number}/endpoint",
    "/v1/provider_events/{provider}",
}

PATHS = create_app(some_settings()).openapi()["paths"]


@pytest.mark.parametrize("path", [path for path, operations in PATHS.items() if "post" in operations])
async def test_a_key_is_honoured_or_refused_and_never_ignored(api: Api, path: str):
    operation = PATHS[path]["post"]
    if any(parameter["name"] == "Idempotency-Key" for parameter in operation.get("parameters", ())):
        assert path in {"/v1/jobs", "/v1/jobs/{job_id}/retry"}  # the tests above are about these
        return
    if path in HARMLESS_TWICE:
        return
    filled = re.sub(r"{\w+}", "x", path)
    refused = problem_of(await api.http.post(filled, json={}, headers={"Idempotency-Key": "k"}))
    assert (refused["status"], refused["code"]) == (400, "idempotency_key_unsupported")
    assert "400" in operation["responses"]
    assert await api.keys() == []

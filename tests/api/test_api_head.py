"""HEAD answers what GET would, without the body (RFC 9110, 9.3.2), wherever there is GET."""

from __future__ import annotations

from typing import Any

import pytest
from api_kit import Api, FakeServer, answer_all, begin, curate, problem_of, some_settings

from shared.store import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def job_path(api: Api) -> str:
    job = await begin(api, await api.create())
    await answer_all(api, job)
    await curate(api, job)
    return f"/v1/jobs/{job.id}"


def _told(headers: Any) -> dict[str, str]:
    """What must agree.  The count of requests goes on with every request."""
    return {name: value for name, value in headers.items() if name not in {"ratelimit", "x-request-id"}}


@pytest.mark.parametrize(
    "path",
    [
        "/healthz",
        "/readyz",
        "/problems/not_found",
        "/openapi.json",
        "/v1/jobs",
        "JOB",
        "JOB/events",
        "JOB/completions",
        "JOB/dataset",
        "JOB/results",
        "/v1/jobs/job_none",
        "/nowhere",
    ],
)
async def test_the_head_is_that_of_get(api: Api, job_path: str, path: str):
    path = path.replace("JOB", job_path)
    whole, head = await api.http.get(path), await api.http.head(path)
    assert head.status_code == whole.status_code
    assert _told(head.headers) == _told(whole.headers)
    assert "x-request-id" in head.headers
    assert head.content == b""


async def test_the_head_of_a_stream_waits_for_nothing_and_keeps_no_place():
    redis = FakeServer()
    api = Api(some_settings(streams_max=1), Store(redis, script_headers=False), redis)
    async with api.http:
        path = f"/v1/jobs/{(await api.create())['id']}/events"
        for _ in range(3):
            head = await api.http.head(path, headers={"Accept": "text/event-stream"}, timeout=5)
            assert (head.status_code, head.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    await redis.aclose()


async def test_a_head_is_answered_304(api: Api, job_path: str):
    etag = (await api.http.head(job_path)).headers["etag"]
    assert (await api.http.head(job_path, headers={"If-None-Match": etag})).status_code == 304


async def test_where_there_is_no_get_there_is_no_head(api: Api, job_path: str):
    head = await api.http.head(f"{job_path}/cancel")
    assert (head.status_code, head.headers["allow"]) == (405, "POST")
    assert problem_of(await api.http.get(f"{job_path}/cancel"))["code"] == "method_not_allowed"

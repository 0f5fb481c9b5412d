"""OpenAI's own SDK as the client of our lists: it pages them, and its exceptions carry what our errors say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx2
import openai
import pytest
from api_kit import ADMIN_KEY, Api, Bridge, a_request, answer_all, begin, curate
from openai.pagination import AsyncCursorPage, SyncCursorPage

from shared.ids import new_event_id
from shared.models import Event
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio

LISTS = ("/jobs", "/jobs/{job}/events", "/jobs/{job}/completions", "/files")


class Listed(openai.BaseModel):
    id: str


@pytest.fixture
async def sdk(api: Api) -> AsyncIterator[openai.AsyncOpenAI]:
    http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=api.app))
    async with openai.AsyncOpenAI(
        api_key=ADMIN_KEY, base_url="http://test/v1", http_client=http, max_retries=0
    ) as client:
        yield client


@pytest.fixture
async def job_id(api: Api) -> str:
    """A curated job with twenty completions and five events, beside four others and five files."""
    for _ in range(4):
        await api.create()
    job = await begin(api, await api.create())
    for n in range(3):
        event = Event(id=new_event_id(), level="info", type="message", message=f"Note {n}", created_at_ms=1_000 * n)
        await api.store.jobs.change(job, Change(events=[event]))
    await answer_all(api, job)
    await curate(api, job)
    for n in range(5):
        prompts = "".join(f'"Ticket {n}.{line}"\n' for line in range(20))
        await api.http.post("/v1/files", files={"file": (f"tickets-{n}.jsonl", prompts)})
    return job.id


@pytest.mark.parametrize("path", LISTS)
async def test_it_pages_every_list_to_its_end(api: Api, sdk: openai.AsyncOpenAI, job_id: str, path: str):
    path = path.format(job=job_id)
    whole = [item["id"] for item in (await api.http.get(f"/v1{path}", params={"limit": 100})).json()["data"]]
    assert len(set(whole)) == len(whole) >= 4

    page = AsyncCursorPage[Listed]
    pages = sdk.get_api_list(path, model=Listed, page=page, options={"params": {"limit": 2}})
    assert [item.id async for item in pages] == whole

    one = await sdk.get(path, cast_to=page, options={"params": {"limit": 2}})
    assert [item.id for item in one.data] == whole[:2]
    assert one.has_next_page()

    bridge = Bridge(api)

    def without_a_loop() -> list[str]:
        http = openai.DefaultHttpx2Client(transport=bridge, base_url="http://test/v1")
        with openai.OpenAI(api_key=ADMIN_KEY, base_url="http://test/v1", http_client=http, max_retries=0) as client:
            pages = client.get_api_list(
                path, model=Listed, page=SyncCursorPage[Listed], options={"params": {"limit": 2}}
            )
            return [item.id for item in pages]

    assert await asyncio.to_thread(without_a_loop) == whole


@pytest.mark.parametrize(
    ("path", "query", "kind", "code", "param"),
    [
        ("/jobs/job_nobodys/events", {}, openai.NotFoundError, "not_found", None),
        ("/jobs/job_nobodys/completions", {}, openai.NotFoundError, "not_found", None),
        ("/files/pf_nobodys", {}, openai.NotFoundError, "not_found", None),
        ("/jobs/{job}/events", {"limit": 0}, openai.UnprocessableEntityError, "validation_failed", "limit"),
        ("/jobs/{job}/completions", {"reason": "dull"}, openai.UnprocessableEntityError, "validation_failed", "reason"),
        ("/files", {"limit": 101}, openai.UnprocessableEntityError, "validation_failed", "limit"),
        ("/jobs/{job}/events", {"after": "evt_1"}, openai.BadRequestError, "invalid_cursor", "after"),
        ("/jobs/{job}/completions", {"after": "cmpl_1"}, openai.BadRequestError, "invalid_cursor", "after"),
        ("/files", {"after": "file-1"}, openai.BadRequestError, "invalid_cursor", "after"),
    ],
)
async def test_its_exceptions_say_what_our_errors_say(
    sdk: openai.AsyncOpenAI,
    job_id: str,
    path: str,
    query: dict[str, object],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
):
    options = {"params": query}
    with pytest.raises(kind) as refused:
        await sdk.get(path.format(job=job_id), cast_to=AsyncCursorPage[Listed], options=options)
    error = refused.value
    assert (error.code, error.type, error.param) == (code, f"/problems/{code}", param)
    assert error.request_id == error.body["request_id"]
    assert str(error) == f"Error code: {error.status_code} - {error.body['detail']}"


async def test_a_refused_job_names_the_field(sdk: openai.AsyncOpenAI):
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        await sdk.post("/jobs", body=a_request(retention_days=0), cast_to=object)
    assert (refused.value.status_code, refused.value.code) == (422, "validation_failed")
    assert refused.value.body["errors"][0]["pointer"] == "/retention_days"

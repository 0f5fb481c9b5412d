"""Jobs made from what is there already: the prompts of an earlier job, or completions that a provider stores."""

from __future__ import annotations

from typing import Any

import pytest
from api_kit import NOT_STORED, Api, a_request, begin, loaded, problem_of
from builders import a_prompt, a_spec

from shared.ids import JobId, new_job_id
from shared.lifecycle import JobStatus
from shared.models import Job
from shared.pricing import Prices
from shared.prompts import defaults_of, joined, with_defaults
from shared.settings import ProviderSettings
from shared.store import keys
from shared.store.jobs import TEACHER, Change
from worker.janitor import Janitor

pytestmark = pytest.mark.anyio


def from_job(job: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return a_request(source={"type": "job", "job_id": job["id"]}, **changes)


async def a_job_from_a_file(api: Api, **changes: Any) -> dict[str, Any]:
    lines = b"".join(b'"Ticket %d: my invoice is wrong."\n' % n for n in range(250))
    file = (await api.http.post("/v1/files", content=lines, headers={"Content-Type": "application/jsonl"})).json()
    return await api.create(source={"type": "file", "file_id": file["id"]}, **changes)


async def prompts_of(api: Api, job: Job) -> list[Any]:
    chunks = range(await api.store.content.chunk_count(job.id, "source"))
    return [prompt for chunk in chunks for prompt in await api.store.content.prompt_chunk(job.id, "source", chunk)]


async def settled(api: Api, job: dict[str, Any], *, accepted: int) -> None:
    """As its pass over the prompts left it."""
    counts = {"settled": accepted, "accepted": accepted}
    await api.redis.hset(keys.pass_row(JobId(job["id"]), TEACHER), mapping=counts)


async def deleted(api: Api, job: dict[str, Any]) -> None:
    found = await begin(api, job)
    await api.store.jobs.change(found, Change(status=JobStatus.FAILED, due_in_seconds=-1.0))
    assert (await api.http.delete(f"/v1/jobs/{job['id']}")).status_code == 202


async def purged(api: Api, job: dict[str, Any]) -> None:
    await deleted(api, job)
    providers: dict[str, ProviderSettings] = api.settings.providers
    await Janitor(api.store, Prices(None), providers, secret=api.settings.secret).purge(JobId(job["id"]))
    assert (await api.http.delete(f"/v1/jobs/{job['id']}")).status_code == 200


@pytest.mark.parametrize("kind", ["inline", "file"])
async def test_a_system_prompt_that_no_prompt_takes_is_warned_of(api: Api, kind: str):
    make = a_job_from_a_file if kind == "file" else Api.create
    earlier = await make(api, system_prompt="Triage the ticket.")

    again = await api.http.post("/v1/jobs", json=from_job(earlier, system_prompt="Be brief."))

    assert "system_prompt_unused" in [advice["code"] for advice in again.json()["warnings"]]
    assert "system_prompt_unused" not in [advice["code"] for advice in earlier["warnings"]]


@pytest.mark.parametrize("kind", ["inline", "file"])
async def test_a_job_takes_the_prompts_of_an_earlier_one_as_they_were_asked(api: Api, kind: str):
    said = {"system_prompt": "Triage the ticket."}
    earlier = await (api.create(**said) if kind == "inline" else a_job_from_a_file(api, **said))
    answer = await api.http.post("/v1/jobs", json=from_job(earlier, system_prompt="Something else."))
    assert answer.status_code == 202, answer.text

    shown = answer.json()
    total = earlier["progress"]["prompts_total"]
    assert shown["source"] == {
        "type": "job",
        "file_id": None,
        "job_id": earlier["id"],
        **NOT_STORED,
        "prompts_total": total,
    }
    assert shown["progress"]["prompts_total"] == total
    new, old = await loaded(api, shown), await loaded(api, earlier)
    assert await prompts_of(api, new) == await prompts_of(api, old)


@pytest.mark.parametrize("kind", ["inline", "file"])
async def test_the_prompts_outlive_the_job_they_came_from(api: Api, kind: str):
    earlier = await (api.create() if kind == "inline" else a_job_from_a_file(api))
    if kind == "file":
        assert (await api.http.delete(f"/v1/files/{earlier['source']['file_id']}")).status_code == 200
    asked = await prompts_of(api, await loaded(api, earlier))
    second = await api.create(**from_job(earlier))

    await purged(api, earlier)
    assert await prompts_of(api, await loaded(api, second)) == asked
    third = await api.create(**from_job(second))
    await purged(api, second)
    assert await prompts_of(api, await loaded(api, third)) == asked

    await purged(api, third)
    assert not await api.redis.keys("*prompts*")


async def test_what_the_new_job_says_is_for_prompts_to_which_the_earlier_one_said_nothing(api: Api):
    earlier = await a_job_from_a_file(api)
    second = await loaded(api, await api.create(**from_job(earlier, system_prompt="You triage tickets.")))
    first = (await prompts_of(api, second))[0]
    assert first.messages[0] == {"role": "system", "content": "You triage tickets."}


async def test_defaults_joined_are_defaults_applied_in_turn():
    a, b = defaults_of(a_spec(system_prompt="A")), defaults_of(a_spec(system_prompt="B"))
    none = defaults_of(a_spec(system_prompt=None))
    for first, then in [(a, b), (none, b), (a, none), (none, none)]:
        prompt = a_prompt()
        assert with_defaults(prompt, joined(first, then)) == with_defaults(with_defaults(prompt, first), then)


@pytest.mark.parametrize("kind", ["inline", "file"])
async def test_what_is_paid_for_is_not_estimated_again(api: Api, kind: str):
    earlier = await (api.create() if kind == "inline" else a_job_from_a_file(api))
    await settled(api, earlier, accepted=earlier["progress"]["prompts_total"])

    async def estimated(**changes: Any) -> float:
        body = from_job(earlier, **changes)
        answer = await api.http.post("/v1/jobs", params={"validate_only": True}, json=body)
        assert answer.status_code == 200, answer.text
        return float(answer.json()["cost"]["high"])

    again = await estimated()
    assert again < float(earlier["cost"]["estimated_usd"]["high"])
    assert again < await estimated(system_prompt="Something that was not asked.")
    hotter = {"provider": "openai", "model": "gpt-6.1-sol", "params": {"temperature": 0.5}}
    assert again < await estimated(teacher=hotter)


@pytest.mark.parametrize("which", ["unknown", "foreign", "deleted", "no id"])
async def test_a_job_that_is_not_ones_own_is_not_found(api: Api, which: str):
    job = await api.create()
    if which == "foreign":
        await api.redis.hset(keys.job(JobId(job["id"])), "tenant", "somebody")
    elif which == "deleted":
        await deleted(api, job)
    else:
        job = {"id": new_job_id(1) if which == "unknown" else "my last one"}
    answer = await api.http.post("/v1/jobs", json=from_job(job))
    assert answer.status_code == 422
    problem = problem_of(answer)
    assert [(e["pointer"], e["code"]) for e in problem["errors"]] == [("/source/job_id", "not_found")]
    assert job["id"] not in answer.text


async def test_rules_that_the_earlier_prompts_break_point_to_the_source(api: Api):
    for earlier in (await api.create(), await a_job_from_a_file(api)):
        few = await api.http.post("/v1/jobs", json=from_job(earlier, curation={"min_accepted": 900}))
        assert problem_of(few)["code"] == "too_few_prompts"
        assert problem_of(few)["param"] == "source.job_id"


@pytest.mark.parametrize("kind", ["inline", "file"])
async def test_a_job_from_a_job_can_be_retried_when_the_first_is_gone(api: Api, kind: str):
    earlier = await (api.create() if kind == "inline" else a_job_from_a_file(api))
    second = await api.create(**from_job(earlier))
    await purged(api, earlier)
    assert (await api.http.post(f"/v1/jobs/{second['id']}/cancel")).status_code == 200
    third = await api.http.post(f"/v1/jobs/{second['id']}/retry")
    assert third.status_code == 202, third.text
    asked = await prompts_of(api, await loaded(api, second))
    assert await prompts_of(api, await loaded(api, third.json())) == asked


# --- stored completions ----------------------------------------------------------------------------------------------


def from_stored(**changes: Any) -> dict[str, Any]:
    source = {"type": "stored_completions", "provider": "openai", "metadata": {"team": "support"}}
    return a_request(source=source | changes)


async def test_a_job_from_stored_completions_is_taken_without_knowing_how_many(api: Api):
    answer = await api.http.post("/v1/jobs", json=from_stored())
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert job["source"] == {
        "type": "stored_completions",
        "file_id": None,
        "job_id": None,
        "provider": "openai",
        "model": "gpt-6.1-sol",
        "metadata": {"team": "support"},
        "prompts_total": 0,
    }
    assert job["cost"]["estimated_usd"] is None
    assert [warning["code"] for warning in job["warnings"]] == ["cost_incomplete"]
    other = (await api.http.post("/v1/jobs", json=from_stored(model="gpt-5.4"))).json()
    assert other["source"]["model"] == "gpt-5.4"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"provider": "nobody"}, "/source/provider"),
        ({"provider": "closed"}, "/source/provider"),
        ({"metadata": {}}, "/source/metadata"),
        ({"metadata": {"team": 1}}, "/source/metadata"),
    ],
)
async def test_a_place_without_stored_completions_is_refused(api: Api, changes: dict[str, Any], pointer: str):
    answer = await api.http.post("/v1/jobs", json=from_stored(**changes))
    assert (answer.status_code, [e["pointer"] for e in problem_of(answer)["errors"]]) == (422, [pointer])


async def test_a_job_still_reading_is_no_source_and_can_be_retried(api: Api):
    reading = (await api.http.post("/v1/jobs", json=from_stored())).json()
    early = await api.http.post("/v1/jobs", json=from_job(reading))
    assert [e["code"] for e in problem_of(early)["errors"]] == ["job_not_ready"]
    assert (await api.http.post(f"/v1/jobs/{reading['id']}/cancel")).status_code == 200
    again = await api.http.post(f"/v1/jobs/{reading['id']}/retry")
    assert (again.status_code, again.json()["source"]) == (202, reading["source"])

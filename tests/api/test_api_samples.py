"""Samples and scores over HTTP: what a request may ask for, and how the choice is told."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import msgspec
import pytest
from api_kit import Api, a_request, answer_all, begin, curate, loaded, problem_of

from shared.completions import StoredCompletion
from shared.curation import Curator, Sample
from shared.ids import completion_id
from shared.lifecycle import JobStatus
from shared.models import Job, Prompt
from shared.plan import teacher_plans
from shared.store import keys
from shared.store.content import pack_completion
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
JUDGE = {"type": "score_model", "provider": "openai", "model": "gpt-4.1"}
MATCH = {"type": "string_check"}
STUDENT = {"provider": "openai", "model": "gpt-4.1-mini-2025-04-14"}
DPO = {**STUDENT, "method": "dpo"}


def a_teacher(**changes: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "gpt-6.1-sol", "params": {}} | changes


def referenced(count: int) -> dict[str, Any]:
    messages = [[{"role": "user", "content": f"Ticket {n}: my invoice is wrong."}] for n in range(20)]
    return {
        "type": "inline",
        "prompts": [{"messages": each} | ({"reference": "x"} if n < count else {}) for n, each in enumerate(messages)],
    }


def changed(count: int, **changes: Any) -> dict[str, Any]:
    """Prompts of which the first so many are said differently."""
    source = referenced(0)
    source["prompts"] = [each | (changes if n < count else {}) for n, each in enumerate(source["prompts"])]
    return source


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "nine samples": ({"teacher": a_teacher(samples=9)}, "validation_failed", "/teacher/samples"),
    "samples in batches": ({"teacher": a_teacher(samples=2, mode="batch")}, "unsupported_param", "/teacher/mode"),
    "samples of what is stored": (
        {
            "teacher": a_teacher(samples=2),
            "source": {"type": "stored_completions", "provider": "openai", "metadata": {"a": "b"}},
        },
        "unsupported_param",
        "/teacher/samples",
    ),
    "a grader of no kind": ({"curation": {"grader": {"type": "vibes"}}}, "validation_failed", "/curation/grader/type"),
    "a judge asked as it refuses to be": (
        {"curation": {"grader": {**JUDGE, "model": "o3", "sampling_params": {"temperature": 0}}}},
        "unsupported_param",
        "/curation/grader/sampling_params/temperature",
    ),
    "a judge asked too warmly": (
        {"curation": {"grader": {**JUDGE, "sampling_params": {"temperature": 3}}}},
        "validation_failed",
        "/curation/grader/sampling_params/temperature",
    ),
    "a judge asked with what no judge takes": (
        {"evaluation": {"graders": [{**JUDGE, "sampling_params": {"stop": "x"}}]}},
        "validation_failed",
        "/evaluation/graders/0/sampling_params",
    ),
    "a judge of nobody": (
        {"curation": {"grader": {**JUDGE, "provider": "nobody"}}},
        "validation_failed",
        "/curation/grader/provider",
    ),
    "a judge without a price, on a budget": (
        {"curation": {"grader": {**JUDGE, "model": "mine"}}, "budget": {"max_cost_usd": "10"}},
        "model_unpriced",
        "/curation/grader/model",
    ),
    "a threshold of nothing": ({"curation": {"min_score": 0.5}}, "validation_failed", "/curation/min_score"),
    "a threshold above one": (
        {"curation": {"grader": MATCH, "min_score": 1.5}},
        "validation_failed",
        "/curation/min_score",
    ),
    "pairs without a choice": ({"students": [DPO]}, "validation_failed", "/students/0/method"),
    "pairs of two that agree equally": (
        {"students": [DPO], "teacher": a_teacher(samples=2)},
        "validation_failed",
        "/teacher/samples",
    ),
    "pairs of two that a grader of texts cannot tell apart": (
        {
            "students": [DPO],
            "teacher": a_teacher(samples=2),
            "curation": {"grader": MATCH, "min_accepted": 5},
            "source": referenced(19),
        },
        "validation_failed",
        "/teacher/samples",
    ),
    "pairs of prompts that are answered already": (
        {"students": [DPO], "teacher": a_teacher(samples=3), "source": changed(16, completion="Mine.")},
        "too_few_prompts",
        "/source/prompts",
    ),
    "pairs of conversations": (
        {
            "students": [DPO],
            "teacher": a_teacher(samples=3),
            "source": changed(
                16, messages=[{"role": role, "content": "Hm?"} for role in ("user", "assistant", "user")]
            ),
        },
        "too_few_prompts",
        "/source/prompts",
    ),
    "pairs where nobody trains on them": (
        {"students": [{**DPO, "provider": "open"}], "teacher": a_teacher(samples=3)},
        "unsupported_param",
        "/students/0/method",
    ),
    "a beta of no pairs": (
        {"students": [{**STUDENT, "hyperparameters": {"beta": 0.1}}]},
        "unsupported_param",
        "/students/0/hyperparameters/beta",
    ),
    "a beta too large": (
        {"students": [{**DPO, "hyperparameters": {"beta": 2.5}}], "teacher": a_teacher(samples=3)},
        "validation_failed",
        "/students/0/hyperparameters/beta",
    ),
    "a threshold where references are missing": (
        {"curation": {"grader": MATCH, "min_score": 0.5, "min_accepted": 5}, "source": referenced(19)},
        "validation_failed",
        "/curation/min_score",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_scored_or_sampled_is_refused_before_anything_is_spent(api: Api, name: str):
    changes, code, pointer = REFUSED[name]
    problem = problem_of(await api.http.post("/v1/jobs", json=a_request(**changes)))

    assert (problem["status"], problem["code"]) == (422, code), problem
    assert pointer in [fault["pointer"] for fault in problem["errors"]]


@pytest.mark.parametrize(
    "curation",
    [{"grader": MATCH, "min_score": 0.5}, {"grader": JUDGE, "min_score": 0.5}, {"grader": MATCH}, {"grader": JUDGE}],
)
async def test_a_grader_of_curating_comes_back_as_it_was_sent(api: Api, curation: dict[str, Any]):
    job = await api.create(curation={"min_accepted": 5, **curation}, source=referenced(20))
    assert {name: job["curation"][name] for name in curation} == curation


async def test_a_file_whose_prompts_lack_references_is_told_so_too(api: Api):
    lines = [{"messages": [{"role": "user", "content": f"Ticket {n} is late."}], "reference": "x"} for n in range(20)]
    del lines[3]["reference"]
    content = "\n".join(map(json.dumps, lines)).encode()
    file = (await api.http.post("/v1/files", files={"file": ("a.jsonl", content)})).json()
    source = {"type": "file", "file_id": file["id"]}

    request = a_request(source=source, curation={"min_accepted": 5, "grader": MATCH, "min_score": 0.5})
    problem = problem_of(await api.http.post("/v1/jobs", json=request))

    assert [(fault["pointer"], fault["code"]) for fault in problem["errors"]] == [
        ("/curation/min_score", "reference_missing")
    ]
    assert "1 of 20" in problem["errors"][0]["detail"]


@pytest.mark.parametrize(("conversations", "status"), [(15, 202), (16, 422)])
async def test_a_file_whose_prompts_are_conversations_is_refused_for_dpo_before_anything_is_bought(
    api: Api, conversations: int, status: int
):
    texts = [f"Ticket {n}: my invoice is wrong." for n in range(20)]
    roles = [("user", "assistant", "user") if n < conversations else ("system", "user") for n in range(20)]
    prompts = [[{"role": role, "content": text} for role in roles[n]] for n, text in enumerate(texts)]
    body = "".join(json.dumps({"messages": messages}) + "\n" for messages in prompts)
    file = (await api.http.post("/v1/files", content=body, headers={"Content-Type": "application/jsonl"})).json()
    source = {"type": "file", "file_id": file["id"]}

    answer = await api.http.post(
        "/v1/jobs", json=a_request(students=[DPO], teacher=a_teacher(samples=3), source=source)
    )

    assert answer.status_code == status, answer.text
    if status == 422:
        assert (problem_of(answer)["code"], problem_of(answer)["param"]) == ("too_few_prompts", "source.file_id")
        assert "have 4 of 20 that could give a pair for dpo" in answer.text


async def test_enough_prompts_that_may_give_a_pair_and_two_samples_that_are_scored_are_taken(api: Api):
    few = changed(10, completion="Mine.")
    assert (await api.create(students=[DPO], teacher=a_teacher(samples=3), source=few))["object"] == "distillation.job"
    scored = {"grader": MATCH, "min_accepted": 5}
    await api.create(students=[DPO], teacher=a_teacher(samples=2), curation=scored, source=referenced(20))


async def test_samples_that_will_be_alike_are_warned_of(api: Api):
    async def codes(**teacher: Any) -> list[str]:
        return [warning["code"] for warning in (await api.create(teacher=a_teacher(**teacher)))["warnings"]]

    assert "samples_alike" in await codes(samples=2, params={"temperature": 0})
    assert "samples_alike" not in await codes(samples=1, params={"temperature": 0})
    assert "samples_alike" not in await codes(samples=2, params={"temperature": 1})


async def test_samples_and_their_judge_are_part_of_the_estimate(api: Api):
    async def high(**changes: Any) -> float:
        answer = await api.http.post("/v1/jobs?validate_only=true", json=a_request(**changes))
        return float(answer.json()["cost"]["high"])

    plain = await high()
    sampled = await high(teacher=a_teacher(samples=3))
    rated = await high(teacher=a_teacher(samples=3), curation={"min_accepted": 5, "grader": JUDGE})
    assert plain < sampled < rated


async def _sampled(api: Api) -> Job:
    job = await begin(api, await api.create(teacher=a_teacher(samples=3)))
    for sample in range(3):
        await answer_all(api, job, sample=sample)
    curator, content = Curator(job.spec.curation, job.spec.split), api.store.content
    decisions = []
    names = [plan.name for plan in teacher_plans(job)]
    async for prompt, answers, _ in content.curated(job.id, names):
        decisions.append(curator.decide_all(prompt, [Sample.of(answer) for answer in answers]))
    for sample in range(3):
        await content.put_decisions(job.id, 0, [of_prompt[sample] for of_prompt in decisions], sample=sample)
    return await loaded(api, {"id": job.id})


async def _pages(api: Api, path: str, **params: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while True:
        after = {"after": found[-1]["id"]} if found else {}
        page = (await api.http.get(path, params={"limit": 7, **params, **after})).json()
        found += page["data"]
        if not page["has_more"]:
            return found


async def test_every_sample_is_listed_with_its_number_its_score_and_its_fate(api: Api):
    job = await _sampled(api)
    path = f"/v1/jobs/{job.id}/completions"

    shown = await _pages(api, path)

    assert [(each["sample"], each["prompt_index"]) for each in shown] == [(s, n) for s in range(3) for n in range(20)]
    assert len({each["id"] for each in shown}) == 60
    assert len([each for each in shown if each["status"] == "accepted"]) == 18
    rejected = await _pages(api, path, status="rejected", reason="not_best")
    assert len(rejected) == 36
    assert all(0 <= each["score"] <= 1 for each in rejected)
    for each in (shown[0], shown[25], rejected[-1]):
        assert (await api.http.get(f"{path}/{each['id']}")).json() == each


async def test_progress_counts_all_samples(api: Api):
    job = await api.create(teacher=a_teacher(samples=3))
    assert job["teacher"]["samples"] == 3
    assert (job["progress"]["prompts_total"], job["progress"]["completions_total"]) == (20, 60)
    assert (await api.create())["progress"]["completions_total"] == 20


async def test_a_job_that_ended_before_curating_is_exported_with_the_choice_made_on_the_way(api: Api):
    job = await begin(api, await api.create(teacher=a_teacher(samples=3)))
    await answer_all(api, job)
    await answer_all(api, job, sample=1)
    await api.store.jobs.change(await loaded(api, {"id": job.id}), Change(status=JobStatus.CANCELLING))
    await api.store.jobs.change(await loaded(api, {"id": job.id}), Change(status=JobStatus.CANCELLED))

    lines = [
        json.loads(line)
        for split in ("train", "validation", "holdout")
        for line in (await api.http.get(f"/v1/jobs/{job.id}/dataset", params={"split": split})).text.splitlines()
    ]
    assert len(lines) == 18


async def test_pairs_are_no_format_of_a_job_without_a_choice(api: Api):
    job = await begin(api, await api.create())
    answer = await api.http.get(f"/v1/jobs/{job.id}/dataset", params={"format": "openai_dpo"})
    refused = problem_of(answer)
    assert (answer.status_code, refused["param"], refused["errors"][0]["pointer"]) == (422, "format", None)
    assert refused["errors"][0]["detail"].startswith("format is openai_chat or raw")


async def test_a_prompt_with_an_answer_of_its_own_is_shown_once(api: Api):
    prompts = [f"Ticket {n}: my invoice is wrong." for n in range(19)]
    own = {"messages": [{"role": "user", "content": "Mine?"}], "completion": "Mine."}
    job = await begin(
        api, await api.create(teacher=a_teacher(samples=2), source={"type": "inline", "prompts": [*prompts, own]})
    )
    for sample in range(2):
        await answer_all(api, job, sample=sample)

    shown = await _pages(api, f"/v1/jobs/{job.id}/completions")

    assert [each["sample"] for each in shown if each["prompt_index"] == 19] == [0]


@pytest.mark.parametrize(("given", "kept"), [({}, "auto"), ({"beta": 2}, 2), ({"beta": "auto"}, "auto")])
async def test_a_student_of_pairs_has_a_beta_and_others_have_none(api: Api, given: dict[str, Any], kept: Any):
    job = await api.create(
        students=[{**DPO, "hyperparameters": given}, {**STUDENT, "suffix": "s"}], teacher=a_teacher(samples=3)
    )
    pairs, plain = job["students"]
    assert (pairs["method"], pairs["hyperparameters"]["beta"]) == ("dpo", kept)
    assert "beta" not in plain["hyperparameters"]


async def test_the_manifest_tells_where_a_dataset_comes_from(api: Api):
    job = await begin(api, await api.create())
    path = f"/v1/jobs/{job.id}/dataset/manifest"
    assert (await api.http.get(path)).status_code == 409
    await answer_all(api, job)
    kept = await curate(api, job)

    answer = await api.http.get(path)

    shown = answer.json()
    assert shown["source"]["type"] == "inline"
    assert shown["teacher"]["model"] == "gpt-6.1-sol"
    assert shown["split"] == {"validation": 0.1, "holdout": 0.2, "seed": 0}
    assert shown["counts"]["rejected"] == kept.rejected
    assert (shown["counts"]["prompts"], shown["counts"]["train"]) == (20, kept.train)
    train = next(file for file in shown["files"] if (file["split"], file["format"]) == ("train", "openai_chat"))
    content = (await api.http.get(train["url"])).content
    assert (train["sha256"], train["lines"]) == (hashlib.sha256(content).hexdigest(), content.count(b"\n"))
    assert (await api.http.get(path)).content == answer.content
    assert (await api.http.get(path, headers={"If-None-Match": answer.headers["etag"]})).status_code == 304


async def test_a_job_that_ended_without_a_dataset_has_no_manifest(api: Api):
    job = await begin(api, await api.create())
    await api.store.jobs.change(job, Change(status=JobStatus.FAILED))
    assert (await api.http.get(f"/v1/jobs/{job.id}/dataset/manifest")).status_code == 404


async def test_samples_that_an_earlier_job_has_paid_for_are_not_estimated_again(api: Api):
    earlier = await loaded(api, await api.create(teacher=a_teacher(samples=3)))
    for plan in teacher_plans(earlier):
        await api.redis.hset(keys.pass_row(earlier.id, plan.name), mapping={"settled": 20, "accepted": 20})

    async def high(samples: int) -> float:
        request = a_request(source={"type": "job", "job_id": earlier.id}, teacher=a_teacher(samples=samples))
        answer = await api.http.post("/v1/jobs?validate_only=true", json=request)
        return float(answer.json()["cost"]["high"])

    assert (await loaded(api, {"id": earlier.id})).counters.settled == 60
    assert await high(1) == await high(3) < await high(5) < await high(8)


async def test_a_judges_reply_is_shown_with_the_prompt_and_the_score_it_is_about(api: Api):
    grader = {**JUDGE, "name": "judge"}
    request = {"curation": {"min_accepted": 5, "grader": JUDGE}, "evaluation": {"graders": [grader]}}
    job = await loaded(api, await api.create(**request))
    for number, name in ((200, "rating"), (300, "judge-0")):
        asked = Prompt(messages=[{"role": "user", "content": "{}"}], key="t-3", origin=3, place=3)
        await api.store.content.put_prompt_chunk(job.id, name, 0, [asked])
        raw = {"choices": [{"message": {"role": "assistant", "content": '{"score": 0.25}'}}]}
        kept = StoredCompletion(
            id=completion_id(api.settings.secret, job.id, number, 0),
            index=0,
            model="gpt-4.1",
            status="answered",
            created_at_ms=1,
            raw=msgspec.Raw(msgspec.json.encode(raw)),
        )
        await api.redis.hset(keys.completions(job.id, name, 0), "0", pack_completion(kept))

    shown = await _pages(api, f"/v1/jobs/{job.id}/completions", role="judge")

    assert [(each["prompt_key"], each["prompt_index"], each["score"]) for each in shown] == [("t-3", 3, 0.25)] * 2
    assert [each["split"] for each in shown] == [None, "holdout"], "answers are rated before the holdout is set aside"
    assert [each["sample"] for each in shown] == [None, None]

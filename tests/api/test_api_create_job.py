"""POST /v1/jobs: what is accepted, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from api_kit import NOT_STORED, Api, FakeServer, a_request, begin, problem_of, some_settings

from shared.ids import JobId
from shared.queue import ADVANCE_JOB
from shared.store import Store

pytestmark = pytest.mark.anyio


def teacher(**changes: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "gpt-6.1-sol", "params": {}} | changes


def student(**changes: Any) -> dict[str, Any]:
    return {"provider": "openai", "model": "gpt-4.1-mini-2025-04-14"} | changes


def inline(*prompts: Any, and_more: int = 20) -> dict[str, Any]:
    return {"type": "inline", "prompts": [*prompts, *(f"Prompt number {n}" for n in range(and_more))]}


async def test_an_accepted_job_is_whole_durable_and_announced(api: Api):
    answer = await api.http.post("/v1/jobs", json=a_request(name="triage", metadata={"team": "a"}))
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (job["object"], job["status"], job["version"]) == ("distillation.job", "queued", 1)
    assert job["progress"]["prompts_total"] == 20
    assert job["metadata"] == {"team": "a"}
    assert job["students"][0]["hyperparameters"]["n_epochs"] == "auto"
    assert job["students"][0]["fine_tuned_model"] is None
    assert float(job["cost"]["estimated_usd"]["low"]) < float(job["cost"]["estimated_usd"]["high"])
    assert (await api.http.get(answer.headers["location"])).json() == job
    assert api.bell.rung == [(ADVANCE_JOB, job["id"])]
    assert await api.store.sweep(grace_seconds=1, limit=10) == [f"job:{job['id']}"]


async def test_a_prompt_is_stored_as_it_will_be_asked(api: Api):
    own = {"role": "system", "content": "Mine."}
    tool = {"type": "function", "function": {"name": "f"}}
    source = inline(
        "Hello",
        {"key": "t-2", "messages": [{"role": "user", "content": "Hi"}], "completion": "Hi there"},
        {"messages": [own, {"role": "user", "content": "Hey"}], "reference": "Yes", "tools": [tool]},
    )
    general = {"type": "function", "function": {"name": "general"}}
    job = await api.create(source=source, system_prompt="Ours.", teacher=teacher(params={"tools": [general]}))
    prompts = await api.store.content.prompt_chunk(JobId(job["id"]), "source", 0)
    ours = {"role": "system", "content": "Ours."}
    assert prompts[0].messages == [ours, {"role": "user", "content": "Hello"}]
    assert prompts[0].tools == [general]
    assert prompts[1].messages == [ours, {"role": "user", "content": "Hi"}]
    assert prompts[1].completion == {"role": "assistant", "content": "Hi there"}
    assert prompts[2].messages == [own, {"role": "user", "content": "Hey"}]
    assert (prompts[2].reference, prompts[2].tools) == ("Yes", [tool])
    assert job["teacher"]["params"] == {}


async def test_validating_only_shows_the_request_with_its_defaults_and_stores_nothing(api: Api):
    answer = await api.http.post("/v1/jobs?validate_only=true", json=a_request())
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "distillation.estimate"
    assert body["request"]["split"] == {"validation": 0.1, "holdout": 0.2, "seed": 0}
    nowhere = {"file_id": None, "job_id": None, **NOT_STORED}
    assert body["request"]["source"] == {"type": "inline", **nowhere, "prompts_total": 20}
    assert float(body["cost"]["high"]) > 0
    assert [warning["code"] for warning in body["warnings"]] == ["holdout_small"]
    assert await api.keys() == []
    assert api.bell.rung == []


@pytest.mark.parametrize(
    ("count", "min_accepted", "takes", "warned"),
    [(15, 5, 10, True), (20, 9, 10, True), (20, 10, 10, False), (15, 5, 1, False), (60, 5, 10, False)],
)
async def test_fewer_prompts_for_training_than_the_provider_trains_with_are_warned_of(
    count: int, min_accepted: int, takes: int, warned: bool
):
    redis = FakeServer()
    provider = some_settings().providers["openai"].model_copy(update={"examples_min": takes})
    api = Api(some_settings(providers={"openai": provider}), Store(redis, script_headers=False), redis)
    source = {"type": "inline", "prompts": [f"Ticket {n}: my invoice is wrong." for n in range(count)]}
    asked = a_request(source=source, curation={"min_accepted": min_accepted})
    async with api.http:
        body = (await api.http.post("/v1/jobs?validate_only=true", json=asked)).json()

    found = [warning["message"] for warning in body["warnings"] if warning["code"] == "examples_few"]
    assert len(found) == warned
    assert not warned or "no fewer than 10 examples" in found[0]


async def test_what_a_student_is_trained_with_is_kept_as_it_was_asked(api: Api):
    wandb = {"type": "wandb", "wandb": {"project": "triage", "entity": "acme", "name": "run 1", "tags": ["a", "b"]}}
    given = {"n_epochs": 2, "lora": True, "lora_r": 16, "house_rule": "auto"}
    asked = student(provider="open", hyperparameters=given, integrations=[wandb, {**wandb, "wandb": {"project": "x"}}])

    job = await api.create(students=[asked])

    shown = job["students"][0]
    assert shown["hyperparameters"] == {"batch_size": "auto", "learning_rate_multiplier": "auto", **given}
    assert shown["integrations"] == [wandb, {"type": "wandb", "wandb": {"project": "x"}}]
    kept = (await api.store.jobs.load(job["id"])).spec.students[0]
    assert (kept.hyperparameters, kept.integrations) == (shown["hyperparameters"], shown["integrations"])


REFUSALS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "a misspelt field": (a_request(techer={}), "validation_failed", "/techer"),
    "no teacher": ({k: v for k, v in a_request().items() if k != "teacher"}, "validation_failed", "/teacher"),
    "no student": (a_request(students=[]), "validation_failed", "/students"),
    "no prompt": (a_request(source={"type": "inline", "prompts": []}), "validation_failed", "/source/prompts"),
    "an empty prompt": (a_request(source=inline("")), "validation_failed", "/source/prompts/0"),
    "a number as prompt": (a_request(source=inline(7)), "validation_failed", "/source/prompts/0"),
    "a prompt without messages": (a_request(source=inline({})), "validation_failed", "/source/prompts/0/messages"),
    "a message without a role": (
        a_request(source=inline({"messages": [{"content": "x"}]})),
        "validation_failed",
        "/source/prompts/0/messages/0/role",
    ),
    "an unknown source": (a_request(source={"type": "ftp", "prompts": ["x"]}), "validation_failed", "/source/type"),
    "too many prompts": (a_request(source=inline(and_more=1_001)), "too_many_prompts", "/source/prompts"),
    "too few prompts": (a_request(source=inline(and_more=3)), "too_few_prompts", "/source/prompts"),
    "a prompt too long": (a_request(source=inline("x" * 400_001)), "prompt_too_long", "/source/prompts/0"),
    "a key given twice": (
        a_request(source=inline(*({"key": "a", "messages": [{"role": "user", "content": c}]} for c in "xy"))),
        "duplicate_prompt_key",
        "/source/prompts/1/key",
    ),
    "an empty holdout": (
        a_request(source=inline(and_more=8), split={"holdout": 0.0001}, curation={"min_accepted": 1}),
        "holdout_too_small",
        "/split/holdout",
    ),
    "nothing left to train on": (a_request(split={"holdout": 0.5, "validation": 0.5}), "validation_failed", "/split"),
    "an unknown provider": (a_request(teacher=teacher(provider="opanai")), "validation_failed", "/teacher/provider"),
    "an escape in a teacher": (a_request(teacher=teacher(model="gpt\x1b[2J")), "validation_failed", "/teacher/model"),
    "a NUL in a student": (a_request(students=[student(model="gpt\0")]), "validation_failed", "/students/0/model"),
    "a line's end in a provider": (
        a_request(students=[student(provider="openai\n")]),
        "validation_failed",
        "/students/0/provider",
    ),
    "a student nobody trains": (
        a_request(students=[student(provider="closed")]),
        "provider_training_closed",
        "/students/0/provider",
    ),
    "an unknown parameter": (
        a_request(teacher=teacher(params={"temprature": 1})),
        "unsupported_param",
        "/teacher/params/temprature",
    ),
    "temperature beside reasoning": (
        a_request(teacher=teacher(model="o3", params={"temperature": 0.2})),
        "unsupported_param",
        "/teacher/params/temperature",
    ),
    "max_tokens for a reasoning model": (
        a_request(teacher=teacher(model="gpt-5", params={"max_tokens": 5})),
        "unsupported_param",
        "/teacher/params/max_tokens",
    ),
    "tools beside reasoning": (
        a_request(
            teacher=teacher(model="gpt-6-sol", params={"tools": [{"type": "function", "function": {"name": "f"}}]})
        ),
        "unsupported_param",
        "/teacher/params/reasoning_effort",
    ),
    "a temperature of 3": (
        a_request(teacher=teacher(params={"temperature": 3})),
        "validation_failed",
        "/teacher/params/temperature",
    ),
    "a budget without a price": (
        a_request(teacher=teacher(provider="closed", model="x"), budget={"max_cost_usd": "10"}),
        "model_unpriced",
        "/teacher/model",
    ),
    "a budget too small": (
        a_request(budget={"max_cost_usd": "0.000001"}),
        "cost_above_limit",
        "/budget/max_cost_usd",
    ),
    "a budget of words": (a_request(budget={"max_cost_usd": "ten"}), "validation_failed", "/budget/max_cost_usd"),
    "a budget of nothing": (a_request(budget={"max_cost_usd": "0.00"}), "validation_failed", "/budget/max_cost_usd"),
    "a negative budget": (a_request(budget={"max_cost_usd": "-1"}), "validation_failed", "/budget/max_cost_usd"),
    "a budget as number": (a_request(budget={"max_cost_usd": 10}), "validation_failed", "/budget/max_cost_usd"),
    "a webhook inside": (a_request(webhook={"url": "https://169.254.169.254/"}), "url_not_allowed", "/webhook/url"),
    "a webhook by http": (a_request(webhook={"url": "http://example.com/"}), "url_not_allowed", "/webhook/url"),
    "an unknown event": (
        a_request(webhook={"url": "https://example.com", "events": ["job.exploded"]}),
        "validation_failed",
        "/webhook/events",
    ),
    "an unknown grader": (
        a_request(evaluation={"graders": [{"type": "vibes"}]}),
        "validation_failed",
        "/evaluation/graders/0/type",
    ),
    "a schema that is none": (
        a_request(curation={"min_accepted": 5, "response_schema": {"type": 7}}),
        "validation_failed",
        "/curation/response_schema",
    ),
    "too long a retention": (a_request(retention_days=366), "validation_failed", "/retention_days"),
    "17 pairs of metadata": (a_request(metadata={str(n): "x" for n in range(17)}), "validation_failed", "/metadata"),
    "metadata that is no text": (a_request(metadata={"a": 1}), "validation_failed", "/metadata"),
    "too long a metadata value": (a_request(metadata={"a": "x" * 513}), "validation_failed", "/metadata"),
    "metadata without room for ours": (
        a_request(store=True, metadata={str(n): "x" for n in range(15)}),
        "validation_failed",
        "/metadata",
    ),
    "epochs that are no number": (
        a_request(students=[student(hyperparameters={"n_epochs": "many"})]),
        "validation_failed",
        "/students/0/hyperparameters/n_epochs",
    ),
    "a hyperparameter of another provider": (
        a_request(students=[student(hyperparameters={"lora_r": 8})]),
        "unsupported_param",
        "/students/0/hyperparameters/lora_r",
    ),
    "a rank that is no number": (
        a_request(students=[student(provider="open", hyperparameters={"lora_r": "high"})]),
        "validation_failed",
        "/students/0/hyperparameters/lora_r",
    ),
    "a house rule that is no scalar": (
        a_request(students=[student(provider="open", hyperparameters={"house_rule": [1]})]),
        "validation_failed",
        "/students/0/hyperparameters/house_rule",
    ),
    "an integration without a project": (
        a_request(students=[student(integrations=[{"type": "wandb", "wandb": {"name": "x"}}])]),
        "validation_failed",
        "/students/0/integrations/0/wandb/project",
    ),
    "six integrations": (
        a_request(students=[student(integrations=[{"type": "wandb", "wandb": {"project": "x"}}] * 6)]),
        "validation_failed",
        "/students/0/integrations",
    ),
    "an unknown method": (a_request(students=[student(method="dpo")]), "validation_failed", "/students/0/method"),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_broken_rule_is_named_and_placed_and_nothing_is_stored(api: Api, name: str):
    request, code, pointer = REFUSALS[name]
    for path in ("/v1/jobs", "/v1/jobs?validate_only=true"):
        answer = await api.http.post(path, json=request)
        problem = problem_of(answer)
        assert (answer.status_code, problem["code"]) == (422, code), problem
        assert problem["errors"][0]["pointer"] == pointer
        assert problem["param"] == pointer.removeprefix("/").replace("/", ".")
        first = problem["errors"][0]["detail"]  # goes on from the pointer: "/name must have …"
        assert problem["detail"].startswith(f"{pointer} {first}")
        assert first[0].islower()
        assert not first.endswith(".")
    assert await api.keys() == []
    assert api.bell.rung == []


async def test_an_unknown_field_is_answered_with_the_closest_known_one(api: Api):
    request = a_request(techer={}, split={"holdot": 0.1})
    details = {
        fault["pointer"]: fault["detail"]
        for fault in problem_of(await api.http.post("/v1/jobs", json=request))["errors"]
    }
    assert details["/techer"].endswith("did you mean teacher?")
    assert details["/split/holdot"].endswith("did you mean holdout?")


async def test_every_broken_rule_is_told_at_once(api: Api):
    request = a_request(
        teacher=teacher(provider="nobody", params={"temperature": 5}), webhook={"url": "ftp://x"}, retention_days=9_999
    )
    pointers = [fault["pointer"] for fault in problem_of(await api.http.post("/v1/jobs", json=request))["errors"]]
    assert pointers == ["/teacher/provider", "/teacher/params/temperature", "/webhook/url", "/retention_days"]


@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("gpt-6.1-sol", {"temperature": 0.01, "top_p": 0.9, "max_completion_tokens": 300}),
        ("gpt-5.4", {"temperature": 0.2, "reasoning_effort": "none"}),
        ("gpt-5.4", {"temperature": 1, "reasoning_effort": "high"}),
        ("o3", {"reasoning_effort": "low", "max_completion_tokens": 5}),
        ("gpt-4.1", {"temperature": 0, "max_tokens": 5, "stop": ["\n"], "seed": 7}),
        ("my-own-model", {"temperature": 1.5}),
    ],
)
async def test_what_a_model_takes_is_taken(api: Api, model: str, params: dict[str, Any]):
    assert (await api.create(teacher=teacher(model=model, params=params)))["teacher"]["params"] == params


async def test_a_cost_nobody_knows_is_null_and_said(api: Api):
    job = await api.create(teacher=teacher(provider="closed", model="x"), students=[student(model="y")])
    assert job["cost"]["limit_usd"] is None
    assert "cost_incomplete" in [warning["code"] for warning in job["warnings"]]


async def test_a_budget_comes_back_as_it_was_meant(api: Api):
    job = await api.create(budget={"max_cost_usd": "10.00", "on_limit": "fail"})
    assert job["budget"] == {"max_cost_usd": "10", "on_limit": "fail"}
    assert job["cost"]["limit_usd"] == "10"


EVERYTHING: dict[str, Any] = a_request(
    name="n",
    system_prompt="s",
    store=True,
    metadata={"a": "b"},
    source=inline(
        {
            "key": "k",
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "x"}]},
                {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "y"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
            "completion": {"role": "assistant", "content": "z"},
            "reference": "r",
        }
    ),
    students=[
        student(
            provider="open",
            hyperparameters={"n_epochs": 3, "lora_r": 8, "house_rule": "a"},
            suffix="s",
            seed=1,
            integrations=[{"type": "wandb", "wandb": {"project": "p", "tags": ["t"]}}],
        )
    ],
    teacher=teacher(params={"stop": ["x"], "logit_bias": {"1": 2}, "response_format": {"type": "text"}}, samples=2),
    curation={
        "min_accepted": 5,
        "response_schema": {"type": "object", "properties": {"a": {"type": "string"}}},
        "grader": {"type": "score_model", "provider": "openai", "model": "gpt-4.1", "prompt": "Good?"},
        "min_score": 0.5,
    },
    evaluation={"graders": [{"type": "text_similarity", "name": "a"}, {"type": "json_match", "fields": ["a"]}]},
    budget={"max_cost_usd": "10", "on_limit": "fail"},
    webhook={"url": "https://example.com/x", "events": ["job.failed"]},
)
ODDITIES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**63,
    1.5,
    "",
    "x",
    "x" * 3_000,
    [],
    [[]],
    [None],
    {},
    {"": None},
    {"type": []},
]


def with_oddities(value: Any) -> list[Any]:
    """The value with one part of it replaced, each part in turn by each oddity."""
    found = list(ODDITIES)
    for key in value if isinstance(value, dict) else range(min(len(value), 3)) if isinstance(value, list) else ():
        for inner in with_oddities(value[key]):
            copy = value.copy()
            copy[key] = inner
            found.append(copy)
    return found


async def test_no_oddity_anywhere_in_a_request_is_more_than_a_refusal(api: Api):
    assert (await api.http.post("/v1/jobs?validate_only=true", json=EVERYTHING)).status_code == 200
    headers = {"Content-Type": "application/json"}
    for request in with_oddities(EVERYTHING):
        body = json.dumps(request).encode()
        answer = await api.http.post("/v1/jobs?validate_only=true", content=body, headers=headers)
        if answer.status_code != 200:
            assert answer.status_code == 422, (request, answer.text)
            problem_of(answer)
        else:
            job = await api.http.post("/v1/jobs", content=body, headers=headers)
            assert job.status_code == 202
            assert (await api.http.get(job.headers["location"])).json() == job.json()


async def test_so_many_jobs_may_be_active_and_an_ended_one_makes_room():
    redis = FakeServer()
    api = Api(some_settings(active_jobs_max=2), Store(redis, script_headers=False), redis)
    first, _ = await api.create(), await begin(api, await api.create())
    refused = await api.http.post("/v1/jobs", json=a_request(), headers={"Idempotency-Key": "k"})
    assert (refused.status_code, problem_of(refused)["code"]) == (429, "too_many_active_jobs")
    assert refused.headers["retry-after"]
    assert len((await api.http.get("/v1/jobs")).json()["data"]) == 2
    await api.http.post(f"/v1/jobs/{first['id']}/cancel")
    assert (await api.http.post("/v1/jobs", json=a_request(), headers={"Idempotency-Key": "k"})).status_code == 202

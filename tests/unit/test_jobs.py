"""The rules of a request and the notices of a job, as plain functions.  How jobs are steered: tests/api."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from builders import some_limits

from shared.capabilities import EFFORTS, FAMILIES, PARAMS, family_of, params_faults
from shared.errors import ValidationFailed
from shared.ids import TenantId, new_job_id
from shared.lifecycle import JobStatus
from shared.models import NANO, Budget, Job, JobSpec, Prompt, Student, Teacher, WebhookTarget, usd
from shared.notices import deliveries_for
from shared.planning import Plan, Planner
from shared.pricing import Prices
from shared.rules import NAMED_FAULTS, parse_usd
from shared.settings import ProviderSettings


def a_spec(**changes: Any) -> JobSpec:
    values: dict[str, Any] = {
        "teacher": Teacher(provider="openai", model="gpt-4.1"),
        "students": [Student(provider="openai", model="gpt-4.1-mini")],
        "source": "inline",
    }
    return JobSpec(**(values | changes))


def some_prompts(count: int) -> list[Prompt]:
    return [Prompt(messages=[{"role": "user", "content": f"Question {n}"}]) for n in range(count)]


@pytest.fixture
def planner() -> Planner:
    openai = ProviderSettings(base_url="https://x/v1", prices="openai")
    # Planning a request with its own prompts does not touch the store.
    return Planner(None, providers={"openai": openai}, prices=Prices(), limits=some_limits())  # type: ignore[arg-type]


def test_a_plan_is_the_same_for_the_same_request(planner: Planner) -> None:
    assert planner.plan(a_spec(), some_prompts(50)) == planner.plan(a_spec(), some_prompts(50))


def test_a_plan_tells_every_broken_rule_and_is_named_after_the_first(planner: Planner) -> None:
    spec = a_spec(students=[Student(provider="opnai", model="x")], webhook=WebhookTarget(url="http://x", events=[]))
    with pytest.raises(ValidationFailed) as refused:
        planner.plan(spec, some_prompts(1))
    assert [fault.code for fault in refused.value.faults] == ["unknown_provider", "url_not_allowed", "too_few_prompts"]
    assert refused.value.code == "validation_failed"
    assert "did you mean openai?" in refused.value.faults[0].detail


def test_answers_already_had_are_not_priced(planner: Planner) -> None:
    answered = [Prompt(messages=p.messages, completion={"role": "assistant", "content": "x"}) for p in some_prompts(50)]
    asked, had = planner.plan(a_spec(), some_prompts(50)).estimate, planner.plan(a_spec(), answered).estimate
    assert asked is not None
    assert had is not None
    assert had.high_nano < asked.high_nano


@pytest.mark.parametrize("text", ["0.000000001", "1", "10.00", "0.5", "999999999.999999999"])
def test_money_is_exact_both_ways(text: str) -> None:
    assert parse_usd(usd(parse_usd(text))) == parse_usd(text)
    assert parse_usd("1") == NANO


# --- capabilities ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-5", "gpt-5"),
        ("gpt-5-mini", "gpt-5"),
        ("gpt-5.4-2026-03-05", "gpt-5.4"),
        ("gpt-6-astra", "gpt-6-astra"),
        ("o4-mini-2025-04-16", "o4-mini"),
        ("gpt-5-chat-latest", None),
        ("gpt-6.1-sol", None),
        ("gpt-4.1", None),
        ("o", None),
        ("gpt-55", None),
    ],
)
def test_a_model_belongs_to_the_family_with_the_longest_prefix(model: str, family: str | None) -> None:
    assert family_of(model) == (FAMILIES[family] if family else None)


@pytest.mark.parametrize(
    ("model", "params", "refused"),
    [
        (
            "o3",
            {"temperature": 0.5, "top_p": 0.9, "stop": "x", "logprobs": True},
            {"temperature", "top_p", "stop", "logprobs"},
        ),
        ("o3", {"temperature": 1, "reasoning_effort": "low"}, set()),
        ("gpt-5", {"reasoning_effort": "none"}, {"reasoning_effort"}),
        ("gpt-5.4", {"temperature": 0.5}, set()),
        ("gpt-5.4", {"temperature": 0.5, "reasoning_effort": "low"}, {"temperature"}),
        ("gpt-6-sol", {"temperature": 0.5}, {"temperature"}),
        ("gpt-6-sol", {"temperature": 0.5, "reasoning_effort": "none"}, set()),
        ("gpt-6-astra", {"reasoning_effort": "minimal"}, {"reasoning_effort"}),
        ("gpt-4o", {"n": 2}, {"n"}),
        ("gpt-4o", {"stream": True}, {"stream"}),
        ("gpt-4o", {"messages": []}, {"messages"}),
        ("gpt-4o", {"temperature": None}, set()),
    ],
)
def test_what_a_model_is_known_to_refuse_is_refused(model: str, params: dict[str, Any], refused: set[str]) -> None:
    faults = params_faults(model, params, tools=False, pointer="/p")
    assert {fault.pointer.removeprefix("/p/") for fault in faults} == refused


def test_function_tools_are_weighed_with_the_effort() -> None:
    for effort, refused in ((None, True), ("low", True), ("none", False)):
        params = {} if effort is None else {"reasoning_effort": effort}
        assert bool(params_faults("gpt-6-sol", params, tools=True, pointer="")) is refused


def test_a_parameter_with_one_value_is_told_that_value() -> None:
    assert [fault.detail for fault in params_faults("gpt-4.1", {"n": 2}, tools=False, pointer="")] == ["must be 1"]
    assert params_faults("gpt-6-astra", {}, tools=True, pointer="")
    assert not params_faults("gpt-4.1", {}, tools=True, pointer="")


HOSTILE = [[], {}, "x" * 600, -(2**70), 2**70, 1e300, True, [[1]], {"type": []}, {"type": "json_schema"}]


@pytest.mark.parametrize("name", PARAMS)
@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_of_a_parameter_breaks_its_check(name: str, value: Any) -> None:
    params_faults("o3", {name: value}, tools=False, pointer="/p")


def test_every_family_takes_its_own_default_effort() -> None:
    assert all(family.default_effort in family.efforts for family in FAMILIES.values())
    assert all(set(family.efforts) <= set(EFFORTS) for family in FAMILIES.values())


# --- notices ---------------------------------------------------------------------------------------------------------


def a_job(**changes: Any) -> Job:
    values: dict[str, Any] = {
        "id": new_job_id(),
        "tenant": TenantId("local"),
        "spec": a_spec(metadata={"team": "a"}, webhook=WebhookTarget(url="https://x.example", events=["job.failed"])),
        "status": JobStatus.RUNNING,
        "version": 4,
        "created_at_ms": 0,
    }
    return Job(**(values | changes))


def test_a_notice_is_thin_and_only_of_what_was_asked_for() -> None:
    job = a_job()
    [delivery] = deliveries_for(job, "job.failed", 5, status=JobStatus.FAILED, now_ms=1_795_345_200_123)
    assert (delivery.url, delivery.job_id, delivery.status, delivery.attempts) == (
        "https://x.example",
        job.id,
        "pending",
        [],
    )
    assert json.loads(delivery.body) == {
        "id": delivery.event_id,
        "object": "event",
        "type": "job.failed",
        "created_at": 1_795_345_200,
        "data": {
            "id": job.id,
            "object": "distillation.job",
            "status": "failed",
            "version": 5,
            "metadata": {"team": "a"},
        },
    }
    assert deliveries_for(job, "job.succeeded", 5) == []
    assert deliveries_for(a_job(spec=a_spec()), "job.failed", 5) == []


def test_named_faults_are_part_of_the_contract() -> None:
    assert "validation_failed" not in NAMED_FAULTS


def test_a_budget_below_what_one_call_may_cost_is_refused_and_one_near_it_is_warned_of(planner: Planner) -> None:
    def spec(dollars: str, **params: int) -> JobSpec:
        teacher = Teacher(provider="openai", model="gpt-4.1", params=dict(params))
        return a_spec(teacher=teacher, budget=Budget(max_cost_nano=int(Decimal(dollars) * NANO)))

    def codes(plan: Plan) -> set[str]:
        return {advice.code for advice in plan.warnings}

    # The 32,768 tokens that this model may answer with cost 0.27 dollars.
    with pytest.raises(ValidationFailed) as refused:
        planner.plan(spec("0.25"), some_prompts(50))
    [fault] = refused.value.faults
    assert (fault.pointer, fault.code) == ("/budget/max_cost_usd", "cost_above_limit")
    assert "is less than one call may cost, 0.26" in fault.detail
    assert "budget_tight" in codes(planner.plan(spec("1"), some_prompts(50)))
    assert "budget_tight" not in codes(planner.plan(spec("0.25", max_completion_tokens=500), some_prompts(50)))

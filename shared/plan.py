"""Which models answer which prompts in a job: its passes, derived from the row alone."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from shared.models import FineTune, Job, JsonObject, Prompt
from shared.store.jobs import TEACHER

Role = Literal["teacher", "base", "student"]

#: Parameters that make sense for a reasoning teacher only; its students would refuse them.
_TEACHER_ONLY: Final = frozenset({"reasoning_effort", "verbosity", "service_tier", "prompt_cache_key"})
_METADATA_PAIRS_MAX: Final = 16


class PassPlan(msgspec.Struct, frozen=True):
    """One model answering one prompt set.

    number: 0 is the teacher, then base and student of each student in turn; part of the completion's id.
    student: index into the job's students, None for the teacher.  fresh: just trained, so a 404 may pass."""

    name: str
    number: int
    role: Role
    provider: str
    model: str
    params: JsonObject
    prompt_set: Literal["source", "holdout"]
    student: int | None = None
    store: bool = False
    fresh: bool = False


def teacher_plan(job: Job) -> PassPlan:
    teacher = job.spec.teacher
    return PassPlan(TEACHER, 0, "teacher", teacher.provider, teacher.model, teacher.params, "source", None,
                    store=job.spec.store)  # fmt: skip


def evaluation_plans(job: Job) -> list[PassPlan]:
    """Base and distilled student of every student that is trained, on the holdout."""
    params = {name: value for name, value in job.spec.teacher.params.items() if name not in _TEACHER_ONLY}
    plans = []
    for i, (student, tune) in enumerate(zip(job.spec.students, job.fine_tunes, strict=False)):
        base = PassPlan(f"base-{i}", 1 + 2 * i, "base", student.provider, student.model, params, "holdout", i)
        plans.append(base)
        if (tuned := answering_model(tune)) is not None:
            plans.append(
                msgspec.structs.replace(
                    base, name=f"student-{i}", number=2 + 2 * i, role="student", model=tuned, fresh=True
                )
            )
    return plans


def answering_model(tune: FineTune) -> str | None:
    """The model to ask for a student's answers, once training has succeeded."""
    return tune.fine_tuned_model if tune.status == "succeeded" else None


def plans(job: Job) -> list[PassPlan]:
    return [teacher_plan(job), *evaluation_plans(job)]


def request_body(job: Job, plan: PassPlan, prompt: Prompt, index: int) -> JsonObject:
    """The Chat Completions request for one prompt of one pass.

    With `store`, the provider keeps the answer under the customer's metadata and, where there is room among its
    16 pairs, ours: by that an answer lost on the way to us is found again."""
    body: JsonObject = {"model": plan.model, "messages": prompt.messages, **plan.params}
    if prompt.tools:
        body["tools"] = prompt.tools
    if prompt.response_format:
        body["response_format"] = prompt.response_format
    if plan.store:
        body["store"] = True
        body["metadata"] = job.spec.metadata | (our_metadata(job, plan, index) or {})
    return body


def our_metadata(job: Job, plan: PassPlan, index: int) -> dict[str, str] | None:
    """By what one stored completion is found again; None where nothing of ours is stored with it."""
    if not plan.store or len(job.spec.metadata) > _METADATA_PAIRS_MAX - 2:
        return None
    return {"distillation_job": job.id, "prompt": str(index)}

"""Which models answer which prompts in a job: its passes, derived from the row alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from shared.graders import ScoreModel, parse_grader, parse_graders
from shared.judge import judge_params
from shared.lifecycle import Stage
from shared.models import FineTune, Job, JsonObject, Prompt, Student
from shared.store.jobs import RATING, TEACHER

Role = Literal["teacher", "base", "student", "judge"]

#: Parameters that make sense for a reasoning teacher only; its students would refuse them.
_TEACHER_ONLY: Final = frozenset({"reasoning_effort", "verbosity", "service_tier", "prompt_cache_key"})
_METADATA_PAIRS_MAX: Final = 16
_SEED_MAX: Final = 2**63 - 1

# Numbers of passes; below are the teacher's first answers and the contestants.
_SAMPLES_FROM: Final = 100
_RATING: Final = 200
_JUDGES_FROM: Final = 300


class PassPlan(msgspec.Struct, frozen=True):
    """One model answering one prompt set.

    number: part of the completion's id; 0 is the teacher, then base and student of each student in turn, from 101 the
    teacher's further samples, 200 the judge of curating, from 300 the evaluation's judges.
    prompt_set: `source`, `holdout`, or what a judge is asked, under the pass's own name.
    param: where the request names the model.  sample: which of the teacher's answers to a prompt.
    student: index into the job's students, for contestants.  grader: index into the evaluation's graders, for its
    judges.  fresh: just trained, so a 404 may pass.
    priced_as: the model by whose price the calls are paid, where `model` is the name of a deployment."""

    name: str
    number: int
    role: Role
    provider: str
    model: str
    params: JsonObject
    prompt_set: str
    param: str
    sample: int = 0
    student: int | None = None
    grader: int | None = None
    store: bool = False
    fresh: bool = False
    priced_as: str | None = None


def teacher_plan(job: Job) -> PassPlan:
    teacher = job.spec.teacher
    return PassPlan(TEACHER, 0, "teacher", teacher.provider, teacher.model, teacher.params, "source", "teacher.model",
                    store=job.spec.store)  # fmt: skip


def teacher_plans(job: Job) -> list[PassPlan]:
    """One for each sample.  A seed is told apart by the sample's number, or all samples would be the same."""
    first = teacher_plan(job)
    plans = [first]
    for sample in range(1, job.spec.teacher.samples):
        params = dict(first.params)
        if isinstance(params.get("seed"), int):
            params["seed"] = min(params["seed"] + sample, _SEED_MAX)
        plans.append(
            msgspec.structs.replace(
                first, name=f"{TEACHER}-{sample}", number=_SAMPLES_FROM + sample, params=params, sample=sample
            )
        )
    return plans


def rating_plan(job: Job) -> PassPlan | None:
    """The judge that rates the teacher's answers, where curating has one."""
    spec = job.spec.curation.grader
    grader = None if spec is None else parse_grader(spec, "/curation/grader")
    if not isinstance(grader, ScoreModel):
        return None
    return PassPlan(
        name=RATING,
        number=_RATING,
        role="judge",
        provider=grader.provider,
        model=grader.model,
        params=judge_params(grader),
        prompt_set=RATING,
        param="curation.grader.model",
    )


def evaluation_rounds(job: Job) -> int:
    """1, and one more for every place that an owner has told instead of another.

    Each has its own passes, so that late answers of a replaced model are nobody's; those that are asked for again come
    from the ledger."""
    return 1 + sum(len(tune.replaced) for tune in job.fine_tunes)


def _in_round(name: str, number: int) -> str:
    return name if number == 1 else f"{name}-round-{number}"


def evaluation_plans(job: Job) -> list[PassPlan]:
    """Base and distilled student of every student, on the holdout.  Where a student has ended without a model, there is
    nothing to hold its base against, so nobody asks it."""
    latest = evaluation_rounds(job)
    params = {name: value for name, value in job.spec.teacher.params.items() if name not in _TEACHER_ONLY}
    plans = []
    for i, (student, tune) in enumerate(zip(job.spec.students, job.fine_tunes, strict=False)):
        answering = answering_model(student, tune)
        if tune.step == "ended" and answering is None:
            continue
        base = PassPlan(
            _in_round(f"base-{i}", latest),
            1 + 2 * i,
            "base",
            student.provider,
            student.model,
            params,
            "holdout",
            f"students.{i}.model",
            student=i,
        )
        deployed = tune.endpoint
        if deployed is not None and deployed.base_model is not None:
            base = msgspec.structs.replace(
                base, provider=deployed.provider, model=deployed.base_model, priced_as=student.model
            )
        plans.append(base)
        if answering is not None:
            provider, model = answering
            plans.append(
                msgspec.structs.replace(
                    base,
                    name=_in_round(f"student-{i}", latest),
                    number=2 + 2 * i,
                    role="student",
                    provider=provider,
                    model=model,
                    fresh=deployed is None,  # an owner tells once it answers, and is told at once when it does not
                    priced_as=None if deployed is None else f"ft:{student.model}",
                )
            )
    return plans


def judge_plans(job: Job) -> list[PassPlan]:
    """The judges of the evaluation, each over what it is asked to compare."""
    latest = evaluation_rounds(job)
    return [
        PassPlan(
            name=_in_round(f"judge-{i}", latest),
            number=_JUDGES_FROM + i,
            role="judge",
            provider=grader.provider,
            model=grader.model,
            params=judge_params(grader),
            prompt_set=_in_round(f"judge-{i}", latest),
            param=f"evaluation.graders.{i}.model",
            grader=i,
        )
        for i, grader in enumerate(parse_graders(job.spec.evaluation.graders))
        if isinstance(grader, ScoreModel)
    ]


def answering_model(student: Student, tune: FineTune) -> tuple[str, str] | None:
    """(provider, model) to ask for a student's answers, once training has succeeded."""
    if tune.status != "succeeded":
        return None
    if tune.endpoint is not None:
        return tune.endpoint.provider, tune.endpoint.model
    return None if tune.fine_tuned_model is None else (student.provider, tune.fine_tuned_model)


def plans(job: Job) -> list[PassPlan]:
    """In the order in which their completions are listed."""
    rating = rating_plan(job)
    return [*teacher_plans(job), *evaluation_plans(job), *([rating] if rating else []), *judge_plans(job)]


def plans_once(job: Job) -> Iterator[PassPlan]:
    """What else may have been asked, and paid, in rounds of the evaluation that are over: at other places of deployed
    students, and by judges of what was answered there."""
    for number, tune in enumerate(job.fine_tunes):
        for endpoint in (*tune.replaced, *([tune.endpoint] if tune.endpoint is not None else [])):
            tunes = list(job.fine_tunes)
            tunes[number] = msgspec.structs.replace(tune, status="succeeded", endpoint=endpoint)
            there = msgspec.structs.replace(job, fine_tunes=tunes)
            yield from (plan for plan in evaluation_plans(there) if plan.student == number)
    for earlier in range(1, evaluation_rounds(job)):
        for plan in judge_plans(job):
            yield msgspec.structs.replace(plan, prompt_set=_in_round(f"judge-{plan.grader}", earlier))


def phases(job: Job) -> list[list[PassPlan]]:
    """The passes of the stage at which the job stands: those of one list are open together, each list after the one
    before it is complete."""
    match job.stage:
        case Stage.GENERATING:
            first, *others = teacher_plans(job)
            return [[first], others]
        case Stage.CURATING:
            rating = rating_plan(job)
            return [[rating]] if rating else []
        case Stage.EVALUATING:
            return [evaluation_plans(job), judge_plans(job)]
        case _:
            return []


def pass_sizes(job: Job) -> dict[str, int]:
    """The most prompts that each pass of the job can have, whether or not it was ever opened."""
    held = job.manifest.holdout if job.manifest is not None else 0
    contestants = [f"{role}-{i}" for role in ("base", "student") for i in range(len(job.spec.students))]
    judges = [f"judge-{plan.grader}" for plan in judge_plans(job)]
    compared = 2 * held * (1 + len(contestants))
    rounds = range(1, evaluation_rounds(job) + 1)
    source, samples = job.counters.prompts_total, job.spec.teacher.samples
    rating = rating_plan(job)
    return {
        **dict.fromkeys((plan.name for plan in teacher_plans(job)), source),
        **({rating.name: source * samples} if rating else {}),
        **{_in_round(name, number): held for number in rounds for name in contestants},
        **{_in_round(name, number): compared for number in rounds for name in judges},
    }


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
    return {"distillation_job": job.id, "prompt": f"{index}.{plan.sample}" if plan.sample else str(index)}

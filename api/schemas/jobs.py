"""A job, and what belongs to it, as it goes out."""

from __future__ import annotations

from typing import Any, Literal, Self

import msgspec

from api.schemas.common import Response, seconds
from api.schemas.specs import SpecOut, spec_fields
from api.schemas.training import CheckpointOut
from shared import models as domain
from shared.ids import EventId, JobId
from shared.models import JsonObject, usd
from shared.planning import Plan


class Progress(Response):
    """completions_total: of the teacher, one per prompt and sample; so are all numbers that follow it.
    accepted, rejected: as judged on arrival; curating's verdicts are in `dataset` and the completions list."""

    prompts_total: int
    completions_total: int
    completions_settled: int
    accepted: int
    rejected: int
    failed: int
    reused: int
    possibly_billed: int


class UsdRange(Response):
    low: str
    high: str


class StageCosts(Response):
    """What of `spent_usd` each stage took; curating costs nothing unless a judge rates the answers."""

    generating_usd: str
    curating_usd: str
    training_usd: str
    evaluating_usd: str


class Tokens(Response):
    """Tokens of all calls whose answer arrived, as the provider counted them."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class Cost(Response):
    """reserved_usd: the most that calls and trainings under way can cost; of an ended job, too, until its last calls
    are in.  unconfirmed_usd: the most that calls whose answer was lost, and trainings of which the provider does not
    say what it bills, may have cost.  Both count against limit_usd."""

    estimated_usd: UsdRange | None
    spent_usd: str
    reserved_usd: str
    unconfirmed_usd: str
    limit_usd: str | None
    by_stage: StageCosts
    unpriced_calls: int


class Advice(Response):
    code: str
    message: str


class ProviderAnswer(Response):
    status: int | None
    code: str | None
    request_id: str | None


class JobError(Response):
    code: str
    message: str
    param: str | None
    stage: str | None
    retryable: bool
    provider: ProviderAnswer | None

    @classmethod
    def of(cls, error: domain.JobError | None) -> Self | None:
        if error is None:
            return None
        answer = error.provider
        return cls(
            code=error.code,
            message=error.message,
            param=error.param,
            stage=error.stage,
            retryable=error.retryable,
            provider=None
            if answer is None
            else ProviderAnswer(status=answer.status, code=answer.code, request_id=answer.request_id),
        )


class Steps(Response):
    step: int | None
    total_steps: int | None


class EndpointOut(Response):
    provider: str
    model: str
    base_model: str | None


class StudentOut(Response):
    """status: null before training; then the provider's word for its fine-tuning job (`validating_files`, `queued`,
    `running`, `succeeded`, `failed`, `cancelled`, …), or one of ours: `not_submitted` (too few pairs for dpo, so it is
    not trained), `refused` (the provider took no such job), `awaiting_deployment` (its owner deploys it), `deleted`
    (the fine-tuning job is gone at the provider), `cancelled` (with the job).  error: why it ended without a model;
    then neither it nor its base is evaluated."""

    provider: str
    model: str
    method: str
    hyperparameters: dict[str, Any]
    suffix: str | None
    seed: int | None
    integrations: list[dict[str, Any]]
    fine_tuning_job_id: str | None
    status: str | None
    fine_tuned_model: str | None
    endpoint: EndpointOut | None
    shutdown_date: str | None
    trained_tokens: int | None
    estimated_finish_at: int | None
    progress: Steps
    checkpoints: list[CheckpointOut]
    error: JobError | None


class DatasetOut(Response):
    """What curating kept; sha256 of the training split's JSONL."""

    sha256: str
    holdout_sha256: str
    train: int
    validation: int
    holdout: int
    rejected: dict[str, int]


class ResultsLink(Response):
    object: Literal["distillation.result"]
    url: str


class JobOut(SpecOut):
    id: str
    object: Literal["distillation.job"]
    version: int
    status: str
    stage: str | None
    paused_reason: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None
    deadline_at: int | None
    expires_at: int | None
    students: list[StudentOut]
    progress: Progress
    cost: Cost
    usage: Tokens
    dataset: DatasetOut | None
    warnings: list[Advice]
    results: ResultsLink | None
    error: JobError | None
    retry_of: str | None

    @classmethod
    def of(cls, job: domain.Job) -> Self:
        return cls.model_validate(_job_fields(job))


def job_json(job: domain.Job) -> bytes:
    """The same JSON as `JobOut` of the job, for a third of what the model takes to be made and written."""
    return msgspec.json.encode(_job_fields(job))


def _job_fields(job: domain.Job) -> JsonObject:
    """What `JobOut` shows, in its order."""
    counters, usage, manifest = job.counters, job.usage, job.manifest
    return spec_fields(job.spec, counters.prompts_total) | {
        "id": job.id,
        "object": "distillation.job",
        "version": job.version,
        "status": job.status,
        "stage": job.stage,
        "paused_reason": job.paused_reason,
        "created_at": job.created_at_ms // 1000,
        "started_at": seconds(job.started_at_ms),
        "finished_at": seconds(job.finished_at_ms),
        "deadline_at": seconds(job.deadline_at_ms),
        "expires_at": seconds(job.expires_at_ms),
        "students": [
            _student(student, tune, job.endpoint(number))
            for number, (student, tune) in enumerate(zip(job.spec.students, job.fine_tunes or (), strict=False))
        ],
        "progress": {
            "prompts_total": counters.prompts_total,
            "completions_total": counters.prompts_total * job.spec.teacher.samples,
            "completions_settled": counters.settled,
            "accepted": counters.accepted,
            "rejected": counters.rejected,
            "failed": counters.failed,
            "reused": counters.reused,
            "possibly_billed": counters.possibly_billed,
        },
        "cost": _cost(job),
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "completion_tokens": usage.completion_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
        "dataset": None
        if manifest is None
        else {
            "sha256": manifest.sha256,
            "holdout_sha256": manifest.holdout_sha256,
            "train": manifest.train,
            "validation": manifest.validation,
            "holdout": manifest.holdout,
            "rejected": manifest.rejected,
        },
        "warnings": [{"code": advice.code, "message": advice.message} for advice in job.warnings],
        "results": {"object": "distillation.result", "url": f"/v1/jobs/{job.id}/results"} if job.has_results else None,
        "error": _dumped(JobError.of(job.error)),
        "retry_of": job.retry_of,
    }


def _dumped(shown: Response | None) -> JsonObject | None:
    return None if shown is None else shown.model_dump()


def _cost(job: domain.Job) -> JsonObject:
    money = job.money
    low, high = money.estimated_low_nano, money.estimated_high_nano
    training = sum(tune.cost_nano or 0 for tune in job.fine_tunes)
    return {
        "estimated_usd": None if low is None or high is None else {"low": usd(low), "high": usd(high)},
        "spent_usd": usd(money.spent_nano),
        "reserved_usd": usd(money.reserved_nano),
        "unconfirmed_usd": usd(money.unconfirmed_nano),
        "limit_usd": None if money.limit_nano is None else usd(money.limit_nano),
        "by_stage": {
            "generating_usd": usd(money.generating_nano),
            "curating_usd": usd(money.curating_nano),
            "training_usd": usd(training),
            "evaluating_usd": usd(money.spent_nano - money.generating_nano - money.curating_nano - training),
        },
        "unpriced_calls": job.counters.unpriced_calls,
    }


def _student(student: domain.Student, tune: domain.FineTune, endpoint: domain.StudentEndpoint | None) -> JsonObject:
    return _student_fields(student) | {
        "fine_tuning_job_id": tune.fine_tuning_job_id,
        "status": tune.status,
        "fine_tuned_model": tune.fine_tuned_model,
        "endpoint": None
        if endpoint is None
        else {"provider": endpoint.provider, "model": endpoint.model, "base_model": endpoint.base_model},
        "shutdown_date": tune.shutdown_date,
        "trained_tokens": tune.trained_tokens,
        "estimated_finish_at": tune.estimated_finish_at,
        "progress": {"step": tune.step_number, "total_steps": tune.total_steps},
        "checkpoints": [CheckpointOut.of(checkpoint).model_dump() for checkpoint in tune.checkpoints],
        "error": _dumped(JobError.of(tune.error)),
    }


def _student_fields(student: domain.Student) -> JsonObject:
    return {
        "provider": student.provider,
        "model": student.model,
        "method": student.method,
        "hyperparameters": student.hyperparameters,
        "suffix": student.suffix,
        "seed": student.seed,
        "integrations": student.integrations,
    }


class RequestedOut(SpecOut):
    students: list[dict[str, Any]]


class EstimateOut(Response):
    """The answer to `validate_only`: what would be done, and what it may cost."""

    object: Literal["distillation.estimate"]
    request: RequestedOut
    cost: UsdRange | None
    warnings: list[Advice]

    @classmethod
    def of(cls, plan: Plan) -> Self:
        estimate = plan.estimate
        return cls(
            object="distillation.estimate",
            request=RequestedOut(
                **spec_fields(plan.spec, plan.prompts_total),
                students=[_student_fields(student) for student in plan.spec.students],
            ),
            cost=None if estimate is None else UsdRange(low=usd(estimate.low_nano), high=usd(estimate.high_nano)),
            warnings=[Advice(code=advice.code, message=advice.message) for advice in plan.warnings],
        )


class EventOut(Response):
    id: str
    object: Literal["distillation.job.event"]
    job_id: str
    sequence: int
    level: str
    type: str
    stage: str | None
    message: str
    data: dict[str, Any]
    created_at: int

    @classmethod
    def of(cls, event: domain.Event, event_id: EventId, job_id: JobId) -> Self:
        return cls(
            id=event_id,
            object="distillation.job.event",
            job_id=job_id,
            sequence=event.sequence,
            level=event.level,
            type=event.type,
            stage=event.stage,
            message=event.message,
            data=event.data,
            created_at=event.created_at_ms // 1000,
        )

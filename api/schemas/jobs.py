"""A job, and what belongs to it, as it goes out."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import WithJsonSchema

from api.schemas.common import Response, seconds
from api.schemas.training import CheckpointOut
from shared import models as domain
from shared.cleanup import Cleanup, Kind
from shared.curation import Reason, SplitName
from shared.ids import EventId, JobId
from shared.models import usd
from shared.planning import Plan
from shared.store.purging import Receipt


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
    are in.  unconfirmed_usd: the most that calls whose answer was lost may have cost.  Both count against limit_usd."""

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


class TeacherOut(Response):
    provider: str
    model: str
    params: dict[str, Any]
    mode: str
    samples: int


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


class CurationOut(Response):
    min_accepted: int
    dedupe: bool
    response_schema: dict[str, Any] | None
    max_output_chars: int | None
    grader: dict[str, Any] | None
    min_score: float | None


class SplitOut(Response):
    validation: float
    holdout: float
    seed: int


class EvaluationOut(Response):
    graders: list[dict[str, Any]]
    min_score: float | None


class BudgetOut(Response):
    max_cost_usd: str | None
    on_limit: str


class WebhookOut(Response):
    url: str
    events: list[str]


class SourceOut(Response):
    """file_id, job_id: of a job from a file or an earlier job; that itself may be deleted meanwhile.
    provider, model, metadata: of a job from stored completions.  prompts_total: of those, as many as are read."""

    type: str
    file_id: str | None
    job_id: str | None
    provider: str | None
    model: str | None
    metadata: dict[str, str] | None
    prompts_total: int


class SpecOut(Response):
    """A request with its defaults filled in; of the prompts only their number."""

    name: str | None
    teacher: TeacherOut
    system_prompt: str | None
    source: SourceOut
    store: bool
    metadata: dict[str, str]
    curation: CurationOut
    split: SplitOut
    evaluation: EvaluationOut
    budget: BudgetOut
    deadline_seconds: int
    retention_days: int
    webhook: WebhookOut | None


def spec_fields(spec: domain.JobSpec, prompts_total: int) -> dict[str, Any]:
    hook = spec.webhook
    limit = spec.budget.max_cost_nano
    return {
        "name": spec.name,
        "teacher": TeacherOut(
            provider=spec.teacher.provider,
            model=spec.teacher.model,
            params=spec.teacher.params,
            mode=spec.teacher.mode,
            samples=spec.teacher.samples,
        ),
        "system_prompt": spec.system_prompt,
        "source": SourceOut(
            type=spec.source,
            file_id=spec.file_id if spec.source == "file" else None,
            job_id=spec.source_job_id,
            provider=spec.stored.provider if spec.stored else None,
            model=(spec.stored.model or spec.teacher.model) if spec.stored else None,
            metadata=spec.stored.metadata if spec.stored else None,
            prompts_total=prompts_total,
        ),
        "store": spec.store,
        "metadata": spec.metadata,
        "curation": CurationOut(
            min_accepted=spec.curation.min_accepted,
            dedupe=spec.curation.dedupe,
            response_schema=spec.curation.response_schema,
            max_output_chars=spec.curation.max_output_chars,
            grader=spec.curation.grader,
            min_score=spec.curation.min_score,
        ),
        "split": SplitOut(validation=spec.split.validation, holdout=spec.split.holdout, seed=spec.split.seed),
        "evaluation": EvaluationOut(graders=spec.evaluation.graders, min_score=spec.evaluation.min_score),
        "budget": BudgetOut(max_cost_usd=None if limit is None else usd(limit), on_limit=spec.budget.on_limit),
        "deadline_seconds": spec.deadline_seconds,
        "retention_days": spec.retention_days,
        "webhook": None if hook is None else WebhookOut(url=hook.url, events=hook.events),
    }


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
        counters = job.counters
        return cls(
            **spec_fields(job.spec, counters.prompts_total),
            id=job.id,
            object="distillation.job",
            version=job.version,
            status=job.status,
            stage=job.stage,
            paused_reason=job.paused_reason,
            created_at=job.created_at_ms // 1000,
            started_at=seconds(job.started_at_ms),
            finished_at=seconds(job.finished_at_ms),
            deadline_at=seconds(job.deadline_at_ms),
            expires_at=seconds(job.expires_at_ms),
            students=[
                _student(student, tune, job.endpoint(number))
                for number, (student, tune) in enumerate(zip(job.spec.students, job.fine_tunes or (), strict=False))
            ],
            progress=Progress(
                prompts_total=counters.prompts_total,
                completions_total=counters.prompts_total * job.spec.teacher.samples,
                completions_settled=counters.settled,
                accepted=counters.accepted,
                rejected=counters.rejected,
                failed=counters.failed,
                reused=counters.reused,
                possibly_billed=counters.possibly_billed,
            ),
            cost=_cost(job),
            usage=Tokens(
                prompt_tokens=job.usage.prompt_tokens,
                cached_tokens=job.usage.cached_tokens,
                completion_tokens=job.usage.completion_tokens,
                reasoning_tokens=job.usage.reasoning_tokens,
            ),
            dataset=None
            if job.manifest is None
            else DatasetOut(
                sha256=job.manifest.sha256,
                holdout_sha256=job.manifest.holdout_sha256,
                train=job.manifest.train,
                validation=job.manifest.validation,
                holdout=job.manifest.holdout,
                rejected=job.manifest.rejected,
            ),
            warnings=[Advice(code=advice.code, message=advice.message) for advice in job.warnings],
            results=ResultsLink(object="distillation.result", url=f"/v1/jobs/{job.id}/results")
            if job.has_results
            else None,
            error=JobError.of(job.error),
            retry_of=job.retry_of,
        )


def _cost(job: domain.Job) -> Cost:
    money = job.money
    low, high = money.estimated_low_nano, money.estimated_high_nano
    training = sum(tune.cost_nano or 0 for tune in job.fine_tunes)
    return Cost(
        estimated_usd=None if low is None or high is None else UsdRange(low=usd(low), high=usd(high)),
        spent_usd=usd(money.spent_nano),
        reserved_usd=usd(money.reserved_nano),
        unconfirmed_usd=usd(money.unconfirmed_nano),
        limit_usd=None if money.limit_nano is None else usd(money.limit_nano),
        by_stage=StageCosts(
            generating_usd=usd(money.generating_nano),
            training_usd=usd(training),
            curating_usd=usd(money.curating_nano),
            evaluating_usd=usd(money.spent_nano - money.generating_nano - money.curating_nano - training),
        ),
        unpriced_calls=job.counters.unpriced_calls,
    )


def _student(student: domain.Student, tune: domain.FineTune, endpoint: domain.StudentEndpoint | None) -> StudentOut:
    return StudentOut(
        provider=student.provider,
        model=student.model,
        method=student.method,
        hyperparameters=student.hyperparameters,
        suffix=student.suffix,
        seed=student.seed,
        integrations=student.integrations,
        fine_tuning_job_id=tune.fine_tuning_job_id,
        status=tune.status,
        fine_tuned_model=tune.fine_tuned_model,
        endpoint=None
        if endpoint is None
        else EndpointOut(provider=endpoint.provider, model=endpoint.model, base_model=endpoint.base_model),
        shutdown_date=tune.shutdown_date,
        trained_tokens=tune.trained_tokens,
        estimated_finish_at=tune.estimated_finish_at,
        progress=Steps(step=tune.step_number, total_steps=tune.total_steps),
        checkpoints=[CheckpointOut.of(checkpoint) for checkpoint in tune.checkpoints],
        error=JobError.of(tune.error),
    )


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
        students = [
            {
                "provider": student.provider,
                "model": student.model,
                "method": student.method,
                "hyperparameters": student.hyperparameters,
                "suffix": student.suffix,
                "seed": student.seed,
                "integrations": student.integrations,
            }
            for student in plan.spec.students
        ]
        return cls(
            object="distillation.estimate",
            request=RequestedOut(**spec_fields(plan.spec, plan.prompts_total), students=students),
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


class UsageOut(Response):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int


#: Shown as it is stored: while versions change, a worker may be newer than the API and know a reason that it does not.
ShownReason = Annotated[str, WithJsonSchema({"type": "string", "enum": list(get_args(Reason))})]


class CompletionOut(Response):
    """output: the model's message as it came; null when there was none.  sample: which of the teacher's answers to the
    prompt, null for other roles.  score: what curating gave it, or a judge's reply gives; null when there is none.
    cost_usd: of the call that was paid for it; a `reused` one costs nothing again."""

    id: str
    object: Literal["distillation.completion"]
    job_id: str
    role: str
    model: str
    prompt_key: str | None
    prompt_index: int
    status: Literal["accepted", "rejected", "failed"]
    reason: ShownReason | None
    split: SplitName | None
    messages: list[dict[str, Any]]
    output: dict[str, Any] | None
    finish_reason: str | None
    sample: int | None
    score: float | None
    usage: UsageOut | None
    cost_usd: str | None
    latency_seconds: float | None
    reused: bool
    provider_completion_id: str | None
    provider_request_id: str | None
    error: JobError | None
    metadata: dict[str, str]
    created_at: int


class DeletedAtProvider(Response):
    files: int
    stored_completions: int
    fine_tuned_models: int


class LeftAtProvider(Response):
    """Ids, to delete it there.  fine_tuning_jobs: no provider deletes the record of one.  stored_completions: some that
    were stored for this job may be there still.  unlisted_files: likewise, of files whose ids could not be found out;
    their names begin with `distill-` and the job's id, or a fine-tuning job names them.  unlisted_models: a fine-tuning
    job that could not be asked may have made more models than are listed."""

    files: list[str]
    fine_tuning_jobs: list[str]
    fine_tuned_models: list[str]
    stored_completions: bool
    unlisted_files: bool
    unlisted_models: bool


class PurgedOut(Response):
    """What was removed.  left_at_provider: while `cleaning`, what is still to go; then, what stays there."""

    prompts: int
    completions: int
    events: int
    webhook_deliveries: int
    deleted_at_provider: DeletedAtProvider
    left_at_provider: LeftAtProvider


class DeletedJobOut(Response):
    """The receipt: `purging`; `cleaning` once nothing of the job is left here; `purged` once nothing more will be
    deleted at its providers either.  content_purged_at: when it became `cleaning`.  purged_at: when `purged`."""

    id: str
    object: Literal["distillation.job.deleted"]
    deleted: Literal[True]
    status: Literal["purging", "cleaning", "purged"]
    deleted_at: int
    content_purged_at: int | None
    purged_at: int | None
    purged: PurgedOut | None

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        found = receipt.purged
        return cls(
            id=receipt.job_id,
            object="distillation.job.deleted",
            deleted=True,
            status="purging" if found is None else "purged" if receipt.complete else "cleaning",
            deleted_at=receipt.deleted_at_ms // 1000,
            content_purged_at=seconds(receipt.purged_at_ms),
            purged_at=seconds(receipt.completed_at_ms),
            purged=None
            if found is None
            else PurgedOut(
                prompts=found.prompts,
                completions=found.completions,
                events=found.events,
                webhook_deliveries=found.deliveries,
                deleted_at_provider=_deleted(receipt.cleanup),
                left_at_provider=_left(receipt.cleanup),
            ),
        )


def _deleted(cleanup: Cleanup | None) -> DeletedAtProvider:
    deleted = {} if cleanup is None else cleanup.deleted
    return DeletedAtProvider(
        files=deleted.get(Kind.FILE, 0) + deleted.get(Kind.BATCH_FILE, 0),
        stored_completions=deleted.get(Kind.STORED, 0),
        fine_tuned_models=deleted.get(Kind.MODEL, 0),
    )


_NAMING_FILES: Final = {Kind.FILES, Kind.BATCH_FILES, Kind.BATCHES, Kind.BATCH, Kind.TRAININGS, Kind.TRAINED}


def _left(cleanup: Cleanup | None) -> LeftAtProvider:
    left = [] if cleanup is None else cleanup.left
    kinds = {remnant.kind for remnant in left}
    return LeftAtProvider(
        files=[remnant.id for remnant in left if remnant.kind in {Kind.FILE, Kind.BATCH_FILE}],
        fine_tuning_jobs=[] if cleanup is None else cleanup.fine_tuning_jobs,
        fine_tuned_models=[remnant.id for remnant in left if remnant.kind is Kind.MODEL],
        stored_completions=Kind.STORED in kinds,
        unlisted_files=bool(kinds & _NAMING_FILES),
        unlisted_models=bool(kinds & {Kind.TRAININGS, Kind.TRAINED}),
    )

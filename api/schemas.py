"""What goes over the wire.  Requests refuse unknown fields; responses have no defaults: every key is always there."""

from __future__ import annotations

from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError

from shared import models as domain
from shared.errors import Fault
from shared.ids import EventId, FileId, JobId
from shared.jobs import Plan, invalid, parse_usd
from shared.models import usd
from shared.prompts import FAULTS_MAX, KEY_MAX_CHARS, MESSAGES_MAX, read_prompt
from shared.store.api_keys import ApiKey
from shared.store.purging import Receipt
from shared.webhooks import DEFAULT_EVENTS, EVENT_TYPES

# --- requests --------------------------------------------------------------------------------------------------------

_MEMBERS_MAX: Final = 64  # of one object; a million unknown fields must not become a million errors


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_members(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MEMBERS_MAX:
            raise broken("wrong_length", f"must have at most {_MEMBERS_MAX} fields")
        return value


def broken(code: str, detail: str) -> PydanticCustomError:
    """detail: a predicate without values.  Braces would be taken for placeholders."""
    return PydanticCustomError("rule." + code, detail.replace("{", "{{").replace("}", "}}"))


def _money(text: str) -> str:
    whole, _, fraction = text.partition(".")
    digits = whole.isascii() and whole.isdecimal() and (fraction == "" or (fraction.isascii() and fraction.isdecimal()))
    if not digits or len(whole) > 9 or len(fraction) > 9 or text.endswith(".") or parse_usd(text) == 0:
        raise broken("invalid_value", 'must be a decimal text above zero, in dollars, such as "10.00"')
    return text


Usd = Annotated[str, AfterValidator(_money), Field(examples=["10.00"], json_schema_extra={"format": "decimal"})]


def _metadata(pairs: dict[str, Any]) -> dict[str, Any]:
    if len(pairs) > 16:
        raise broken("wrong_length", "must have at most 16 pairs")
    for key, value in pairs.items():
        if not 1 <= len(key) <= 64:
            raise broken("wrong_length", "must have keys of 1 to 64 characters")
        if not isinstance(value, str) or len(value) > 512:
            raise broken("invalid_value", "must have texts of at most 512 characters as values")
    return pairs


def _auto_or(kind: type[int] | type[float], low: float, high: float) -> Any:
    def check(value: Any) -> Any:
        kinds = (int,) if kind is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        if value == "auto" or fits:
            return value
        noun = "a whole number" if kind is int else "a number"
        raise broken("invalid_value", f'must be "auto" or {noun} from {low:g} to {high:g}')

    number = {"type": "integer" if kind is int else "number", "minimum": low, "maximum": high}
    return Annotated[Any, BeforeValidator(check), WithJsonSchema({"anyOf": [{"const": "auto"}, number]})]


Provider = Annotated[str, Field(min_length=1, max_length=64, examples=["openai"])]
Model = Annotated[str, Field(min_length=1, max_length=200)]


class TeacherIn(Request):
    provider: Provider
    model: Model
    params: dict[str, Any] = Field({}, description="Chat Completions parameters; checked against what the model takes")
    mode: Literal["live", "batch"] = Field(
        "live", description="batch: half the price, each answer up to a day later; where the provider serves batches"
    )


class HyperparametersIn(Request):
    # The types are made by a function, which the type checker cannot follow.
    n_epochs: _auto_or(int, 1, 50) = "auto"  # type: ignore[valid-type]
    batch_size: _auto_or(int, 1, 256) = "auto"  # type: ignore[valid-type]
    learning_rate_multiplier: _auto_or(float, 1e-6, 1_000) = "auto"  # type: ignore[valid-type]


class StudentIn(Request):
    provider: Provider
    model: Model
    method: Literal["supervised"] = "supervised"
    hyperparameters: HyperparametersIn = HyperparametersIn()
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=2_147_483_647)


class PromptIn(Request):
    """What openapi.json says of a prompt.  `shared.prompts.read_prompt` validates it, here and in files."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=MESSAGES_MAX)
    key: str | None = Field(None, min_length=1, max_length=KEY_MAX_CHARS)
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    completion: str | dict[str, Any] | None = Field(None, description="an answer already had: not asked again")
    reference: str | None = Field(None, description="the right answer where it is known; the teacher is scored by it")


class _ListOfPrompts:
    """What openapi.json says of a list that `to_prompts` validates."""

    @classmethod
    def __get_pydantic_json_schema__(cls, _: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(TypeAdapter(list[str | PromptIn]).core_schema)


class InlineSource(Request):
    """The prompts themselves."""

    type: Literal["inline"]
    prompts: Annotated[list[Any], _ListOfPrompts] = Field(min_length=1)


class FileSource(Request):
    """The prompts of an uploaded file."""

    type: Literal["file"]
    file_id: str = Field(min_length=1, max_length=100, examples=["pf_06cr9d2v7r3k5m8n0p2q4s6t8v0w2x4y6z"])


class JobSource(Request):
    """The prompts of an earlier job of yours; what it has paid for is reused where teacher and parameters are equal."""

    type: Literal["job"]
    job_id: str = Field(min_length=1, max_length=100, examples=["job_06cr9d2v7r3k5m8n0p2q4s6t8v0w2x4y6z"])


class StoredCompletionsSource(Request):
    """The completions that a provider stores under this metadata, asked with `store`: prompts and answers at once, and
    nothing is generated.  Those that other jobs than yours have stored are left out."""

    type: Literal["stored_completions"]
    provider: Provider
    model: Model | None = Field(None, description="that has answered; without it, the teacher's")
    metadata: Annotated[dict[str, Any], AfterValidator(_metadata)] = Field(
        min_length=1, examples=[{"distillation": "teams_dataset"}]
    )


SourceIn = Annotated[InlineSource | FileSource | JobSource | StoredCompletionsSource, Field(discriminator="type")]


class CurationIn(Request):
    min_accepted: int = Field(10, ge=1, le=1_000_000)
    dedupe: bool = True
    response_schema: dict[str, Any] | None = None
    max_output_chars: int | None = Field(None, ge=1)


class SplitIn(Request):
    validation: float = Field(0.1, ge=0, lt=1)
    holdout: float = Field(0.2, ge=0, lt=1)
    seed: int = Field(0, ge=0, le=2_147_483_647)

    @model_validator(mode="after")
    def _something_left(self) -> Self:
        if self.validation + self.holdout >= 1:
            raise broken("invalid_value", "must leave a share for training: validation + holdout < 1")
        return self


class EvaluationIn(Request):
    graders: list[dict[str, Any]] = Field([{"type": "text_similarity"}], max_length=64)
    min_score: float | None = Field(None, ge=0, le=1)


class BudgetIn(Request):
    max_cost_usd: Usd | None = None
    on_limit: Literal["pause", "fail"] = "pause"

    def to_domain(self) -> domain.Budget:
        limit = None if self.max_cost_usd is None else parse_usd(self.max_cost_usd)
        return domain.Budget(max_cost_nano=limit, on_limit=self.on_limit)


def _event_types(types: list[str]) -> list[str]:
    if not set(types) <= set(EVENT_TYPES):
        raise broken("invalid_value", f"must name event types: {', '.join(EVENT_TYPES)}")
    return list(dict.fromkeys(types))


class WebhookIn(Request):
    url: str = Field(min_length=1, max_length=2_048)
    events: Annotated[list[str], AfterValidator(_event_types)] = Field(
        list(DEFAULT_EVENTS), min_length=1, max_length=len(EVENT_TYPES)
    )


EventTypes = Annotated[
    list[str],
    AfterValidator(_event_types),
    Field(min_length=1, max_length=len(EVENT_TYPES), description="see GET /v1/webhook_event_types"),
]
EndpointUrl = Annotated[str, Field(min_length=1, max_length=2_048, examples=["https://ci.example.com/hooks/distill"])]
EndpointText = Annotated[str, Field(min_length=1, max_length=500)]


class WebhookEndpointCreate(Request):
    """Where you are told of what happens to any of your jobs."""

    url: EndpointUrl
    events: EventTypes = list(DEFAULT_EVENTS)
    description: EndpointText | None = None
    enabled: bool = True


class WebhookEndpointChange(Request):
    """What is left out stays as it is; null does too, except for `description`, which it removes."""

    url: EndpointUrl | None = None
    events: EventTypes | None = None
    description: EndpointText | None = None
    enabled: bool | None = None

    def changed(self) -> dict[str, Any]:
        given = self.model_dump(exclude_unset=True)
        return {name: value for name, value in given.items() if value is not None or name == "description"}


class JobCreate(Request):
    """A distillation request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "ticket-triage",
                    "teacher": {"provider": "openai", "model": "gpt-6.1-sol", "params": {"max_completion_tokens": 300}},
                    "students": [{"provider": "openai", "model": "gpt-4.1-mini-2025-04-14", "suffix": "triage"}],
                    "system_prompt": "You triage support tickets.",
                    "source": {"type": "inline", "prompts": ["My invoice is wrong."]},
                    "curation": {"min_accepted": 10},
                    "budget": {"max_cost_usd": "10.00"},
                }
            ]
        }
    )

    name: str | None = Field(None, min_length=1, max_length=200)
    teacher: TeacherIn
    students: list[StudentIn] = Field(min_length=1, max_length=8)
    system_prompt: str | None = Field(None, description="of every prompt that brings no system message of its own")
    source: SourceIn
    store: bool = Field(False, description="let the provider keep the completions, where it can")
    metadata: Annotated[dict[str, Any], AfterValidator(_metadata)] = {}
    curation: CurationIn = CurationIn()
    split: SplitIn = SplitIn()
    evaluation: EvaluationIn = EvaluationIn()
    budget: BudgetIn = BudgetIn()
    deadline_seconds: int = Field(
        86_400, ge=60, le=30 * 86_400, description="from acceptance; for `teacher.mode` batch the default is 3 days"
    )
    retention_days: int = Field(30, ge=1)
    webhook: WebhookIn | None = None

    def to_spec(self) -> domain.JobSpec:
        curation, split, evaluation = self.curation, self.split, self.evaluation
        return domain.JobSpec(
            name=self.name,
            teacher=domain.Teacher(**self.teacher.model_dump()),
            students=[domain.Student(**student.model_dump()) for student in self.students],
            source=self.source.type,
            file_id=FileId(self.source.file_id) if isinstance(self.source, FileSource) else None,
            source_job_id=JobId(self.source.job_id) if isinstance(self.source, JobSource) else None,
            stored=_stored_filter(self.source),
            system_prompt=self.system_prompt,
            store=self.store,
            metadata=self.metadata,
            curation=domain.Curation(**curation.model_dump()),
            split=domain.Split(**split.model_dump()),
            evaluation=domain.Evaluation(**evaluation.model_dump()),
            budget=self.budget.to_domain(),
            deadline_seconds=self._deadline_seconds,
            retention_days=self.retention_days,
            webhook=None if self.webhook is None else domain.WebhookTarget(**self.webhook.model_dump()),
        )

    @property
    def _deadline_seconds(self) -> int:
        """A batch alone may take a day, and what it leaves open another."""
        given = "deadline_seconds" in self.model_fields_set
        return self.deadline_seconds if given or self.teacher.mode == "live" else 3 * 86_400

    def to_prompts(self, *, most: int) -> list[domain.Prompt]:
        """One after the other and not by the model above, so that a thousand broken ones cost twenty errors.

        None where the source only says where they are.  Raises ValidationFailed; `too_many_prompts` before
        looking at any."""
        if not isinstance(self.source, InlineSource):
            return []
        place = "/source/prompts"
        if len(self.source.prompts) > most:
            raise invalid([Fault(place, "too_many_prompts", f"must be at most {most:,}")])
        prompts: list[domain.Prompt] = []
        faults: list[Fault] = []
        for i, given in enumerate(self.source.prompts):
            found = read_prompt(given)
            if isinstance(found, domain.Prompt):
                prompts.append(found)
            else:
                faults += [Fault(f"{place}/{i}{fault.pointer}", fault.code, fault.detail) for fault in found]
            if len(faults) >= FAULTS_MAX:
                break
        if faults:
            raise invalid(faults)
        return prompts


def _stored_filter(source: SourceIn) -> domain.StoredFilter | None:
    if not isinstance(source, StoredCompletionsSource):
        return None
    return domain.StoredFilter(provider=source.provider, model=source.model, metadata=source.metadata)


Scope = Literal["jobs:read", "jobs:write", "data:read", "data:write", "webhooks:write", "admin"]
Tenant = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$", examples=["acme"])]


class ApiKeyCreate(Request):
    """tenant: only the operator's key may name another than its own."""

    tenant: Tenant | None = None
    scopes: Annotated[list[Scope], AfterValidator(lambda scopes: sorted(set(scopes)))] = Field(
        min_length=1, max_length=16
    )
    name: str | None = Field(None, min_length=1, max_length=200)


class Resume(Request):
    budget: BudgetIn | None = None


# --- responses -------------------------------------------------------------------------------------------------------


class Response(BaseModel):
    model_config = ConfigDict(frozen=True)


class Progress(Response):
    prompts_total: int
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
    """What of `spent_usd` each stage took; curating costs nothing."""

    generating_usd: str
    training_usd: str
    evaluating_usd: str


class Tokens(Response):
    """Tokens of all calls whose answer arrived, as the provider counted them."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class Cost(Response):
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


class Steps(Response):
    step: int | None
    total_steps: int | None


class StudentOut(Response):
    provider: str
    model: str
    method: str
    hyperparameters: dict[str, Any]
    suffix: str | None
    seed: int | None
    fine_tuning_job_id: str | None
    status: str | None
    fine_tuned_model: str | None
    shutdown_date: str | None
    trained_tokens: int | None
    estimated_finish_at: int | None
    progress: Steps
    error: JobError | None


class CurationOut(Response):
    min_accepted: int
    dedupe: bool
    response_schema: dict[str, Any] | None
    max_output_chars: int | None


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


def _spec_fields(spec: domain.JobSpec, prompts_total: int) -> dict[str, Any]:
    hook = spec.webhook
    limit = spec.budget.max_cost_nano
    return {
        "name": spec.name,
        "teacher": TeacherOut(
            provider=spec.teacher.provider,
            model=spec.teacher.model,
            params=spec.teacher.params,
            mode=spec.teacher.mode,
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
            **_spec_fields(job.spec, counters.prompts_total),
            id=job.id,
            object="distillation.job",
            version=job.version,
            status=job.status,
            stage=job.stage,
            paused_reason=job.paused_reason,
            created_at=job.created_at_ms // 1000,
            started_at=_seconds(job.started_at_ms),
            finished_at=_seconds(job.finished_at_ms),
            deadline_at=_seconds(job.deadline_at_ms),
            expires_at=_seconds(job.expires_at_ms),
            students=[
                _student(student, tune) for student, tune in zip(job.spec.students, job.fine_tunes or (), strict=False)
            ],
            progress=Progress(
                prompts_total=counters.prompts_total,
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
            evaluating_usd=usd(money.spent_nano - money.generating_nano - training),
        ),
        unpriced_calls=job.counters.unpriced_calls,
    )


def _student(student: domain.Student, tune: domain.FineTune) -> StudentOut:
    return StudentOut(
        provider=student.provider,
        model=student.model,
        method=student.method,
        hyperparameters=student.hyperparameters,
        suffix=student.suffix,
        seed=student.seed,
        fine_tuning_job_id=tune.fine_tuning_job_id,
        status=tune.status,
        fine_tuned_model=tune.fine_tuned_model,
        shutdown_date=tune.shutdown_date,
        trained_tokens=tune.trained_tokens,
        estimated_finish_at=tune.estimated_finish_at,
        progress=Steps(step=tune.step_number, total_steps=tune.total_steps),
        error=JobError.of(tune.error),
    )


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


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
            }
            for student in plan.spec.students
        ]
        return cls(
            object="distillation.estimate",
            request=RequestedOut(**_spec_fields(plan.spec, plan.prompts_total), students=students),
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


class CompletionOut(Response):
    """output: the model's message as it came; null when there was none."""

    id: str
    object: Literal["distillation.completion"]
    job_id: str
    role: str
    model: str
    prompt_key: str | None
    prompt_index: int
    status: str
    reason: str | None
    split: str | None
    messages: list[dict[str, Any]]
    output: dict[str, Any] | None
    finish_reason: str | None
    usage: UsageOut | None
    cost_usd: str | None
    latency_seconds: float | None
    reused: bool
    provider_completion_id: str | None
    provider_request_id: str | None
    error: JobError | None
    metadata: dict[str, str]
    created_at: int


class ApiKeyOut(Response):
    """hint: how the key ends."""

    id: str
    object: Literal["api_key"]
    tenant: str
    name: str | None
    scopes: list[str]
    hint: str
    created_at: int

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(**_key_fields(key))


class NewApiKeyOut(ApiKeyOut):
    """key: shown this once."""

    key: str

    @classmethod
    def made(cls, key: ApiKey, secret: str) -> Self:
        return cls(**_key_fields(key), key=secret)


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": key.tenant,
        "name": key.name,
        "scopes": key.scopes,
        "hint": key.hint,
        "created_at": key.created_at_ms // 1000,
    }


class FileOut(Response):
    """bytes, sha256: of the file as it was sent.  expires_at: from then on no new job can name it."""

    id: str
    object: Literal["distillation.file"]
    filename: str | None
    bytes: int
    prompts: int
    sha256: str
    created_at: int
    expires_at: int

    @classmethod
    def of(cls, file: domain.PromptFile) -> Self:
        return cls(
            id=file.id,
            object="distillation.file",
            filename=file.filename,
            bytes=file.bytes,
            prompts=file.counts.prompts,
            sha256=file.sha256,
            created_at=file.created_at_ms // 1000,
            expires_at=file.expires_at_ms // 1000,
        )


class LeftAtProvider(Response):
    files: list[str]
    fine_tuning_jobs: list[str]
    fine_tuned_models: list[str]


class PurgedOut(Response):
    """What was removed.  left_at_provider: our clean-up does not reach it; delete it there with its id."""

    prompts: int
    completions: int
    events: int
    webhook_deliveries: int
    left_at_provider: LeftAtProvider


class DeletedJobOut(Response):
    """The receipt: `purging`, then `purged`."""

    id: str
    object: Literal["distillation.job.deleted"]
    deleted: Literal[True]
    status: Literal["purging", "purged"]
    deleted_at: int
    purged_at: int | None
    purged: PurgedOut | None

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        found = receipt.purged
        return cls(
            id=receipt.job_id,
            object="distillation.job.deleted",
            deleted=True,
            status="purging" if found is None else "purged",
            deleted_at=receipt.deleted_at_ms // 1000,
            purged_at=_seconds(receipt.purged_at_ms),
            purged=None
            if found is None
            else PurgedOut(
                prompts=found.prompts,
                completions=found.completions,
                events=found.events,
                webhook_deliveries=found.deliveries,
                left_at_provider=LeftAtProvider(
                    files=list(found.provider_files),
                    fine_tuning_jobs=list(found.fine_tuning_jobs),
                    fine_tuned_models=list(found.fine_tuned_models),
                ),
            ),
        )


class WebhookEndpointOut(Response):
    """disabled_reason: `gone` when its receiver has answered 410.  previous_secret_until: so long the secret before the
    last rotation signs as well."""

    id: str
    object: Literal["webhook_endpoint"]
    url: str
    events: list[str]
    description: str | None
    enabled: bool
    disabled_reason: str | None
    previous_secret_until: int | None
    created_at: int

    @classmethod
    def of(cls, endpoint: domain.WebhookEndpoint) -> Self:
        return cls(**_endpoint_fields(endpoint))


class NewWebhookEndpointOut(WebhookEndpointOut):
    """secret: verifies what the endpoint is sent; shown this once."""

    secret: str

    @classmethod
    def made(cls, endpoint: domain.WebhookEndpoint) -> Self:
        return cls(**_endpoint_fields(endpoint), secret=endpoint.secret)


def _endpoint_fields(endpoint: domain.WebhookEndpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "url": endpoint.url,
        "events": endpoint.events,
        "description": endpoint.description,
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        "previous_secret_until": _seconds(endpoint.previous_until_ms or None),
        "created_at": endpoint.created_at_ms // 1000,
    }


class DeliveryAttemptOut(Response):
    """status: of the receiver's answer; null when none came, and then `error` says why."""

    at: int
    status: int | None
    duration_seconds: float
    error: str | None


class WebhookDeliveryOut(Response):
    """One event on its way to one receiver.  event_id: what it carries as `webhook-id`, at every attempt."""

    id: str
    object: Literal["webhook_delivery"]
    endpoint_id: str | None
    job_id: str | None
    event_id: str
    event_type: str
    status: str
    attempts: list[DeliveryAttemptOut]
    created_at: int

    @classmethod
    def of(cls, delivery: domain.Delivery) -> Self:
        return cls(
            id=delivery.id,
            object="webhook_delivery",
            endpoint_id=delivery.endpoint_id,
            job_id=delivery.job_id,
            event_id=delivery.event_id,
            event_type=delivery.event_type,
            status=delivery.status,
            attempts=[
                DeliveryAttemptOut(
                    at=attempt.at_ms // 1000,
                    status=attempt.status,
                    duration_seconds=attempt.duration_ms / 1000,
                    error=attempt.error,
                )
                for attempt in delivery.attempts
            ],
            created_at=delivery.created_at_ms // 1000,
        )


class Deleted(Response):
    id: str
    object: str
    deleted: Literal[True]


class WebhookEventType(Response):
    id: str
    object: Literal["webhook_event_type"]
    description: str
    example: dict[str, Any]


Item = TypeVar("Item")


class Page(Response, Generic[Item]):
    """OpenAI's list shape; its SDK can page it."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_of(data: list[Item], *, has_more: bool) -> Page[Item]:
    ids = [str(getattr(item, "id", "")) for item in data]
    return Page(
        object="list", data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=has_more
    )

"""A distillation request as it comes in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    TypeAdapter,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue, WithJsonSchema
from pydantic_core import CoreSchema

from api.schemas.common import Request, broken
from api.schemas.webhooks import event_types
from shared import models as domain
from shared.errors import Fault
from shared.ids import FileId, JobId
from shared.prompts import FAULTS_MAX, KEY_MAX_CHARS, MESSAGES_MAX, Texts, read_prompt
from shared.rules import invalid, parse_usd
from shared.webhooks import DEFAULT_EVENTS, EVENT_TYPES


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


def _auto_or(kind: type[int] | type[float], low: float, high: float) -> tuple[BeforeValidator, WithJsonSchema]:
    def check(value: Any) -> Any:
        kinds = (int,) if kind is int else (int, float)
        fits = isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high
        if value == "auto" or fits:
            return value
        noun = "a whole number" if kind is int else "a number"
        raise broken("invalid_value", f'must be "auto" or {noun} from {low:g} to {high:g}')

    number = {"type": "integer" if kind is int else "number", "minimum": low, "maximum": high}
    return BeforeValidator(check), WithJsonSchema({"anyOf": [{"const": "auto"}, number]})


_Epochs = Annotated[Any, *_auto_or(int, 1, 50)]
_BatchSize = Annotated[Any, *_auto_or(int, 1, 256)]
_Multiplier = Annotated[Any, *_auto_or(float, 1e-6, 1_000)]
_Beta = Annotated[Any, *_auto_or(float, 1e-6, 2)]


def _printed(name: str) -> str:
    if domain.CONTROL.search(name):
        raise broken("invalid_value", "must not have control characters")
    return name


Provider = Annotated[str, Field(min_length=1, max_length=64, examples=["openai"]), AfterValidator(_printed)]
Model = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printed)]


class TeacherIn(Request):
    provider: Provider
    model: Model
    params: dict[str, Any] = Field({}, description="Chat Completions parameters; checked against what the model takes")
    mode: Literal["live", "batch"] = Field(
        "live", description="batch: half the price, each answer up to a day later; where the provider serves batches"
    )
    samples: int = Field(1, ge=1, le=8, description="answers to each prompt, of which curating keeps the best")


class HyperparametersIn(Request):
    """`n_epochs`, `batch_size`, `learning_rate_multiplier`, for `dpo` also `beta`, and what else the student's provider
    is documented to take (docs/providers.md), such as `lora_r`."""

    model_config = ConfigDict(extra="allow")

    n_epochs: _Epochs = "auto"
    batch_size: _BatchSize = "auto"
    learning_rate_multiplier: _Multiplier = "auto"
    beta: _Beta | None = None  # of dpo, where the default is auto


class WandbIn(Request):
    project: str = Field(min_length=1, max_length=128)
    name: str | None = Field(None, min_length=1, max_length=128)
    entity: str | None = Field(None, min_length=1, max_length=128)
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(None, max_length=32)


class IntegrationIn(Request):
    """Where the provider sends the metrics of the training; its key for it is set at the provider."""

    type: Literal["wandb"]
    wandb: WandbIn


class StudentIn(Request):
    provider: Provider
    model: Model
    method: Literal["supervised", "dpo"] = Field(
        "supervised", description="dpo: learns from pairs of the teacher's samples, the kept one and the worst"
    )
    hyperparameters: HyperparametersIn = HyperparametersIn()
    suffix: str | None = Field(None, min_length=1, max_length=64)
    seed: int | None = Field(None, ge=0, le=2_147_483_647)
    integrations: list[IntegrationIn] = Field([], max_length=5)

    def to_domain(self) -> domain.Student:
        integrations = [integration.model_dump(exclude_none=True) for integration in self.integrations]
        hyperparameters = vars(self.hyperparameters) | (self.hyperparameters.model_extra or {})
        if hyperparameters["beta"] is None:
            del hyperparameters["beta"]
            hyperparameters |= {"beta": "auto"} if self.method == "dpo" else {}
        return domain.Student(**vars(self) | {"integrations": integrations, "hyperparameters": hyperparameters})


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
    grader: dict[str, Any] | None = Field(
        None,
        description="one grader as in evaluation.graders: its score chooses the best sample; text graders compare with"
        " the prompt's reference, a model as judge rates each answer on its own",
    )
    min_score: float | None = Field(
        None, ge=0, le=1, description="answers with a lower score of the grader are left out"
    )


class SplitIn(Request):
    """Shares of the prompts.  Each prompt falls into one by a hash with the seed, and keeps it when the set grows; so
    the sizes are the shares on average, and by chance where there are few prompts."""

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


class WebhookIn(Request):
    url: str = Field(min_length=1, max_length=2_048)
    events: Annotated[list[str], AfterValidator(event_types)] = Field(
        list(DEFAULT_EVENTS), min_length=1, max_length=len(EVENT_TYPES)
    )


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
    students: list[StudentIn] = Field(min_length=1, max_length=domain.STUDENTS_MAX)
    system_prompt: str | None = Field(None, description="of every prompt that brings no system message of its own")
    source: SourceIn
    store: bool = Field(False, description="let the provider keep the completions, where it can")
    metadata: Annotated[dict[str, Any], AfterValidator(_metadata)] = Field({})
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
            teacher=domain.Teacher(**vars(self.teacher)),
            students=[student.to_domain() for student in self.students],
            source=self.source.type,
            file_id=FileId(self.source.file_id) if isinstance(self.source, FileSource) else None,
            source_job_id=JobId(self.source.job_id) if isinstance(self.source, JobSource) else None,
            stored=_stored_filter(self.source),
            system_prompt=self.system_prompt,
            store=self.store,
            metadata=self.metadata,
            curation=domain.Curation(**vars(curation)),
            split=domain.Split(**vars(split)),
            evaluation=domain.Evaluation(**vars(evaluation)),
            budget=self.budget.to_domain(),
            deadline_seconds=self._deadline_seconds,
            retention_days=self.retention_days,
            webhook=None if self.webhook is None else domain.WebhookTarget(**vars(self.webhook)),
        )

    @property
    def _deadline_seconds(self) -> int:
        """A batch alone may take a day, and what it leaves open another."""
        given = "deadline_seconds" in self.model_fields_set
        return self.deadline_seconds if given or self.teacher.mode == "live" else 3 * 86_400

    def to_prompts(self, *, most: int) -> Sequence[domain.Prompt]:
        """One after the other and not by the model above, so that a thousand broken ones cost twenty errors.

        None where the source only says where they are.  Raises ValidationFailed; `too_many_prompts` before
        looking at any."""
        if not isinstance(self.source, InlineSource):
            return []
        place = "/source/prompts"
        if len(self.source.prompts) > most:
            raise invalid([Fault(place, "too_many_prompts", f"must be at most {most:,}")])
        if (texts := Texts.of(self.source.prompts)) is not None:
            return texts
        prompts: list[domain.Prompt] = []
        faults: list[Fault] = []
        keys: set[str] = set()
        for i, given in enumerate(self.source.prompts):
            found = read_prompt(given)
            if isinstance(found, domain.Prompt):
                prompts.append(found)
                if found.key in keys:
                    faults.append(Fault(f"{place}/{i}/key", "duplicate_prompt_key", "is the key of an earlier prompt"))
                elif found.key is not None:
                    keys.add(found.key)
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


class EndpointIn(Request):
    """Where a student answers that you have deployed."""

    provider: Provider | None = Field(None, description="a configured provider; without it, the student's own")
    model: Model = Field(description="the model or deployment to ask there", examples=["triage-ft"])
    base_model: Model | None = Field(
        None, description="what to ask there for the untrained student; without it, the student's model at its provider"
    )


class Resume(Request):
    budget: BudgetIn | None = None

"""A request as it is shown back."""

from __future__ import annotations

from typing import Any

from api.schemas.common import Response
from shared import models as domain
from shared.models import usd


class TeacherOut(Response):
    provider: str
    model: str
    params: dict[str, Any]
    mode: str
    samples: int


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

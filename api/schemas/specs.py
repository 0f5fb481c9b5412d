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


def spec_fields(spec: domain.JobSpec, prompts_total: int) -> domain.JsonObject:
    """What `SpecOut` shows, in its order."""
    teacher, stored, curation, hook = spec.teacher, spec.stored, spec.curation, spec.webhook
    limit = spec.budget.max_cost_nano
    return {
        "name": spec.name,
        "teacher": {
            "provider": teacher.provider,
            "model": teacher.model,
            "params": teacher.params,
            "mode": teacher.mode,
            "samples": teacher.samples,
        },
        "system_prompt": spec.system_prompt,
        "source": {
            "type": spec.source,
            "file_id": spec.file_id if spec.source == "file" else None,
            "job_id": spec.source_job_id,
            "provider": stored.provider if stored else None,
            "model": (stored.model or teacher.model) if stored else None,
            "metadata": stored.metadata if stored else None,
            "prompts_total": prompts_total,
        },
        "store": spec.store,
        "metadata": spec.metadata,
        "curation": {
            "min_accepted": curation.min_accepted,
            "dedupe": curation.dedupe,
            "response_schema": curation.response_schema,
            "max_output_chars": curation.max_output_chars,
            "grader": curation.grader,
            "min_score": curation.min_score,
        },
        "split": {"validation": spec.split.validation, "holdout": spec.split.holdout, "seed": spec.split.seed},
        "evaluation": {"graders": spec.evaluation.graders, "min_score": spec.evaluation.min_score},
        "budget": {"max_cost_usd": None if limit is None else usd(limit), "on_limit": spec.budget.on_limit},
        "deadline_seconds": spec.deadline_seconds,
        "retention_days": spec.retention_days,
        "webhook": None if hook is None else {"url": hook.url, "events": hook.events},
    }

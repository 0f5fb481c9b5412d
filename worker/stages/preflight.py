"""Before a job spends anything: does each provider take the key, have the models, and train.

The API has looked already where it had a fresh catalogue (shared/preflight.py); this asks the providers themselves."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import (
    JobFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderTrainingClosed,
)
from shared.models import Advice, FineTune, Job, JobError
from shared.ports import ModelFacts
from shared.preflight import Named, named_models
from shared.retirement import parsed, retirement, retires_soon
from worker.completions import job_error
from worker.stages import Save, Tools

_log: Final = structlog.get_logger()
_NO_TRAINING: Final = (
    "The provider serves no fine-tuning jobs.  Nothing was bought; submit a job with a student at another provider."
)


async def preflight(job: Job, tools: Tools, save: Save) -> JobError | None:
    """Why the job must not begin, or None.  Writes into the row what it learns of the models' last days.

    Raises a `ProviderError` that may pass."""
    looked_up: dict[tuple[str, str], ModelFacts] = {}
    tunes, advice = list(job.fine_tunes), list(job.warnings)
    try:
        for named in named_models(job.spec):
            place = (named.provider, named.model)
            if place not in looked_up:
                looked_up[place] = await tools.providers.models(named.provider).look_up(named.model)
            if (error := _judged(job, named, looked_up[place], tunes, advice)) is not None:
                return error
        for provider in {student.provider for student in job.spec.students}:
            await tools.providers.models(provider).require_training()
    except ProviderModelMissing as error:
        return job_error(error, job.stage, param=_param(named))
    except ProviderTrainingClosed as error:
        return replace(job_error(error, job.stage), message=_NO_TRAINING)
    except ProviderError as error:
        if not error.retryable and not isinstance(error, ProviderQuotaExhausted):
            return job_error(error, job.stage)
        raise
    if tunes != job.fine_tunes or advice != job.warnings:
        await save({"fine_tunes": tunes, "warnings": advice})
    return None


async def last_day(tools: Tools, provider: str, model: str, otherwise: str | None) -> str | None:
    """When a freshly trained model retires.  otherwise: its base's day, where the provider does not say."""
    try:
        facts = await tools.providers.models(provider).look_up(model)
    except (ProviderError, JobFailed) as error:
        _log.info("last_day_unknown", provider=provider, code=error.code)
        return otherwise
    return facts.model.shutdown_date or otherwise


def _judged(job: Job, named: Named, facts: ModelFacts, tunes: list[FineTune], advice: list[Advice]) -> JobError | None:
    shutdown_date = facts.model.shutdown_date
    _, kind, number, *_ = named.pointer.split("/")
    if kind == "students":
        tunes[int(number)] = replace(tunes[int(number)], shutdown_date=shutdown_date)
    today = parsed(facts.today) or _today()
    match retirement(shutdown_date, today, job.spec):
        case "retired":
            return JobError(
                code="model_retired",
                message=f"The provider retired this model on {shutdown_date}.  Nothing was bought; submit a new job"
                " with the model that the provider names as its replacement.",
                param=_param(named),
                stage=job.stage,
            )
        case "soon":
            found = retires_soon(named.pointer, shutdown_date)
            if found not in advice:
                advice.append(found)
    return None


def _param(named: Named) -> str:
    return named.pointer[1:].replace("/", ".")


def _today() -> date:
    return datetime.now(UTC).date()

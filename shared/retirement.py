"""When models and trainings end, as pure decisions over dates (UTC).  Dates of models are the provider's."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Final, Literal

from shared.models import Advice, JobSpec

CLOSING_NOTICE_DAYS: Final = 45


def retirement(shutdown_date: str | None, today: date, spec: JobSpec) -> Literal["retired", "soon"] | None:
    """soon: before the job's deadline and retention are over.  A date that cannot be read says nothing."""
    day = parsed(shutdown_date)
    if day is None:
        return None
    if is_retired(shutdown_date, today):
        return "retired"
    lifetime = timedelta(seconds=spec.deadline_seconds, days=spec.retention_days)
    return "soon" if day <= today + lifetime else None


def is_retired(shutdown_date: str | None, today: date) -> bool:
    """A date that cannot be read says nothing."""
    day = parsed(shutdown_date)
    return day is not None and day <= today


def retires_soon(pointer: str, shutdown_date: str | None) -> Advice:
    """pointer: of the model, /students/0/model."""
    return Advice(
        code="model_retires_soon",
        message=f"{pointer[1:].replace('/', '.')} retires on {shutdown_date}, before this job's deadline and retention "
        "are over; what is trained on it goes with it.",
    )


def training_closes(last_day: date, today: date) -> Literal["closed", "soon"] | None:
    """last_day: on which the provider takes new trainings."""
    if today > last_day:
        return "closed"
    return "soon" if today + timedelta(days=CLOSING_NOTICE_DAYS) >= last_day else None


def parsed(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text is not None else None
    except ValueError:
        return None

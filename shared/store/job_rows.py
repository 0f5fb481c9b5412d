"""A job as its row has it: fields of a hash, JSON where they have structure; written by one version, read by others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import msgspec
import structlog

from shared.errors import NewerVersion
from shared.ids import JobId, TenantId
from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.models import (
    STUDENTS_MAX,
    Advice,
    BatchRun,
    Counters,
    Event,
    FineTune,
    Import,
    Job,
    JobError,
    JobSpec,
    Manifest,
    Money,
    PromptDefaults,
    StudentEndpoint,
    Usage,
)

T = TypeVar("T")
_log: Final = structlog.get_logger()
_JSON_FIELDS: Final[Mapping[str, Any]] = {
    "spec": JobSpec,
    "fine_tunes": list[FineTune],
    "batches": list[BatchRun],
    "manifest": Manifest,
    "warnings": list[Advice],
    "error": JobError,
    "failing": JobError,
    "prompt_defaults": PromptDefaults,
    "imported": Import,
    **{f"endpoint_{number}": StudentEndpoint for number in range(STUDENTS_MAX)},
}
_decoders: Final = {name: msgspec.json.Decoder(kind) for name, kind in _JSON_FIELDS.items()}


def row_fields(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as the hash keeps them: JSON where they have structure, text else, empty for None."""
    return {
        name: "" if value is None else msgspec.json.encode(value).decode() if name in _JSON_FIELDS else str(value)
        for name, value in values.items()
    }


@dataclass(frozen=True)
class Tallies:
    """Rows of the passes that a job is shown by.  teacher: one per sample."""

    teacher: Sequence[Mapping[bytes, bytes]]
    rating: Mapping[bytes, bytes] = field(default_factory=dict)


@contextmanager
def reading(job_id: JobId) -> Iterator[None]:
    """Raises NewerVersion where the block meets values that this version does not know."""
    try:
        yield
    except (ValueError, msgspec.MsgspecError) as error:
        _log.error(
            "job_not_readable", job_id=job_id, error=type(error).__name__, place=str(error).rpartition(" at ")[2]
        )
        raise NewerVersion(f"The job {job_id} was written by a newer version of the service than this one.") from None


def spec_of(text: bytes) -> JobSpec:
    """Raises msgspec.MsgspecError where this version does not know what it says."""
    return cast("JobSpec", _decoders["spec"].decode(text))


def job_of(job_id: JobId, row: Mapping[bytes, bytes], tallies: Tallies) -> Job:
    """Raises NewerVersion."""
    with reading(job_id):
        return _parsed(job_id, row, tallies)


def _parsed(job_id: JobId, row: Mapping[bytes, bytes], tallies: Tallies) -> Job:
    def text(name: str) -> str | None:
        value = row.get(name.encode(), b"")
        return value.decode() or None

    def number(name: str) -> int | None:
        value = text(name)
        return None if value is None else int(value)

    def parsed(name: str, default: T) -> T:
        value = row.get(name.encode(), b"")
        return cast("T", _decoders[name].decode(value)) if value else default

    def tally(name: str) -> int:
        return sum(int(sample.get(name.encode(), b"0")) for sample in tallies.teacher)

    stage, paused = text("stage"), text("paused_reason")
    batches: list[BatchRun] = parsed("batches", [])
    return Job(
        id=job_id,
        tenant=TenantId(text("tenant") or ""),
        spec=spec_of(row[b"spec"]),
        status=JobStatus(text("status") or ""),
        version=number("version") or 0,
        created_at_ms=number("created_at_ms") or 0,
        stage=Stage(stage) if stage else None,
        started_at_ms=number("started_at_ms"),
        finished_at_ms=number("finished_at_ms"),
        deadline_at_ms=number("deadline_at_ms"),
        expires_at_ms=number("expires_at_ms"),
        paused_reason=PausedReason(paused) if paused else None,
        counters=Counters(
            prompts_total=number("prompts_total") or 0,
            settled=tally("settled"),
            accepted=tally("accepted"),
            rejected=tally("rejected"),
            failed=tally("failed"),
            reused=tally("reused"),
            possibly_billed=number("possibly_billed") or 0,
            unpriced_calls=number("unpriced_calls") or 0,
        ),
        money=Money(
            estimated_low_nano=number("estimated_low_nano"),
            estimated_high_nano=number("estimated_high_nano"),
            spent_nano=number("spent_nano") or 0,
            reserved_nano=number("reserved_nano") or 0,
            unconfirmed_nano=number("unconfirmed_nano") or 0,
            generating_nano=tally("spent_nano") + sum(run.others_nano for run in batches),
            curating_nano=int(tallies.rating.get(b"spent_nano", b"0")),
            told_share=number("told_share") or 0,
            needs_nano=number("needs_nano") or 0,
            limit_nano=number("limit_nano"),
        ),
        fine_tunes=parsed("fine_tunes", []),
        batches=batches,
        manifest=parsed("manifest", None),
        warnings=parsed("warnings", []),
        error=parsed("error", None),
        failing=parsed("failing", None),
        has_results=text("has_results") == "1",
        retry_of=JobId(retry_of) if (retry_of := text("retry_of")) else None,
        stage_attempts=number("stage_attempts") or 0,
        usage=Usage(**{name: number(name) or 0 for name in Usage.__struct_fields__}),
        chunk_size=number("chunk_size") or 100,
        prompt_defaults=parsed("prompt_defaults", None),
        imported=parsed("imported", None),
        endpoints={
            number: _decoders[f"endpoint_{number}"].decode(value)
            for number in range(STUDENTS_MAX)
            if (value := row.get(b"endpoint_%d" % number))
        },
    )


def known_status(name: str) -> JobStatus | None:
    """None for one that only a newer version knows."""
    return JobStatus(name) if name in {*JobStatus} else None


def events_of(job_id: JobId, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]) -> list[Event]:
    """entries: of the job's stream, each an id that begins with the sequence.  Raises NewerVersion."""
    with reading(job_id):
        return [_event_of(entry_id, fields) for entry_id, fields in entries]


def _event_of(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    event = msgspec.json.decode(fields[b"e"], type=Event)
    return msgspec.structs.replace(event, sequence=int(entry_id.partition(b"-")[0]))

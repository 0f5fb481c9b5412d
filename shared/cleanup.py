"""What a deleted job leaves at its providers: named in a note of ids alone, worked off one by one, told in the receipt.

The note is written in the same step as the deletion, so our copies can go at once, also while a provider is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from msgspec.structs import replace

from shared.ids import JobId

_RETRY_BASE_SECONDS: Final = 5.0
_RETRY_CAP_SECONDS: Final = 3_600.0


class Kind(StrEnum):
    """Of a remnant; says how to be rid of it."""

    TRAININGS = "trainings"  #: fine-tuning jobs of a training file, to be looked up: a submission whose answer was lost
    TRAINING = "training"  #: a fine-tuning job that may still run, to be cancelled
    TRAINED = "trained"  #: a fine-tuning job: once it has ended, its result files and all its models are known
    FILE = "file"  #: training or validation examples, or what a training wrote of its steps
    FILES = "files"  #: files of this prefix that nobody noted: an upload whose answer was lost
    BATCHES = "batches"  #: batches of the job, or of an input file, to be looked up: a submission whose answer was lost
    BATCH = "batch"  #: one batch: once it has ended, its files are known
    BATCH_FILE = "batch_file"  #: questions, answers or errors of a batch
    BATCH_FILES = "batch_files"  #: as `files`, of batches
    STORED = "stored_completions"  #: completions with the job's id in their metadata
    MODEL = "model"  #: a fine-tuned model or one of its checkpoints, on request alone


class Remnant(msgspec.Struct, frozen=True, kw_only=True):
    """One thing, or one kind of thing, that a provider keeps of a job.  id: the provider's, a prefix, or our job's."""

    kind: Kind
    provider: str
    id: str


class Cleanup(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How far the clean-up has come.  Without content: ids and counts.

    not_before: unix s; what is older at the provider is not the job's.  ended_at_ms: when the job did; an answer that
    was in flight then may show a little later.  remnants: still to go.  refused: the provider will not delete them.
    models: fine-tuned models that nobody asked to delete.  models_wanted: somebody did, also for those yet to be found.
    after: stored completions up to this id are not the job's.
    deleting: stored completions that were listed, at most a page; gone but not yet counted, should a worker vanish.
    deleted: numbers by kind.  failures: looks in a row that a provider failed.  over: nothing more will be tried, since
    over_at_ms."""

    job_id: JobId
    not_before: int
    ended_at_ms: int
    remnants: list[Remnant] = []
    refused: list[Remnant] = []
    models: list[Remnant] = []
    models_wanted: bool = False
    fine_tuning_jobs: list[str] = []
    after: str | None = None
    deleting: list[str] = []
    deleted: dict[str, int] = {}
    failures: int = 0
    progressed_at_ms: int = 0
    over: bool = False
    over_at_ms: int | None = None

    @property
    def left(self) -> list[Remnant]:
        """All that is known to be there still."""
        return [*self.remnants, *self.refused, *self.models]


def with_models(cleanup: Cleanup, *, now_ms: int) -> Cleanup:
    """The fine-tuned models too; also when the rest is over."""
    if not cleanup.models:
        return replace(cleanup, models_wanted=True)
    remnants = [*cleanup.remnants, *cleanup.models]
    return replace(
        cleanup, remnants=remnants, models=[], models_wanted=True, over=False, over_at_ms=None, progressed_at_ms=now_ms
    )


def gone(
    cleanup: Cleanup, remnant: Remnant, *, now_ms: int, found: Sequence[Remnant] = (), deleted: int = 0
) -> Cleanup:
    """The remnant is no more, or was looked into: what was `found` there comes after all others.  Models stay where
    nobody asked for them."""
    counted = with_count(cleanup.deleted, remnant.kind, deleted)
    remnants = [other for other in cleanup.remnants if other != remnant]
    known = set(cleanup.left)
    fresh = [new for new in dict.fromkeys(found) if new not in known]
    kept = [] if cleanup.models_wanted else [new for new in fresh if new.kind is Kind.MODEL]
    remnants += [new for new in fresh if new not in kept]
    models = [*cleanup.models, *kept]
    return replace(cleanup, remnants=remnants, models=models, deleted=counted, failures=0, progressed_at_ms=now_ms)


def given_up(cleanup: Cleanup, *remnants: Remnant) -> Cleanup:
    """These stay where they are."""
    kept = [other for other in cleanup.remnants if other not in remnants]
    return replace(cleanup, remnants=kept, refused=[*cleanup.refused, *remnants])


def with_count(deleted: Mapping[str, int], kind: Kind, more: int) -> dict[str, int]:
    return {**deleted, kind: deleted.get(kind, 0) + more} if more else dict(deleted)


def after_failed_look(
    cleanup: Cleanup, *, now_ms: int, patience_seconds: float, jitter: float, wait_seconds: float = 0.0
) -> tuple[Cleanup, float | None]:
    """(the note, seconds until the next look; None when it has been tried for long enough).

    wait_seconds: what the provider asked for.  jitter: in [0, 1), drawn by the caller."""
    if now_ms - cleanup.progressed_at_ms >= patience_seconds * 1000:
        return replace(given_up(cleanup, *cleanup.remnants), over=True), None
    failures = cleanup.failures + 1
    wait = min(_RETRY_CAP_SECONDS, _RETRY_BASE_SECONDS * 2 ** min(failures - 1, 16)) * (1 + jitter) / 2
    return replace(cleanup, failures=failures), max(wait, min(wait_seconds, _RETRY_CAP_SECONDS))

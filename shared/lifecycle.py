"""The life of a job, as one table.  Refusals, script arguments, the README's diagram and the tests derive from it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class JobStatus(StrEnum):
    QUEUED = "queued"  #: accepted, waiting for a worker
    RUNNING = "running"  #: workers advance it; `Job.stage` says where it stands
    PAUSED = "paused"  #: waits for its owner; `Job.paused_reason` says why
    CANCELLING = "cancelling"  #: stop requested, the worker has not let go yet
    SUCCEEDED = "succeeded"  #: the student is trained and graded
    FAILED = "failed"  #: ended by an error, kept in `Job.error`
    CANCELLED = "cancelled"  #: stopped on request


S = JobStatus
MOVES: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    S.QUEUED: frozenset({S.RUNNING, S.PAUSED, S.CANCELLED}),
    S.RUNNING: frozenset({S.PAUSED, S.CANCELLING, S.SUCCEEDED, S.FAILED}),
    S.PAUSED: frozenset({S.RUNNING, S.CANCELLING, S.FAILED}),
    S.CANCELLING: frozenset({S.CANCELLED, S.FAILED}),
    S.SUCCEEDED: frozenset(),
    S.FAILED: frozenset(),
    S.CANCELLED: frozenset(),
}
TERMINAL: Final = frozenset(status for status, targets in MOVES.items() if not targets)


def sources(target: JobStatus) -> frozenset[JobStatus]:
    """The statuses from which a job may move to `target`."""
    return frozenset(status for status, targets in MOVES.items() if target in targets)


class Stage(StrEnum):
    """Where a running job stands.  Stages follow each other in the order of definition."""

    GENERATING = "generating"  #: the teacher answers the prompts
    CURATING = "curating"  #: its completions become a dataset
    TRAINING = "training"  #: the provider fine-tunes the students
    EVALUATING = "evaluating"  #: teacher, base and students answer the holdout and are graded

    @property
    def following(self) -> Stage | None:
        stages = list(Stage)
        place = stages.index(self) + 1
        return stages[place] if place < len(stages) else None


class PausedReason(StrEnum):
    BUDGET = "budget"  #: the next call could exceed the job's budget; resume with a larger one
    PROVIDER_QUOTA = "provider_quota"  #: the provider's credit is exhausted; top it up, then resume
    REQUESTED = "requested"  #: paused by its owner
    DAILY_SPEND = "daily_spend"  #: the tenant has spent what it may today; goes on by itself the next day (UTC)

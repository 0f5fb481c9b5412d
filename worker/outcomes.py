"""What a stage decides; the engine carries it out under the job's lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.lifecycle import PausedReason
from shared.models import Event, JobError, JsonObject

Fields = Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """The stage is complete; the job goes on to the next one, or has succeeded after the last."""

    set: Fields = field(default_factory=dict)
    events: Sequence[Event] = ()
    results: JsonObject | None = None


@dataclass(frozen=True)
class Wait:
    """Nothing to do for now; look again after so many seconds.  progress: something moved since the last look.
    is_late: the deadline has passed, and calls nobody sooner."""

    seconds: float
    set: Fields = field(default_factory=dict)
    events: Sequence[Event] = ()
    progress: bool = True
    is_late: bool = False


@dataclass(frozen=True)
class Pause:
    """needs_nano: of the budget or of the tenant's spending of a day, to go on."""

    reason: PausedReason
    events: Sequence[Event] = ()
    needs_nano: int = 0


@dataclass(frozen=True)
class Resume:
    """What the job was paused for has passed; it goes on where it stood."""


@dataclass(frozen=True)
class Fail:
    error: JobError
    events: Sequence[Event] = ()
    set: Fields = field(default_factory=dict)
    add: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """What a cancelled job had running elsewhere is stopped, as far as can be."""

    set: Fields = field(default_factory=dict)
    add: Mapping[str, int] = field(default_factory=dict)
    events: Sequence[Event] = ()


Outcome = Done | Wait | Pause | Resume | Fail | Stopped

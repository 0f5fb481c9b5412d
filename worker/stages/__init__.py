"""The four stages of a running job.  Each looks at the row, does one step, and says what should become of the job."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from shared.models import Event, Job
from shared.pricing import Prices
from shared.settings import Settings
from shared.store import Store
from worker.outcomes import Outcome
from worker.providers import Providers


class LeaseLost(Exception):
    """Another worker has the job by now; what this one was about to write does not count."""


class Save(Protocol):
    """Writes fields of the row at once, under the lease, with what there is to tell of it.  add: fields to add to.
    notices: types of webhook events to send.

    Raises `LeaseLost` when another worker has the job."""

    async def __call__(
        self,
        fields: Mapping[str, Any],
        add: Mapping[str, int] = ...,
        events: Sequence[Event] = ...,
        notices: Sequence[str] = ...,
    ) -> None: ...


@dataclass(frozen=True)
class Tools:
    """What stages work with.  wake_pump: a pass has been opened; this process's pump should look now."""

    store: Store
    providers: Providers
    prices: Prices
    settings: Settings
    wake_pump: Callable[[], None]


class StageStep(Protocol):
    async def __call__(self, job: Job, tools: Tools, save: Save) -> Outcome: ...

"""Who gets the next free slot: of the tenant with the fewest calls in flight here, the run with the fewest.

Asking and answering cost the same however many runs there are."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

from shared.ids import TenantId
from worker.runs import Run

T = TypeVar("T")


class Line(Generic[T]):
    """What waits, by the number of slots it has; among equals the one that has waited longest is first."""

    def __init__(self) -> None:
        self._slots: dict[T, int] = {}
        self._waiting: dict[int, dict[T, None]] = {}  # few keys: the numbers of slots that somebody waits with

    def __bool__(self) -> bool:
        return bool(self._slots)

    def __contains__(self, item: T) -> bool:
        return item in self._slots

    def put(self, item: T, slots: int) -> None:
        """Let it wait, or set its number of slots; a changed number puts it behind its equals."""
        if self._slots.get(item) == slots:
            return
        self.drop(item)
        self._slots[item] = slots
        self._waiting.setdefault(slots, {})[item] = None

    def drop(self, item: T) -> None:
        slots = self._slots.pop(item, None)
        if slots is None:
            return
        equals = self._waiting[slots]
        del equals[item]
        if not equals:
            del self._waiting[slots]

    def first(self) -> T:
        """Only of a line in which something waits."""
        return next(iter(self._waiting[min(self._waiting)]))


class Slots:
    """most: calls at once in this process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_flight = 0
        self._of_tenant: Counter[TenantId] = Counter()
        self._tenants: Line[TenantId] = Line()
        self._runs: dict[TenantId, Line[Run]] = {}

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def offer(self, run: Run) -> None:
        """The run has something that waits for a slot."""
        tenant = run.job.tenant
        self._runs.setdefault(tenant, Line()).put(run, run.in_flight)
        self._tenants.put(tenant, self._of_tenant[tenant])

    def withdraw(self, run: Run) -> None:
        """It has nothing that could start now."""
        tenant = run.job.tenant
        line = self._runs.get(tenant)
        if line is None:
            return
        line.drop(run)
        if not line:
            del self._runs[tenant]
            self._tenants.drop(tenant)

    def next(self) -> Run | None:
        """The run that a free slot is for; None when none is free or nobody waits."""
        if self._in_flight >= self._most or not self._tenants:
            return None
        return self._runs[self._tenants.first()].first()

    def take(self, run: Run) -> None:
        self._count(run, 1)

    def release(self, run: Run) -> None:
        self._count(run, -1)

    def _count(self, run: Run, change: int) -> None:
        tenant = run.job.tenant
        run.in_flight += change
        self._in_flight += change
        self._of_tenant[tenant] += change
        if not self._of_tenant[tenant]:
            del self._of_tenant[tenant]
        line = self._runs.get(tenant)
        if line is not None:
            if run in line:
                line.put(run, run.in_flight)
            self._tenants.put(tenant, self._of_tenant[tenant])

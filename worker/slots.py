"""Who gets the next free slot: of the tenant with the fewest calls in flight here, the run with the fewest.

A provider that takes fewer calls at once than the process makes has a queue of its own, so that what it cannot take
keeps nobody else waiting; the runs at all others share one.  Asking and answering cost the same however many runs there
are."""

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

    def fewest(self) -> int:
        """Slots that the first has.  Only of a line in which something waits."""
        return min(self._waiting)

    def first(self) -> T:
        """Only of a line in which something waits."""
        return next(iter(self._waiting[min(self._waiting)]))


class Queue:
    """The runs that share a limit.  most: calls at once of all of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_flight = 0
        self._of_tenant: Counter[TenantId] = Counter()
        self._tenants: Line[TenantId] = Line()
        self._runs: dict[TenantId, Line[Run]] = {}

    @property
    def is_open(self) -> bool:
        """Whether somebody waits who may start."""
        return bool(self._tenants) and self._in_flight < self._most

    def offer(self, run: Run) -> None:
        tenant = run.job.tenant
        self._runs.setdefault(tenant, Line()).put(run, run.in_flight)
        self._tenants.put(tenant, self._of_tenant[tenant])

    def withdraw(self, run: Run) -> None:
        tenant = run.job.tenant
        line = self._runs.get(tenant)
        if line is None:
            return
        line.drop(run)
        if not line:
            del self._runs[tenant]
            self._tenants.drop(tenant)

    def fewest(self) -> int:
        """Calls in this queue of the tenant that is first.  Only of an open one."""
        return self._tenants.fewest()

    def first(self) -> Run:
        """Only of an open one."""
        return self._runs[self._tenants.first()].first()

    def count(self, run: Run, change: int) -> None:
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


class Slots:
    """most: calls at once in this process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_flight = 0
        self._queues: dict[str, Queue] = {}  # the one that has waited longest for a slot is first

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def offer(self, run: Run) -> None:
        """The run has something that waits for a slot."""
        name = self._name(run)
        if name not in self._queues:
            self._queues[name] = Queue(min(self._most, run.max_in_flight))
        self._queues[name].offer(run)

    def withdraw(self, run: Run) -> None:
        """It has nothing that could start now."""
        queue = self._queues.get(self._name(run))
        if queue is not None:
            queue.withdraw(run)

    def next(self) -> Run | None:
        """The run that a free slot is for; None when none is free or nobody waits who may start."""
        if self._in_flight >= self._most:
            return None
        chosen: Queue | None = None
        for queue in self._queues.values():
            if queue.is_open and (chosen is None or queue.fewest() < chosen.fewest()):
                chosen = queue
        return None if chosen is None else chosen.first()

    def take(self, run: Run) -> None:
        name = self._name(run)
        queue = self._queues[name] = self._queues.pop(name)  # behind its equals
        self._in_flight += 1
        queue.count(run, 1)

    def release(self, run: Run) -> None:
        self._in_flight -= 1
        self._queues[self._name(run)].count(run, -1)

    def _name(self, run: Run) -> str:
        """Of the run's queue: its provider, or nothing where the limit of the process is the narrower one."""
        return run.plan.provider if run.max_in_flight < self._most else ""

"""What one worker process holds of one pass: its chunks, the calls that wait, and those that are out."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.models import Job, Prompt
from shared.plan import PassPlan
from shared.ports import CompletionArchive, TeacherPort
from shared.store.passes import PassId, Settlement
from worker.completions import Scribe
from worker.governor import Allowance


@dataclass(eq=False, slots=True)
class Call:
    """One prompt on its way.  id: of the call being made, new for each attempt.  attempts: failures that count.
    reserve_nano: as `Scribe.reserve_nano`."""

    chunk: int
    index: int
    prompt: Prompt
    reserve_nano: int | None
    fingerprint: str
    id: str = ""
    attempts: int = 0
    failures: int = 0


@dataclass(eq=False)
class Run:
    """chunks: those leased, each with the prompts not settled yet.  mine: prompts of which a `Call` lives here, so that
    a chunk that comes back to this process is not asked twice.  max_in_flight: calls at once, of all runs of this
    process, that its provider takes."""

    pass_id: PassId
    plan: PassPlan
    job: Job
    teacher: TeacherPort
    timeout_seconds: float
    max_in_flight: int
    allowance: Allowance
    archive: CompletionArchive | None
    scribe: Scribe
    chunks: dict[int, set[int]] = field(default_factory=dict)
    mine: set[int] = field(default_factory=set)
    queue: deque[Call] = field(default_factory=deque)
    delayed: list[tuple[float, int, Call]] = field(default_factory=list)  # a heap, by the time when they are due
    beginnings: list[Call] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    in_flight: int = 0
    offering: bool = False  # the writer has settlements in hand that the store has not taken yet
    fetching: int = 0  # chunks being leased
    looking: int = 0  # prompts looked up in the ledger or at the provider
    drained: bool = False  # no chunk was free when last asked
    blocked_until: float = 0.0
    stopped: bool = False
    leaving: bool = False  # not among the passes this process draws from any more: nothing further is fetched
    last_answer_at: float = field(default_factory=time.monotonic)
    opened_at: float = field(default_factory=time.monotonic)
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_answers_out(self) -> bool:
        """Whether something paid, or about to be, is not in the store yet."""
        return bool(self.in_flight or self.beginnings or self.settlements or self.offering)

    @property
    def idle(self) -> bool:
        return not (self.has_answers_out or self.queue or self.delayed or self.fetching or self.looking)

    def ready(self, now: float) -> bool:
        """Whether a free slot is of use: something waits, and nothing forbids it."""
        while self.delayed and self.delayed[0][0] <= now:
            self.queue.appendleft(heapq.heappop(self.delayed)[2])
        return bool(self.queue) and not self.stopped and self.blocked_until <= now

    def settle(self, settlement: Settlement) -> None:
        self.settlements.append(settlement)
        self.bell.set()

    def put_back(self, call: Call) -> None:
        """First in the queue again, unless nothing more starts here."""
        if not self.stopped:
            self.queue.appendleft(call)

    def delay(self, call: Call, seconds: float) -> None:
        if self.stopped:
            return
        heapq.heappush(self.delayed, (time.monotonic() + seconds, call.index, call))

    def forget(self, chunk: int, index: int) -> None:
        """The prompt is settled, or another worker's; with its last prompt the chunk goes."""
        self.mine.discard(index)
        left = self.chunks.get(chunk)
        if left is not None:
            left.discard(index)
            if not left:
                del self.chunks[chunk]

    def let_go(self, chunks: Iterable[int]) -> None:
        """The lease of these chunks is lost: what waits of them is not asked, what is out is still stored."""
        gone = set(chunks)
        for chunk in gone:
            self.chunks.pop(chunk, None)
        waiting = [*self.queue, *(entry[2] for entry in self.delayed)]
        self.mine -= {call.index for call in waiting if call.chunk in gone}
        self.queue = deque(call for call in self.queue if call.chunk not in gone)
        self.delayed = [entry for entry in self.delayed if entry[2].chunk not in gone]
        heapq.heapify(self.delayed)

    def stop(self) -> None:
        """Nothing more of this run starts here; what is out is still stored."""
        self.stopped = True
        self.queue.clear()
        self.delayed.clear()
        self.bell.set()

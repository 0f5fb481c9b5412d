"""The supply of calls: chunks of prompts leased from the store, kept while there are signs of life, and given back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog

from shared.errors import StoreError
from shared.store import Store
from shared.store.passes import Holder, PassId
from worker.recovery import Recovery
from worker.runs import Call, Run

T = TypeVar("T")
_log: Final = structlog.get_logger()

_FETCHES_MAX: Final = 4  # chunks of one pass asked for at the same time
_PAUSE_SECONDS: Final = 0.25  # before a store that did not answer is asked for a chunk again


@dataclass(frozen=True)
class Leases:
    """seconds: how long a chunk is ours unless renewed.  takeover_grace_seconds: for the late answers of one who
    vanished.  stall_seconds: without a sign of life for so long, leases are let go."""

    seconds: float
    takeover_grace_seconds: float
    stall_seconds: float


class Supply:
    """offer: something waits for a slot.  spawn: runs beside.  runs: the pump's, for leases to be kept."""

    def __init__(
        self,
        store: Store,
        leases: Leases,
        recovery: Recovery,
        runs: Mapping[PassId, Run],
        *,
        in_flight: int,
        offer: Callable[[Run], None],
        spawn: Callable[[Awaitable[None]], None],
    ) -> None:
        self.token = uuid.uuid4().hex
        self._store = store
        self._leases = leases
        self._recovery = recovery
        self._runs = runs
        self._in_flight = in_flight
        self._offer = offer
        self._spawn = spawn
        self._stopped = False

    def stop(self) -> None:
        """Nothing more is leased or queued."""
        self._stopped = True

    def top_up(self, run: Run) -> None:
        """Fetch ahead where a run holds less than one and a half of its even share of the slots.

        Not more than its provider takes: what one worker cannot ask soon is another's."""
        if self._stopped or run.stopped or run.leaving or run.drained or run.blocked_until > time.monotonic():
            return
        share = min(run.max_in_flight, max(1, self._in_flight // max(1, len(self._runs))))
        missing = share + share // 2 - len(run.mine)
        wanted = min(_FETCHES_MAX, -(-missing // run.job.chunk_size)) - run.fetching
        for _ in range(wanted):
            run.fetching += 1
            self._spawn(self._fetch(run))

    async def _fetch(self, run: Run) -> None:
        """Lease one more chunk and queue what is not settled of it."""
        try:
            claimed = await self._store.passes.claim_chunk(run.pass_id, self.token, lease_seconds=self._leases.seconds)
            if claimed is None:
                run.drained = True
            elif claimed[0] not in run.chunks:  # else: our own lease had run out, and is ours again
                await self._take_up(run, *claimed)
        except StoreError:
            _log.warning("pump_waits_for_store", job_id=run.pass_id.job_id)
            await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            run.fetching -= 1
            run.bell.set()
            self.top_up(run)

    async def _take_up(self, run: Run, chunk: int, holder: Holder) -> None:
        """holder: the last one, who may have lost calls; one that vanished may still be handing in answers."""
        first = chunk * run.job.chunk_size
        run.chunks[chunk] = set()
        if holder == "vanished":
            await asyncio.sleep(self._leases.takeover_grace_seconds)
        try:
            prompts = await self._store.content.prompt_chunk(run.pass_id.job_id, run.plan.prompt_set, chunk)
            settled = await self._store.passes.settled_indexes(run.pass_id, chunk)
            open_ = {index: prompt for index, prompt in enumerate(prompts, start=first) if index not in settled}
            lost = await self._store.passes.lost_calls(run.pass_id, list(open_)) if holder != "nobody" else {}
        except StoreError:
            del run.chunks[chunk]
            await insist(lambda: self._store.passes.give_back(run.pass_id, self.token, [chunk]))
            return
        run.chunks[chunk] = set(open_)
        if not open_:
            del run.chunks[chunk]  # its last answer came late, from the worker that had lost it
        calls: list[Call] = []
        for index, prompt in open_.items():
            if index in run.mine:
                continue
            if run.plan.role == "teacher" and prompt.completion is not None:
                run.settle(run.scribe.supplied(chunk, index, prompt))
                continue
            # What a lost call may cost is told by the one that asks the same again.
            reserve = run.scribe.ceiling_nano if index in lost else run.scribe.reserve_nano
            call = Call(chunk, index, prompt, reserve(prompt, index), run.scribe.fingerprint(prompt))
            run.mine.add(index)
            if index in lost and self._recovery.possible(run, call):
                call.id = lost[index]
                self._spawn(self.recover(run, call))
            else:
                calls.append(call)
        await self.enqueue(run, calls)

    async def enqueue(self, run: Run, calls: list[Call]) -> None:
        """Queue what has to be bought; what the tenant has paid for before is settled from the ledger."""
        run.looking += 1
        try:
            paid = await self._store.passes.paid_before(run.job.tenant, [call.fingerprint for call in calls])
        except StoreError:
            paid = {}  # the tick asks the ledger again before anything is bought
        finally:
            run.looking -= 1
        for call in calls:
            if call.fingerprint in paid:
                run.settle(run.scribe.reused(call.chunk, call.index, paid[call.fingerprint]))
            elif not (run.stopped or self._stopped):
                run.queue.append(call)
        run.bell.set()
        self._offer(run)

    async def recover(self, run: Run, call: Call) -> None:
        """An answer lost on the way: found at the provider it settles the call, else the prompt is asked again."""
        run.looking += 1
        try:
            completion = await self._recovery.find(run, call)
        finally:
            run.looking -= 1
            run.bell.set()
        if completion is not None:
            run.settle(run.scribe.answered(call.chunk, call.index, call.id, completion, call.fingerprint))
        elif not (run.stopped or self._stopped):
            run.queue.append(call)
            self._offer(run)

    async def keep_leases(self) -> None:
        """Renew chunks while there are signs of life; a run without any lets its chunks go to another worker."""
        while True:
            await asyncio.sleep(self._leases.seconds / 4)
            await asyncio.gather(*(self._keep(run) for run in self._runs.values() if run.chunks))

    async def _keep(self, run: Run) -> None:
        held = list(run.chunks)
        if time.monotonic() - run.last_answer_at > self._leases.stall_seconds:
            _log.warning("run_stalls", job_id=run.pass_id.job_id, model=run.plan.model, chunks=len(held))
            run.let_go(held)
            run.last_answer_at = time.monotonic()
            return
        try:
            more, kept = await self._store.passes.renew_chunks(
                run.pass_id, self.token, held, lease_seconds=self._leases.seconds
            )
        except StoreError:
            return
        run.let_go(chunk for chunk in held if chunk not in kept and chunk in run.chunks)
        if not more:
            run.stop()

    async def give_back(self, run: Run) -> None:
        if run.chunks:
            chunks = list(run.chunks)
            await insist(lambda: self._store.passes.give_back(run.pass_id, self.token, chunks))


async def insist(make: Callable[[], Awaitable[T]]) -> T:
    """Do something in the store, however long it is away; every script may be sent again."""
    wait = 0.1
    while True:
        try:
            return await make()
        except StoreError:
            _log.warning("pump_waits_for_store")
            await asyncio.sleep(wait)
            wait = min(wait * 2, 2.0)

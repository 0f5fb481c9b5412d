"""A pass under test: a running job's teacher's pass, and the shortest words for what workers do to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from builders import a_beginning, a_job, a_settlement, accepted, an_end_without_answer, loaded, prompts, standing_at

from shared.completions import StoredCompletion
from shared.lifecycle import JobStatus
from shared.models import Job, Prompt
from shared.store import Store
from shared.store.jobs import Change
from shared.store.passes import Answer, Beginning, Holder, Opening, PassId, PassState, Settlement, TickResult

CHUNK = 4


class Bench:
    """token: of the worker."""

    def __init__(self, store: Store, job: Job) -> None:
        self.store = store
        self.job = job
        self.pass_id = PassId(job.id, "teacher")

    @classmethod
    async def of(cls, store: Store, *, count: int = 10, smoke: int = 0, **fields: Any) -> Self:
        """The pass is open.  fields: of the job."""
        job = await accepted(store, a_job(chunk_size=CHUNK, **fields), prompts(count))
        bench = cls(store, await standing_at(store, job, JobStatus.RUNNING))
        await bench.open(smoke=smoke)
        return bench

    async def open(self, *, smoke: int = 0) -> Opening:
        count = self.job.counters.prompts_total
        return await self.store.passes.open(self.pass_id, prompts=count, chunk_size=CHUNK, smoke=smoke)

    async def claim(self, token: str = "a", *, lease_seconds: float = 30) -> tuple[int, Holder] | None:
        return await self.store.passes.claim_chunk(self.pass_id, token, lease_seconds=lease_seconds)

    async def tick(
        self, token: str = "a", *, settle: Sequence[Settlement] = (), begin: Sequence[Beginning] = ()
    ) -> TickResult:
        return await self.store.passes.tick(self.pass_id, self.job.tenant, token, settle, begin)

    async def begin(self, index: int, call: str, ceiling_nano: int = 100, *, token: str = "a") -> Answer:
        result = await self.tick(token, begin=[a_beginning(index, call, ceiling_nano, chunk_size=CHUNK)])
        return result.answers[0]

    async def settle(self, index: int, call: str | None = None, *, token: str = "a", **fields: Any) -> TickResult:
        return await self.tick(token, settle=[a_settlement(index, call, chunk_size=CHUNK, **fields)])

    async def end(self, index: int, call: str, *, lost: bool, token: str = "a", **fields: Any) -> TickResult:
        ended = an_end_without_answer(index, call, lost=lost, chunk_size=CHUNK, **fields)
        return await self.tick(token, settle=[ended])

    async def money(self) -> tuple[int, int, int, int]:
        """(spent, reserved, unconfirmed, calls that may be billed)."""
        found = await loaded(self.store, self.job.id)
        money = found.money
        return money.spent_nano, money.reserved_nano, money.unconfirmed_nano, found.counters.possibly_billed

    async def state(self) -> PassState:
        found = await self.store.passes.state(self.pass_id)
        assert found is not None
        return found


class Work:
    """A running job whose teacher's pass is open, for pumps to do.  texts: of its prompts."""

    def __init__(self, store: Store, job: Job, source: Sequence[Prompt]) -> None:
        self.store = store
        self.job = job
        self.source = source
        self.pass_id = PassId(job.id, "teacher")
        self.texts = [prompt.messages[-1]["content"] for prompt in source]

    async def open(self, *, smoke: int = 0) -> None:
        await self.store.passes.open(
            self.pass_id, prompts=len(self.source), chunk_size=self.job.chunk_size, smoke=smoke
        )

    async def state(self) -> PassState:
        found = await self.store.passes.state(self.pass_id)
        assert found is not None
        return found

    async def complete(self) -> bool:
        return (await self.state()).complete

    async def halted(self) -> bool:
        return (await self.state()).halt is not None

    async def completions(self) -> dict[int, StoredCompletion]:
        chunks = range(-(-len(self.source) // self.job.chunk_size))
        found: dict[int, StoredCompletion] = {}
        for chunk in chunks:
            found |= await self.store.content.completion_chunk(self.job.id, "teacher", chunk)
        return found

    async def pause_and_resume(self, **changed: Any) -> None:
        job = await loaded(self.store, self.job.id)
        await self.store.jobs.change(job, Change(status=JobStatus.PAUSED))
        await self.store.jobs.change(job, Change(status=JobStatus.RUNNING, set=changed))
        await self.open()


async def work(
    store: Store,
    count: int = 10,
    *,
    smoke: int = 0,
    chunk_size: int = 5,
    source: Sequence[Prompt] | None = None,
    **job_fields: Any,
) -> Work:
    """source: its prompts, `count` of them by themselves.  job_fields: of the job."""
    source = prompts(count) if source is None else source
    job = await accepted(store, a_job(chunk_size=chunk_size, **job_fields), source)
    made = Work(store, await standing_at(store, job, JobStatus.RUNNING), source)
    await made.open(smoke=smoke)
    return made

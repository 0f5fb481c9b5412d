"""Calls that were out when their job ended: none is forgotten, and nobody waits for one that will not be answered."""

import asyncio
from collections import Counter

import pytest
from builders import a_job, accepted, loaded, prompts
from doubles import Lab, ScriptedTeacher, ScriptedTrainer, an_answer, prices_of_a_nano
from engines import an_engine, in_training, rung
from pumps import pumping, until

from shared.errors import ProviderUnavailable
from shared.lifecycle import JobStatus
from shared.models import FineTune
from shared.pricing import Prices
from shared.store.jobs import Change
from shared.store.passes import PassId
from worker.afterwards import Afterwards

pytestmark = pytest.mark.anyio
S = JobStatus
OUT = 6
COST = 15  # of one answer


@pytest.fixture
def store(real_store):
    return real_store


@pytest.fixture
def prices(tmp_path):
    return prices_of_a_nano(tmp_path)


def afterwards_of(store, prices=None, **fields):
    lab = Lab(prices="lab").settings("lab")
    return Afterwards(store, prices or Prices(), {"lab": lab}, **fields)


async def with_calls_out(store, teacher, *, limit_nano=10**12):
    """A job that is generating: some answers are there, the others out."""
    job = await accepted(store, a_job(chunk_size=5, limit_nano=limit_nano), prompts(OUT))
    await an_engine(store, Lab(teacher, prices="lab")).advance(job.id)
    await until(lambda: teacher.at_once == OUT)
    return job


async def ended(store, job, status):
    """By its owner, or by a deadline that has passed."""
    change = Change(status=S.CANCELLING) if status is S.CANCELLED else Change(set={"deadline_at_ms": 1})
    await store.jobs.change(job, change)
    found = await rung(store, an_engine(store), job)
    assert found.status is status
    return found


async def due(store, job):
    """Whether somebody looks after the job now."""
    return f"out:{job.id}" in await store.sweep(grace_seconds=0.001, limit=100)


async def money(store, job):
    """(spent, reserved, unconfirmed, calls that may be billed), and what its tenant has reserved and not confirmed."""
    found, standing = await loaded(store, job.id), await store.spending.standing(job.tenant)
    of_job = found.money
    return (
        (of_job.spent_nano, of_job.reserved_nano, of_job.unconfirmed_nano, found.counters.possibly_billed),
        (standing.reserved_nano, standing.today.unconfirmed_nano),
    )


@pytest.mark.parametrize("status", [S.CANCELLED, S.FAILED])
async def test_calls_lost_with_their_worker_are_counted_within_its_lease(store, prices, status, within_a_day):
    stuck = ScriptedTeacher(seconds=60)
    async with pumping(store, Lab(stuck, prices="lab"), prices=prices):
        job = await with_calls_out(store, stuck)
        await ended(store, job, status)
        (_, reserved, _, _), of_tenant = await money(store, job)
        assert reserved > 0
        assert of_tenant == (0, reserved)
    afterwards = afterwards_of(store, late_seconds=0.05)
    assert await due(store, job)

    await afterwards.look(job.id)
    assert await money(store, job) == ((0, reserved, 0, 0), (0, reserved)), "the worker may be slow"
    assert not await due(store, job)
    await until(lambda: due(store, job), seconds=2)
    await afterwards.look(job.id)

    assert await money(store, job) == ((0, 0, reserved, OUT), (0, reserved))
    assert not await due(store, job)


async def test_so_they_are_at_the_most_they_can_cost_where_nothing_is_limited(store, prices, within_a_day):
    stuck = ScriptedTeacher(seconds=60)
    async with pumping(store, Lab(stuck, prices="lab"), prices=prices):
        limited = await with_calls_out(store, stuck)
        await ended(store, limited, S.CANCELLED)
        (_, ceiling, _, _), _ = await money(store, limited)
    other = ScriptedTeacher(seconds=60)
    async with pumping(store, Lab(other, prices="lab"), prices=prices):
        job = await with_calls_out(store, other, limit_nano=None)
        await ended(store, job, S.CANCELLED)
        assert await money(store, job) == ((0, 0, 0, 0), (0, ceiling))

    async def counted():
        await afterwards_of(store, prices, late_seconds=0.05).look(job.id)
        return (await money(store, job))[0][3]

    await until(counted)
    assert await money(store, job) == ((0, 0, ceiling, OUT), (0, 2 * ceiling))


async def test_answers_that_come_after_the_end_of_their_job_are_paid_and_none_is_lost(store, prices, within_a_day):
    teacher = ScriptedTeacher(seconds=1.5)
    afterwards = afterwards_of(store, late_seconds=0.05)
    async with pumping(store, Lab(teacher, prices="lab"), prices=prices):
        job = await with_calls_out(store, teacher)
        await ended(store, job, S.CANCELLED)

        async def looked_after():
            if await due(store, job):
                await afterwards.look(job.id)
            (spent, reserved, unconfirmed, lost), _ = await money(store, job)
            assert (unconfirmed, lost) == (0, 0), "its worker is alive, and keeps its lease"
            return spent == COST * OUT and reserved == 0

        await until(looked_after)
        await until(lambda: due(store, job))
        await afterwards.look(job.id)

    assert await money(store, job) == ((COST * OUT, 0, 0, 0), (0, 0))
    assert not await due(store, job)


async def test_what_nobody_accounts_for_at_the_end_may_be_billed(store, within_a_day):
    class Deaf(ScriptedTrainer):
        async def cancel(self, job_id):
            raise ProviderUnavailable("Down.")

    job = await in_training(store)
    engine = an_engine(store, Lab(trainer=Deaf()), stage_attempts_max=2)
    await store.jobs.change(job, Change(add={"reserved_nano": 500}))
    tune = FineTune(step="submitted", fine_tuning_job_id="ftjob-1")
    await store.jobs.change(job, Change(set={"fine_tunes": [tune]}, status=S.CANCELLING))
    assert (await rung(store, engine, job)).status is S.CANCELLED
    assert await money(store, job) == ((0, 500, 0, 0), (0, 500))

    for _ in range(2):
        await afterwards_of(store, late_seconds=0.05).look(job.id)

    assert await money(store, job) == ((0, 0, 500, 0), (0, 500))
    assert not await due(store, job)


async def test_the_answer_of_a_worker_that_was_only_frozen_is_accounted_for_after_all(store, prices, within_a_day):
    thaw = asyncio.get_running_loop().create_future()

    async def late():
        return await asyncio.shield(thaw)

    frozen = ScriptedTeacher(lambda _: [late()])
    async with pumping(store, Lab(frozen, prices="lab"), prices=prices) as (pump, _):
        job = await accepted(store, a_job(limit_nano=10**12), prompts(1))
        await an_engine(store, Lab(frozen, prices="lab")).advance(job.id)
        await until(lambda: frozen.asked)
        for task in list(pump._tasks):  # its heart stops, its call is still out
            if "keep_leases" in repr(task.get_coro()):
                task.cancel()
        await ended(store, job, S.CANCELLED)
        afterwards = afterwards_of(store, late_seconds=0.05)

        async def is_lost():
            await afterwards.look(job.id)
            return (await money(store, job))[0][3] == 1

        await until(is_lost)
        thaw.set_result(an_answer("Late"))

        async def is_settled():
            return await money(store, job) == ((COST, 0, 0, 0), (0, 0))

        await until(is_settled)


async def test_a_job_like_one_that_lost_its_calls_goes_on_and_buys_nothing_twice_that_may_still_come(store, prices):
    stuck = ScriptedTeacher(seconds=60)
    async with pumping(store, Lab(stuck, prices="lab"), prices=prices):
        first = await with_calls_out(store, stuck)
        await ended(store, first, S.CANCELLED)
        teacher = ScriptedTeacher()
        async with pumping(store, Lab(teacher, prices="lab"), prices=prices):
            second = await accepted(store, a_job(chunk_size=5, limit_nano=10**12), prompts(OUT))
            engine = an_engine(store, Lab(teacher, prices="lab"))
            await engine.advance(second.id)
            await asyncio.sleep(1.5)
            assert teacher.asked == [], "the first one's worker is alive"
            await engine.advance(second.id)
            events = await store.jobs.events(second.id, after=0, limit=99)
            assert [event.data["waits_for"] for event in events if "waits_for" in event.data] == [first.id]
    async with pumping(store, Lab(teacher, prices="lab"), prices=prices):

        async def complete():
            return (await store.passes.state(PassId(second.id, "teacher"))).complete

        await until(complete, seconds=6)

    assert set(teacher.calls.values()) == {1}
    assert teacher.calls == Counter(stuck.calls)

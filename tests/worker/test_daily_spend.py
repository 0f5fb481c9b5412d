"""What a tenant may spend a day: jobs pause at it by themselves, and go on by themselves."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from builders import a_day_passes, a_job, a_spec, accepted, loaded, prompts
from doubles import Lab, ScriptedTeacher, an_answer, prices_of_a_nano
from engines import an_engine
from pumps import pumping

from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.models import Curation, FineTune, Manifest, Split, usd
from shared.store import Store, keys
from shared.store.jobs import Change
from shared.store.spending import day_number

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_a_day")]
S = JobStatus


def dear():
    """Answers of 20,010 nano-dollars each; the upper bound of a call is some 33,000."""

    async def answer():
        return an_answer(completion_tokens=20_000)

    return lambda _: [answer()]


class Day:
    """A tenant's limit that can be raised, the engine that keeps it, and a job."""

    def __init__(self, store, lab, prices, limit_nano):
        self.limit_nano = limit_nano
        self.store = Store(store._redis, day_limit=lambda _: self.limit_nano)
        self.lab, self.prices = lab, prices
        self.engine = an_engine(self.store, lab, prices=prices)

    async def rung(self, job, condition, *, times=300):
        for _ in range(times):
            await self.engine.advance(job.id)
            found = await loaded(self.store, job.id)
            if condition(found):
                return found
            await asyncio.sleep(0.01)
        raise AssertionError(f"It still stands at {found.status}.")

    async def spent(self, job):
        standing = await self.store.spending.standing(job.tenant)
        return standing.today.spent_nano + standing.today.unconfirmed_nano + standing.reserved_nano


@pytest.fixture
def teacher():
    return ScriptedTeacher(dear())


@pytest.fixture
async def day(real_store, teacher, tmp_path):
    made = []

    def of(limit_nano):
        made.append(Day(real_store, Lab(teacher, prices="lab"), prices_of_a_nano(tmp_path), limit_nano))
        return made[-1]

    yield of
    for day in made:
        await day.store.close()


def a_whole_job(count=20):
    spec = a_spec(split=Split(holdout=0.0, validation=0.0), curation=Curation(min_accepted=1, dedupe=False))
    return a_job(spec=spec, chunk_size=10, fine_tunes=[FineTune() for _ in spec.students])


def paused(job):
    return job.status is S.PAUSED


async def test_a_job_without_a_budget_pauses_at_the_limit_of_the_day_and_goes_on_the_next(day, valkey_client, teacher):
    day = day(200_000)
    job = await accepted(day.store, a_whole_job(), prompts(20))

    async with pumping(day.store, day.lab, prices=day.prices, in_flight=4):
        found = await day.rung(job, paused)
        assert found.paused_reason is PausedReason.DAILY_SPEND
        assert 0 < await day.spent(job) <= 200_000
        asked = len(teacher.asked)
        await asyncio.sleep(0.1)
        await day.engine.advance(job.id)
        assert paused(await loaded(day.store, job.id))
        assert len(teacher.asked) == asked < 20

        await a_day_passes(valkey_client, job.tenant)
        await day.rung(job, lambda found: not paused(found))
        await day.rung(job, paused)
        assert await day.spent(job) <= 200_000
        day.limit_nano = 10**9
        ended = await day.rung(job, lambda found: found.status is S.SUCCEEDED)

    assert ended.paused_reason is None
    assert set(teacher.calls.values()) == {1}


async def test_a_call_that_costs_more_than_a_whole_day_allows_fails_the_job_and_names_both(day, teacher):
    day = day(1_000)
    job = await accepted(day.store, a_whole_job(), prompts(20))
    async with pumping(day.store, day.lab, prices=day.prices):
        ended = await day.rung(job, lambda found: found.status in {S.FAILED, S.PAUSED})

    assert (ended.status, ended.error.code) == (S.FAILED, "cost_above_limit")
    assert "0.000001 dollars that your jobs may spend a day" in ended.error.message
    assert "may cost up to 0.0000" in ended.error.message
    assert teacher.asked == []


async def test_a_job_that_waits_for_the_next_day_says_when_it_goes_on_and_what_is_left_today(day):
    day = day(200_000)
    job = await accepted(day.store, a_whole_job(), prompts(20))
    async with pumping(day.store, day.lab, prices=day.prices):
        await day.rung(job, paused)

    *_, event = [
        found for found in await day.store.jobs.events(job.id, after=0, limit=100) if "paused" in found.message
    ]
    standing = await day.store.spending.standing(job.tenant)
    tomorrow = standing.today.day + timedelta(days=1)
    left = usd(standing.left_nano)
    assert f"Of the 0.0002 dollars that your jobs may spend a day, {left} are left today." in event.message
    assert f"goes on by itself at {tomorrow} 00:00 UTC" in event.message
    assert (event.data["day_limit_usd"], event.data["left_usd"]) == ("0.0002", left)


async def test_a_job_that_waits_for_the_next_day_is_looked_at_again_soon(day, valkey_client):
    day = day(200_000)
    job = await accepted(day.store, a_whole_job(), prompts(20))
    async with pumping(day.store, day.lab, prices=day.prices):
        await day.rung(job, paused)

    due = await valkey_client.zscore(keys.DUE, f"job:{job.id}")
    events = await day.store.jobs.events(job.id, after=0, limit=100)
    assert any("daily_spend.  The next step may cost up to 0.0000" in event.message for event in events)

    assert due / 1000 - datetime.now(UTC).timestamp() < 1


async def test_a_paused_job_does_not_go_on_for_a_crumb(day, valkey_client):
    day = day(200_000)
    job = await accepted(day.store, a_whole_job(), prompts(20))
    async with pumping(day.store, day.lab, prices=day.prices, in_flight=4):
        found = await day.rung(job, paused)
    needs = found.money.needs_nano
    assert needs > 20_000

    day.limit_nano = await day.spent(job) + needs - 1
    await day.engine.advance(job.id)
    assert paused(await loaded(day.store, job.id))
    day.limit_nano += 1
    await day.engine.advance(job.id)
    assert not paused(await loaded(day.store, job.id))


async def test_training_waits_for_the_next_day_and_is_submitted_once(day, valkey_client):
    day = day(10**6)
    spec = a_spec()
    job = await accepted(day.store, a_job(spec=spec), prompts(2))
    today = day_number(datetime.now(UTC).date())
    await valkey_client.hset(keys.day(job.tenant, today), "spent_nano", 10**6 - 100)
    manifest = Manifest(
        sha256="ab" * 32, holdout_sha256="cd" * 32, train=2, validation=0, holdout=0, rejected={}, train_bytes=400
    )
    await day.store.jobs.change(job, Change(status=S.RUNNING, set={"stage": Stage.TRAINING, "manifest": manifest}))

    found = await day.rung(job, paused)
    assert found.paused_reason is PausedReason.DAILY_SPEND
    assert day.lab.the_trainer.submitted == []

    day.limit_nano = 10**9
    await day.rung(job, lambda found: found.fine_tunes[0].step == "ended")
    assert len(day.lab.the_trainer.submitted) == 1
    assert (await day.store.spending.standing(job.tenant)).reserved_nano == 0


async def test_a_training_that_no_day_allows_says_that_it_waits_for_a_higher_limit(day):
    day = day(10_000)
    job = await accepted(day.store, a_job(spec=a_spec()), prompts(2))
    manifest = Manifest(
        sha256="ab" * 32, holdout_sha256="cd" * 32, train=2, validation=0, holdout=0, rejected={}, train_bytes=4_000
    )
    await day.store.jobs.change(job, Change(status=S.RUNNING, set={"stage": Stage.TRAINING, "manifest": manifest}))

    needs = (await day.rung(job, paused)).money.needs_nano
    assert needs > day.limit_nano
    [told] = [event for event in await day.store.jobs.events(job.id, after=0, limit=100) if "paused" in event.message]
    assert told.message.endswith("may spend 0.00001 dollars a day, so it goes on only when your operator allows more.")
    assert told.data == {"status": "paused", "needs_usd": usd(needs), "day_limit_usd": "0.00001"}


async def test_two_jobs_of_a_tenant_share_the_day_and_both_end(day, valkey_client, teacher):
    day = day(300_000)
    jobs = [await accepted(day.store, a_whole_job(), prompts(20)) for _ in range(2)]

    async with pumping(day.store, day.lab, prices=day.prices, in_flight=8):
        await asyncio.gather(*(day.rung(job, paused) for job in jobs))
        assert await day.spent(jobs[0]) <= 300_000
        day.limit_nano = 10**9
        await asyncio.gather(*(day.rung(job, lambda found: found.status is S.SUCCEEDED) for job in jobs))

    assert teacher.calls == Counter(dict.fromkeys(teacher.calls, 1)), "the ledger serves both"

"""Pausing a job in training: the provider's fine-tuning jobs stand still where they can, and nothing hangs on it."""

import asyncio

import pytest
from builders import a_job, accepted, loaded, prompts, some_limits
from doubles import Lab, ScriptedTrainer
from engines import LOST, Killed, an_engine, in_training, let_the_lease_run_out

from shared.errors import ProviderQuotaExhausted
from shared.jobs import Jobs
from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.planning import Planner
from shared.pricing import Prices
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
S = JobStatus


@pytest.fixture
def store(real_store):
    return real_store


class Work:
    """A job in training and the worker that moves it; `look` is one bell."""

    def __init__(self, store, job, trainer, **fields):
        self.store, self.job, self.trainer = store, job, trainer
        self.engine = an_engine(store, Lab(trainer=trainer), **fields)
        planner = Planner(store, providers={}, prices=Prices(), limits=some_limits())
        self.jobs = Jobs(store, _NoBell(), planner, None)

    async def look(self, times=1):
        for _ in range(times):
            try:
                await asyncio.wait_for(self.engine.advance(self.job.id), timeout=5)
            except Killed:
                await let_the_lease_run_out(self.store, self.job)
        return await loaded(self.store, self.job.id)

    async def pause(self):
        await self.jobs.pause(self.job.tenant, self.job.id)

    async def resume(self):
        await self.jobs.resume(self.job.tenant, self.job.id)

    async def messages(self):
        return [(e.level, e.message) for e in await self.store.jobs.events(self.job.id, after=0, limit=99)]


class _NoBell:
    async def ring(self, task, id_):
        return True


async def training(store, trainer, *, students=1, **fields):
    """A job whose students are submitted and train."""
    trainer.status = "running"
    job = await in_training(store, students=students)
    work = Work(store, job, trainer, **fields)
    await work.look(2)
    return work


async def test_the_owners_pause_reaches_the_provider_and_so_does_the_resume(store):
    trainer = ScriptedTrainer()
    work = await training(store, trainer, students=2)

    await work.pause()
    paused = await work.look(3)
    assert trainer.statuses == {"ftjob-0": "paused", "ftjob-1": "paused"}
    assert [tune.hold for tune in paused.fine_tunes] == ["paused", "paused"]
    assert [tune.status for tune in paused.fine_tunes] == ["paused", "paused"]

    await work.resume()
    running = await work.look(3)
    assert trainer.statuses == {}
    assert [tune.hold for tune in running.fine_tunes] == [None, None]
    assert (trainer.calls.count("pause"), trainer.calls.count("resume")) == (2, 2)
    said = await work.messages()
    assert ("info", "The training of student 1 is paused at the provider.") in said
    assert ("info", "The training of student 1 goes on.") in said


async def test_a_provider_that_pauses_nothing_trains_on_and_its_end_is_noticed(store):
    trainer = ScriptedTrainer()
    work = await training(store, trainer)
    trainer.pauses = False

    await work.pause()
    await work.look(3)
    trainer.status = "succeeded"
    ended = await work.look()

    assert (ended.status, ended.fine_tunes[0].step) == (S.PAUSED, "ended")
    assert trainer.calls.count("pause") == 1
    assert [level for level, message in await work.messages() if "does not pause" in message] == ["warn"]
    await work.resume()
    assert (await work.look()).stage is Stage.EVALUATING


@pytest.mark.parametrize("call", ["pause", "pause!", "poll", "resume", "resume!"])
@pytest.mark.parametrize("fault", [Killed(), LOST], ids=["killed", "no answer"])
async def test_a_crash_at_any_call_is_made_good_by_the_next_look(store, call, fault):
    trainer = ScriptedTrainer()
    work = await training(store, trainer)
    trainer.faults[call] = fault

    await work.pause()
    paused = await work.look(3)
    assert (paused.status, paused.fine_tunes[0].hold, trainer.statuses) == (S.PAUSED, "paused", {"ftjob-0": "paused"})
    await work.resume()
    running = await work.look(3)

    assert (running.status, running.fine_tunes[0].hold, trainer.statuses) == (S.RUNNING, None, {})
    said = [message for _, message in await work.messages()]
    assert said.count("The training of student 0 is paused at the provider.") == 1
    assert said.count("The training of student 0 goes on.") == 1


async def test_a_provider_that_does_not_resume_yet_is_asked_again(store):
    trainer = ScriptedTrainer()
    work = await training(store, trainer)
    await work.pause()
    await work.look()
    trainer.resumes = False

    await work.resume()
    waiting = await work.look(3)
    assert (waiting.status, waiting.fine_tunes[0].hold) == (S.RUNNING, "resuming")
    trainer.resumes = True
    running = await work.look()

    assert (running.fine_tunes[0].hold, trainer.statuses) == (None, {})
    assert [level for level, message in await work.messages() if "asked again" in message] == ["warn"]


async def test_a_job_paused_again_before_its_training_went_on_stays_paused_there(store):
    trainer = ScriptedTrainer()
    work = await training(store, trainer)
    await work.pause()
    await work.look()
    trainer.resumes = False
    await work.resume()
    await work.look()

    await work.pause()
    paused = await work.look()

    assert (paused.fine_tunes[0].hold, trainer.statuses) == ("paused", {"ftjob-0": "paused"})


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
async def test_a_paused_job_that_is_cancelled_or_late_leaves_no_training_behind(store, how):
    trainer = ScriptedTrainer()
    work = await training(store, trainer)
    await work.pause()
    await work.look()

    if how == "cancelled":
        await work.jobs.cancel(work.job.tenant, work.job.id)
    else:
        await store.jobs.change(work.job, Change(set={"deadline_at_ms": 1}))
    ended = await work.look()

    assert ended.status is (S.CANCELLED if how == "cancelled" else S.FAILED)
    assert ended.paused_reason is None
    assert trainer.cancelled == ["ftjob-0"]


@pytest.mark.parametrize("paused", [True, False])
async def test_without_credit_at_the_deadline_the_job_ends_all_the_same(store, paused):
    trainer = ScriptedTrainer()
    work = await training(store, trainer, stage_attempts_max=3)
    if paused:
        await work.pause()
        await work.look()

    async def no_credit(_):
        raise ProviderQuotaExhausted("No credit.", status=429)

    trainer.cancel = no_credit
    await store.jobs.change(work.job, Change(set={"deadline_at_ms": 1}))

    ended = await work.look(4)

    assert (ended.status, ended.error.code) == (S.FAILED, "deadline_exceeded")


async def test_a_submission_whose_answer_was_lost_is_found_and_paused(store):
    trainer = ScriptedTrainer()
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 1
    work = await training(store, trainer)
    await work.pause()

    paused = await work.look(2)

    assert (paused.fine_tunes[0].fine_tuning_job_id, paused.fine_tunes[0].hold) == ("ftjob-0", "paused")
    assert len(trainer.submitted) == 1


async def test_what_trains_while_the_job_waits_for_money_is_not_paused(store):
    trainer = ScriptedTrainer()
    work = await training(store, trainer)
    await store.jobs.change(work.job, Change(status=S.PAUSED, set={"paused_reason": PausedReason.BUDGET}))
    await work.look(2)
    trainer.status = "succeeded"

    ended = await work.look()

    assert (ended.status, ended.fine_tunes[0].step) == (S.PAUSED, "ended")
    assert trainer.calls.count("pause") == 0


async def test_a_provider_that_is_away_does_not_fail_a_job_that_waits(store):
    trainer = ScriptedTrainer()
    work = await training(store, trainer, stage_attempts_max=2)
    await work.pause()
    await work.look()
    trainer.poll = trainer.pause = _away

    assert (await work.look(5)).status is S.PAUSED


async def _away(_):
    raise LOST


async def test_a_job_that_its_owner_holds_while_a_worker_takes_it_up_stays_held(store, monkeypatch):
    job = await accepted(store, a_job(), prompts(4))
    work = Work(store, job, ScriptedTrainer())
    endpoints = store.webhooks.all

    async def meanwhile(tenant):  # the worker has read the job as queued, and asks whom to tell that it runs
        monkeypatch.setattr(store.webhooks, "all", endpoints)
        await work.pause()
        return await endpoints(tenant)

    monkeypatch.setattr(store.webhooks, "all", meanwhile)
    held = await work.look()

    assert (held.status, held.stage, held.started_at_ms) == (S.PAUSED, Stage.GENERATING, None)
    assert await store.passes.open_passes(limit=9) == []
    await work.resume()
    begun = await work.look()
    assert (begun.status, begun.stage) == (S.RUNNING, Stage.GENERATING)
    assert len(await store.passes.open_passes(limit=9)) == 1


async def test_a_job_held_in_the_queue_is_cancelled_like_any_other(store):
    job = await accepted(store, a_job(), prompts(4))
    work = Work(store, job, ScriptedTrainer())
    await work.pause()
    await work.jobs.cancel(job.tenant, job.id)
    assert (await work.look()).status is S.CANCELLED

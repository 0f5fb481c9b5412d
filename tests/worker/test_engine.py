"""The engine: a job goes through its stages, obeys its owner, and survives what a store or a worker may do."""

import asyncio
import contextlib
import itertools

import pytest
import structlog
from builders import accepted, claimed, loaded, prompts
from doubles import Flaky, Lab, ScriptedTeacher, ScriptedTrainer
from engines import (
    LOST,
    Killed,
    a_whole_job,
    an_engine,
    in_training,
    let_the_lease_run_out,
    rung,
    the_settings,
    through_crashes,
)
from pumps import pumping, until

from shared.errors import ProviderQuotaExhausted, StoreError
from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.pricing import Prices
from shared.store import keys
from shared.store.jobs import Change
from shared.store.passes import Halt, PassId
from worker.engine import Engine
from worker.stages import Tools

pytestmark = pytest.mark.anyio
S = JobStatus


@pytest.fixture
def store(real_store):
    return real_store


# --- the way through -------------------------------------------------------------------------------------------------


async def test_a_job_goes_through_its_stages_to_success(store):
    teacher = ScriptedTeacher(lambda text: [f"Answer to {text}"])
    lab = Lab(teacher)
    job = await accepted(store, a_whole_job(), prompts(40))

    async with pumping(store, lab):
        ended = await rung(store, an_engine(store, lab), job)

    assert ended.status is S.SUCCEEDED
    stages = [e.stage for e in await store.jobs.events(job.id, after=1, limit=99) if e.type == "status"]
    assert list(dict.fromkeys(stages)) == list(Stage)
    assert (await store.jobs.results(job.id)) is not None
    assert len(lab.the_trainer.submitted) == 1


async def test_a_bell_rung_many_times_at_once_moves_a_job_once(store):
    job = await accepted(store, a_whole_job(), prompts(40))
    engine = an_engine(store)

    await asyncio.gather(*(engine.advance(job.id) for _ in range(10)))

    running = [e for e in await store.jobs.events(job.id, after=0, limit=99) if e.type == "status"]
    assert len(running) == 1


async def test_a_job_cancelled_while_a_worker_takes_it_is_left_as_it_is(store):
    job = await accepted(store, a_whole_job(), prompts(4))
    claim = store.jobs.claim

    async def claimed_and_cancelled(*args, **kwargs):
        lease = await claim(*args, **kwargs)
        await store.jobs.change(job, Change(status=S.CANCELLED, due_in_seconds=-1.0))
        return lease

    store.jobs.claim = claimed_and_cancelled
    with structlog.testing.capture_logs() as logged:
        await an_engine(store).advance(job.id)

    found = await loaded(store, job.id)
    assert (found.status, found.stage_attempts, found.version) == (S.CANCELLED, 0, 2)
    assert [line for line in logged if line["log_level"] == "error"] == []
    assert await store.sweep(grace_seconds=60, limit=10) == []


async def test_a_job_of_a_newer_version_is_left_to_a_worker_that_knows_it(store):
    job = await accepted(store, a_whole_job(), prompts(40))
    row = keys.job(job.id)
    spec = await store._redis.hget(row, "spec")
    await store._redis.hset(row, "spec", spec.replace(b'"teacher":{', b'"teacher":{"mode":"stream",'))
    older = an_engine(store, takeovers_max=1, lease_seconds=30.0)

    for _ in range(4):
        await older.advance(job.id)
        assert await store.sweep(grace_seconds=60, limit=10) == []  # looked at again after a while
        await let_the_lease_run_out(store, job)

    await store._redis.hset(row, "spec", spec)
    assert (await claimed(store, job)).takeovers == 0


async def test_a_store_that_goes_away_before_such_a_job_is_given_back_is_no_defect(store):
    job = await accepted(store, a_whole_job(), prompts(40))
    await store._redis.hset(keys.job(job.id), "stage", "distilling")

    async def away(*_, **__):
        raise StoreError("The store cannot be reached.")

    store.jobs.give_back = away
    await an_engine(store).advance(job.id)


async def test_the_pump_is_woken_for_a_pass_that_opens_and_not_for_each_look_at_one(store):
    job, woken = await accepted(store, a_whole_job(), prompts(40)), []
    engine = Engine(Tools(store, Lab(), Prices(), the_settings(), lambda: woken.append(job.id)))

    for _ in range(3):
        await engine.advance(job.id)
    assert len(woken) == 1

    await store.passes.close(job.tenant, PassId(job.id, "teacher"))
    await engine.advance(job.id)
    assert len(woken) == 2


@pytest.mark.parametrize(
    "status",
    [
        S.RUNNING,
        S.QUEUED,
    ],
)
async def test_a_job_that_no_worker_can_carry_fails_instead_of_looping(store, status):
    job = await in_training(store) if status is S.RUNNING else await accepted(store, a_whole_job(), prompts(40))
    for _ in range(5):
        await claimed(store, job)
        await let_the_lease_run_out(store, job)

    load, looks = store.jobs.load, itertools.count(1)

    async def bounded(job_id):
        if next(looks) > 20:
            raise Killed
        return await load(job_id)

    store.jobs.load = bounded
    with contextlib.suppress(Killed):
        await an_engine(store, takeovers_max=3).advance(job.id)
    store.jobs.load = load

    ended = await loaded(store, job.id)
    assert (ended.status, ended.error.code) == (S.FAILED, "attempts_exhausted")


async def test_a_job_past_its_deadline_fails_and_its_training_is_cancelled(store):
    lab, job = Lab(trainer=ScriptedTrainer()), await in_training(store)
    lab.the_trainer.status = "running"
    engine = an_engine(store, lab)
    await rung(store, engine, job, times=3)
    await store.jobs.change(job, Change(set={"deadline_at_ms": 1}))

    ended = await rung(store, engine, job)

    assert (ended.status, ended.error.code) == (S.FAILED, "deadline_exceeded")
    assert lab.the_trainer.cancelled == ["ftjob-0"]


async def test_a_defect_in_a_stage_is_tried_again_a_bounded_number_of_times(store):
    lab, job = Lab(), await in_training(store)
    lab.the_trainer.faults = {"find_files": ValueError("one defect")}

    assert (await rung(store, an_engine(store, lab), job, until_status=None, times=9)).stage is not Stage.GENERATING

    class Broken(ScriptedTrainer):
        async def find_files(self, prefix, *, not_before):
            raise ValueError("the same defect, always")

    again = await in_training(store)
    ended = await rung(store, an_engine(store, Lab(trainer=Broken()), stage_attempts_max=4), again)
    assert (ended.status, ended.error.code) == (S.FAILED, "attempts_exhausted")


# --- the owner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", list(Stage))
async def test_a_job_can_be_cancelled_in_every_stage(store, stage):
    job = await in_training(store)
    await store.jobs.change(job, Change(set={"stage": stage}))
    await store.jobs.change(job, Change(status=S.CANCELLING))

    assert (await rung(store, an_engine(store), job)).status is S.CANCELLED


@pytest.mark.parametrize("answer", ["came", "was lost"])
async def test_cancelling_ends_the_training_at_the_provider(store, answer):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.status = "running"
    if answer == "was lost":
        trainer.faults["submit!"] = LOST
    engine = an_engine(store, Lab(trainer=trainer))
    await rung(store, engine, job, times=1)
    await store.jobs.change(job, Change(status=S.CANCELLING))

    ended = await rung(store, engine, job)

    assert ended.status is S.CANCELLED
    assert trainer.cancelled == ["ftjob-0"]


async def test_cancelling_waits_for_a_submission_that_does_not_show_yet(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.status = "running"
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 2
    engine = an_engine(store, Lab(trainer=trainer))
    await rung(store, engine, job, times=1)
    await store.jobs.change(job, Change(status=S.CANCELLING))

    await rung(store, engine, job)

    assert trainer.cancelled == ["ftjob-0"]


async def test_cancelling_without_credit_does_not_spin(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.status = "running"
    engine = an_engine(store, Lab(trainer=trainer))
    await rung(store, engine, job, times=2)

    async def no_credit(_):
        trainer.calls.append("cancel")
        if trainer.calls.count("cancel") > 20:
            raise Killed
        raise ProviderQuotaExhausted("No credit.", status=429)

    trainer.cancel = no_credit
    await store.jobs.change(job, Change(status=S.CANCELLING))

    with contextlib.suppress(Killed):
        await engine.advance(job.id)

    assert trainer.calls.count("cancel") == 1


async def test_a_job_resumed_while_a_worker_looks_at_it_is_not_put_to_sleep(store):
    job = await in_training(store)
    await store.jobs.change(job, Change(status=S.PAUSED))
    engine = an_engine(store)
    load = store.jobs.load

    async def resumed_in_between(job_id):
        found = await load(job_id)
        if found.status is S.PAUSED:
            await store.jobs.change(found, Change(status=S.RUNNING, due_in_seconds=0))
        return found

    store.jobs.load = resumed_in_between
    await engine.advance(job.id)
    store.jobs.load = load

    ended = await rung(store, engine, job)
    assert ended.status is not S.PAUSED
    assert ended.fine_tunes[0].step != "new"


async def test_two_passes_halted_at_once_need_one_resume(store):
    lab = Lab(ScriptedTeacher(lambda text: [f"Answer to {text}"]))
    job = await accepted(store, a_whole_job(), prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab):
        await until(lambda: _in_stage(store, engine, job, Stage.TRAINING))
    lab.the_teacher.script = [ProviderQuotaExhausted("No credit.", status=429)]
    async with pumping(store, lab):
        paused = await rung(store, engine, job, until_status=S.PAUSED)
        await asyncio.sleep(0.2)
    assert paused.paused_reason is PausedReason.PROVIDER_QUOTA
    for name in ("base-0", "student-0"):
        await store.passes.halt(PassId(job.id, name), Halt("pause", "provider_quota"))

    lab.the_teacher.script = ["Billing"]
    await store.jobs.change(paused, Change(status=S.RUNNING, set={"paused_reason": None}, due_in_seconds=0))
    async with pumping(store, lab):
        ended = await rung(store, engine, job, until_status=S.PAUSED)

    assert ended.status is S.SUCCEEDED


async def _in_stage(store, engine, job, stage):
    await engine.advance(job.id)
    return list(Stage).index((await loaded(store, job.id)).stage or Stage.GENERATING) >= list(Stage).index(stage)


# --- the store -------------------------------------------------------------------------------------------------------


async def test_a_store_that_is_away_for_a_moment_costs_the_job_nothing(store):
    job = await in_training(store)
    store.jobs = Flaky(store.jobs)
    store.jobs.fail = {"load": 1, "change": 2}
    trainer = ScriptedTrainer()
    lab = Lab(trainer=trainer)

    for _ in range(4):
        await an_engine(store, lab).advance(job.id)
        await let_the_lease_run_out(store, job)
    store.jobs.fail.clear()
    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert ended.fine_tunes[0].step == "ended"
    assert len(trainer.submitted) == 1


async def test_the_owner_is_told_once_that_most_of_the_budget_is_used(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.status = "running"
    await store.jobs.change(job, Change(set={"limit_nano": 10**12, "spent_nano": 85 * 10**10}))

    await rung(store, an_engine(store, Lab(trainer=trainer)), job, times=3)

    told = [event for event in await store.jobs.events(job.id, after=0, limit=100) if "threshold_percent" in event.data]
    assert [event.data["spent_usd"] for event in told] == ["850"]


async def test_calls_in_flight_do_not_count_as_used_and_lost_ones_do(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.status = "running"
    await store.jobs.change(
        job, Change(set={"limit_nano": 10**12, "spent_nano": 10**9, "reserved_nano": 99 * 10**10, "told_share": 0})
    )
    engine = an_engine(store, Lab(trainer=trainer))

    async def told():
        events = await store.jobs.events(job.id, after=0, limit=100)
        return [event.data["spent_usd"] for event in events if "threshold_percent" in event.data]

    await rung(store, engine, job, times=3)
    assert await told() == []
    await store.jobs.change(await loaded(store, job.id), Change(set={"unconfirmed_nano": 8 * 10**11}))
    await rung(store, engine, job, times=3)
    assert await told() == ["1"]


async def test_what_the_provider_tells_during_a_look_is_looked_at_at_once(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.status = "running"
    engine = an_engine(store, Lab(trainer=trainer), poll_min_seconds=60.0, poll_max_seconds=60.0)
    await rung(store, engine, job, times=2)
    poll = trainer.poll

    async def told_too_late(job_id):
        found = await poll(job_id)
        trainer.status, trainer.poll = "succeeded", poll
        await store.followed.hint("lab", job_id, "wh_1")
        return found

    trainer.poll = told_too_late
    await engine.advance(job.id)

    assert (await loaded(store, job.id)).fine_tunes[0].step == "ended"

"""The engine: a job goes through its stages, survives crashes between any two steps, and trains each student once."""

import asyncio
import contextlib
import itertools

import pytest
import structlog
from builders import accepted, claimed, loaded, prompts
from doubles import Flaky, Lab, ScriptedTeacher, ScriptedTrainer, pumping, until
from engines import (
    Killed,
    a_whole_job,
    an_engine,
    in_training,
    let_the_lease_run_out,
    rung,
    the_settings,
    through_crashes,
)

from shared.errors import (
    ProviderAuthFailed,
    ProviderQuotaExhausted,
    ProviderRejected,
    ProviderTrainingClosed,
    ProviderUnavailable,
    StoreError,
)
from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.pricing import Prices
from shared.store import keys
from shared.store.jobs import Change
from shared.store.passes import Halt, PassId
from worker.engine import Engine
from worker.stages import Tools

pytestmark = pytest.mark.anyio
S = JobStatus
LOST = ProviderUnavailable("The answer was lost.", provider_code="timeout")


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


# --- exactly one fine-tuning job -------------------------------------------------------------------------------------

CALLS = [f"{call}{when}" for call in ("find_files", "upload", "submit", "find", "poll") for when in ("", "!")]


@pytest.mark.parametrize("fault", [Killed(), LOST], ids=["killed", "no answer"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_crash_at_any_call_to_the_trainer_leaves_one_submission(store, call, fault):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults[call] = fault
    if call.startswith("find") and call != "find_files":
        trainer.faults["submit!"] = LOST

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [tune.step for tune in ended.fine_tunes] == ["ended"]
    assert len(trainer.files) == 1
    live = [found.id for found in trainer.jobs if found.id not in trainer.cancelled]
    assert live == [ended.fine_tunes[0].fine_tuning_job_id]
    assert len(trainer.submitted) == 1


async def test_of_two_files_of_one_name_the_newest_is_used_and_the_other_deleted(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    engine = an_engine(store, Lab(trainer=trainer))
    trainer.faults["upload!"] = LOST
    await engine.advance(job.id)
    trainer.files_unlisted = 1  # so that it is uploaded again
    trainer.faults["upload!"] = LOST
    await engine.advance(job.id)
    assert [file_id for file_id, *_ in trainer.files] == ["file-1", "file-2"]

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [file_id for file_id, *_ in trainer.files] == [ended.fine_tunes[0].training_file] == ["file-2"]


async def test_a_refused_file_ends_the_student_and_says_which(store):
    trainer, job = ScriptedTrainer(), await in_training(store, validation=1)
    upload = trainer.upload

    async def refuses_the_second(path, filename):
        if "validation" in filename:
            raise ProviderRejected("Too large.", status=413)
        return await upload(path, filename)

    trainer.upload = refuses_the_second
    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert (ended.status, ended.error.code) == (S.FAILED, "provider_rejected_training")
    assert "validation file" in ended.error.message
    assert ended.fine_tunes[0].training_file == "file-1"  # is still known, and can be deleted


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("save", range(1, 9))
async def test_a_crash_at_any_write_of_the_row_leaves_one_submission(store, save, when):
    trainer, job = ScriptedTrainer(), await in_training(store)
    change, count = store.jobs.change, itertools.count(1)

    async def killed_at_one(*args, **kwargs):
        number = next(count)
        if number == save and when == "before":
            raise Killed
        answer = await change(*args, **kwargs)
        if number == save:
            raise Killed
        return answer

    store.jobs.change = killed_at_one

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [tune.step for tune in ended.fine_tunes] == ["ended"]
    assert (len(trainer.files), len(trainer.submitted)) == (1, 1)


async def test_a_submission_that_shows_late_is_adopted_and_not_made_again(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 2

    ended = await through_crashes(store, Lab(trainer=trainer), job, unknown_outcome_wait_seconds=5)

    assert ended.fine_tunes[0].fine_tuning_job_id == "ftjob-0"
    assert len(trainer.submitted) == 1


async def test_a_submission_that_never_arrived_is_made_again(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit"] = LOST

    ended = await through_crashes(store, Lab(trainer=trainer), job, unknown_outcome_wait_seconds=0.05)

    assert (len(trainer.jobs), ended.fine_tunes[0].status) == (1, "succeeded")


async def test_a_provider_that_answers_no_submission_is_asked_a_bounded_number_of_times(store):
    class Deaf(ScriptedTrainer):
        async def submit(self, request):
            raise LOST

    job = await in_training(store)

    ended = await through_crashes(
        store, Lab(trainer=Deaf()), job, unknown_outcome_wait_seconds=0.01, stage_attempts_max=3
    )

    assert (ended.status, ended.error.code, ended.error.retryable) == (S.FAILED, "provider_unavailable", True)
    assert ended.fine_tunes[0].submissions == 3


async def test_of_two_submissions_the_one_that_is_followed_is_kept(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 10

    async def look():
        ended = await through_crashes(store, Lab(trainer=trainer), job, unknown_outcome_wait_seconds=0.01, times=8)
        trainer.visible_after = 0
        return ended

    trainer.status = "running"
    await look()
    trainer.statuses = {"ftjob-1": "succeeded"}
    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert len(trainer.jobs) == 2
    assert ended.fine_tunes[0].fine_tuning_job_id not in trainer.cancelled
    assert len(trainer.cancelled) == 1


@pytest.mark.parametrize(
    "keeps_metadata",
    [True, False],
)
async def test_students_of_one_provider_do_not_take_each_others_jobs(store, keeps_metadata):
    trainer, job = ScriptedTrainer(keeps_metadata=keeps_metadata), await in_training(store, students=2)

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [tune.fine_tuning_job_id for tune in ended.fine_tunes] == ["ftjob-0", "ftjob-1"]
    assert trainer.cancelled == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProviderRejected("No.", status=400), "provider_rejected_training"),
        (ProviderTrainingClosed("Closed.", status=403), "provider_training_closed"),
        (ProviderAuthFailed("No.", status=401), "provider_auth_failed"),
    ],
)
async def test_a_definite_no_fails_the_job_and_is_not_asked_again(store, error, code):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit"] = error

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert (ended.status, ended.error.code) == (S.FAILED, code)
    assert trainer.calls.count("submit") == 1


async def test_training_without_credit_pauses_the_job(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit"] = ProviderQuotaExhausted("No credit.", status=429)

    paused = await rung(store, an_engine(store, Lab(trainer=trainer)), job, until_status=S.PAUSED)

    assert paused.paused_reason is PausedReason.PROVIDER_QUOTA
    assert paused.fine_tunes[0].step == "uploaded"


async def test_a_job_that_fails_in_training_leaves_no_training_behind(store):
    trainer, job = ScriptedTrainer(), await in_training(store, students=2)
    trainer.status = "running"
    engine = an_engine(store, Lab(trainer=trainer))
    await rung(store, engine, job, times=2)
    trainer.faults["poll"] = ProviderAuthFailed("No.", status=401)

    ended = await rung(store, engine, job)

    assert ended.status is S.FAILED
    assert sorted(trainer.cancelled) == ["ftjob-0", "ftjob-1"]


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

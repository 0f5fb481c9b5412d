"""What becomes of a training whose job ends without it: it is stopped, and whatever it may cost is in the books."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import structlog
from builders import loaded, now_ms
from doubles import Lab, ScriptedTrainer, prices_of_a_nano
from engines import Killed, an_engine, in_training, let_the_lease_run_out, rung
from msgspec.structs import replace

from shared.cleanup import Kind
from shared.deletion import cleanup_of
from shared.errors import JobFailed, ProviderAuthFailed, ProviderRateLimited, ProviderUnavailable
from shared.lifecycle import TERMINAL, JobStatus, PausedReason
from shared.models import Budget, Student
from shared.store import keys
from shared.store.jobs import Change

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_a_day")]
S = JobStatus
LOST = ProviderUnavailable("No answer.", billed_maybe=True)
#: Two examples of 100 tokens each, 25 times, at a nano-dollar each.
CEILING = 5_000
TOKENS = 700  # trained, at a nano-dollar each


class Work:
    """A job whose students are in training, and what it has cost."""

    def __init__(self, store, trainer, prices, job):
        self.store, self.trainer, self.job = store, trainer, job
        self._lab, self._prices = Lab(trainer=trainer, prices="lab"), prices

    def engine(self, **fields):
        return an_engine(self.store, self._lab, prices=self._prices, **fields)

    async def look(self, times=3, **fields):
        return await rung(self.store, self.engine(**fields), self.job, times=times)

    async def stop(self, how):
        if how == "cancelled":
            await self.store.jobs.change(self.job, Change(status=S.CANCELLING, due_in_seconds=0))
        elif how == "late":
            await self.store.jobs.change(self.job, Change(set={"deadline_at_ms": 1}))
        else:  # the second student fails the job
            self.trainer.faults["events"] = ProviderAuthFailed("No.", status=401)

    async def stopped(self, how="cancelled", **fields):
        await self.stop(how)
        ended = await self.look(60, **fields)
        assert ended.status is (S.CANCELLED if how == "cancelled" else S.FAILED)
        return ended

    async def money(self):
        """(spent, reserved, unconfirmed) of the job, and of its tenant today."""
        money = (await loaded(self.store, self.job.id)).money
        standing = await self.store.spending.standing(self.job.tenant)
        of_day = (standing.today.spent_nano, standing.reserved_nano, standing.today.unconfirmed_nano)
        return (money.spent_nano, money.reserved_nano, money.unconfirmed_nano), of_day

    async def told(self, part):
        events = await self.store.jobs.events(self.job.id, after=0, limit=100)
        return [event for event in events if part in event.message]


@pytest.fixture
def trainer():
    made = ScriptedTrainer()
    made.status, made.trained_tokens = "running", {"succeeded": TOKENS}
    return made


@pytest.fixture
async def training(real_store, trainer, tmp_path):
    """A job that has submitted its students.  limit_nano: its budget, None for none."""

    async def make(*, limit_nano=10**9, students=1, looks=2, **fields):
        job = await in_training(real_store, students=students, budget=Budget(max_cost_nano=limit_nano))
        manifest = replace(job.manifest, train_bytes=400)
        await real_store.jobs.change(job, Change(set={"manifest": manifest, "limit_nano": limit_nano}))
        work = Work(real_store, trainer, prices_of_a_nano(tmp_path), job)
        await work.look(looks, **fields)
        return work

    return make


# --- it had ended before it could be stopped -------------------------------------------------------------------------


@pytest.mark.parametrize("limit_nano", [10**9, None], ids=["budget", "no budget"])
@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_training_that_ended_before_it_could_be_stopped_is_paid_and_its_model_known(
    training, trainer, how, limit_nano
):
    work = await training(limit_nano=limit_nano)
    assert (await work.money())[0] == (0, CEILING if limit_nano else 0, 0)
    trainer.status = "succeeded"

    ended = await work.stopped(how)

    assert await work.money() == ((TOKENS, 0, 0), (TOKENS, 0, 0))
    tune = ended.fine_tunes[0]
    assert (tune.step, tune.status, tune.cost_nano, tune.trained_tokens) == ("ended", "succeeded", TOKENS, TOKENS)
    assert (tune.fine_tuning_job_id, tune.fine_tuned_model) == ("ftjob-0", "ft:ftjob-0")
    [said] = await work.told("had ended before it could be stopped")
    assert said.data["cost_usd"] == "0.0000007"
    assert trainer.cancelled == []
    wanted = cleanup_of(ended, delete_models=True, now_ms=now_ms()).remnants
    assert [remnant.id for remnant in wanted if remnant.kind is Kind.MODEL] == ["ft:ftjob-0"]


async def test_so_is_one_that_ends_while_it_is_being_stopped(training, trainer):
    work = await training()
    cancel = trainer.cancel

    async def too_late(job_id):
        trainer.status = "succeeded"
        await cancel(job_id)

    trainer.cancel = too_late
    ended = await work.stopped()

    assert await work.money() == ((TOKENS, 0, 0), (TOKENS, 0, 0))
    assert ended.fine_tunes[0].fine_tuned_model == "ft:ftjob-0"


async def test_so_is_one_whose_sibling_has_failed_the_job(training, trainer):
    work = await training(students=2)
    trainer.statuses = {"ftjob-0": "succeeded"}

    ended = await work.stopped("failed")

    assert ended.error.code == "provider_auth_failed"
    assert [tune.status for tune in ended.fine_tunes] == ["succeeded", "cancelled"]
    assert trainer.cancelled == ["ftjob-1"]
    assert await work.money() == ((TOKENS, 0, CEILING), (TOKENS, 0, CEILING))


@pytest.mark.parametrize("fault", [LOST, Killed()], ids=["answer lost", "worker killed"])
async def test_so_is_one_whose_submission_nobody_saw_answered(training, trainer, fault):
    trainer.faults["submit!"] = fault
    work = await training(looks=0)
    with contextlib.suppress(Killed):
        await work.look(1)
    await let_the_lease_run_out(work.store, work.job)
    trainer.status = "succeeded"

    ended = await work.stopped()

    assert await work.money() == ((TOKENS, 0, 0), (TOKENS, 0, 0))
    tune = ended.fine_tunes[0]
    assert (tune.fine_tuning_job_id, tune.fine_tuned_model) == ("ftjob-0", "ft:ftjob-0")


async def test_of_two_submissions_both_are_paid(training, trainer):
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 3
    work = await training(looks=8, unknown_outcome_wait_seconds=0.01)
    assert len(trainer.jobs) == 2
    trainer.visible_after = 0
    trainer.status = "succeeded"

    await work.stopped()

    assert await work.money() == ((2 * TOKENS, 0, 0), (2 * TOKENS, 0, 0))


@pytest.mark.parametrize(
    ("kept", "other", "spent", "unconfirmed"),
    [
        ("succeeded", "succeeded", 2 * TOKENS, 0),
        ("succeeded", "running", TOKENS, CEILING),
        ("succeeded", "queued", TOKENS, 0),
        ("failed", "running", 0, CEILING),
        ("cancelled", "succeeded", TOKENS, CEILING),
        ("deleted", "running", 0, 2 * CEILING),
    ],
)
async def test_the_other_of_two_submissions_is_stopped_and_paid_when_the_one_that_is_kept_ends(
    training, trainer, kept, other, spent, unconfirmed
):
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 3
    work = await training(looks=8, unknown_outcome_wait_seconds=0.01)
    [tune] = (await loaded(work.store, work.job.id)).fine_tunes
    assert (len(trainer.jobs), tune.fine_tuning_job_id) == (2, "ftjob-1")
    trainer.visible_after, trainer.unlisted = 0, {"ftjob-1"} if kept == "deleted" else set()
    trainer.statuses = {"ftjob-1": kept, "ftjob-0": other}
    trainer.deleted = {"ftjob-1"} if kept == "deleted" else set()

    ended = await rung(work.store, work.engine(), work.job, until_step="ended")

    assert ended.fine_tunes[0].status == kept
    assert trainer.cancelled == ([] if other == "succeeded" else ["ftjob-0"])
    assert await work.money() == ((spent, 0, unconfirmed), (spent, 0, unconfirmed))


# --- it was stopped on its way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "tokens", "spent", "unconfirmed"),
    [
        ("queued", None, 0, 0),  # nothing was trained
        ("running", 120, 120, 0),
        ("running", None, 0, CEILING),  # nobody says what was
        ("paused", None, 0, CEILING),
    ],
)
@pytest.mark.parametrize("limit_nano", [10**9, None], ids=["budget", "no budget"])
async def test_what_a_stopped_training_may_cost_is_not_forgotten(
    training, trainer, status, tokens, spent, unconfirmed, limit_nano
):
    work = await training(limit_nano=limit_nano)
    trainer.status = status
    if tokens is not None:
        trainer.trained_tokens["cancelled"] = tokens

    ended = await work.stopped()

    assert await work.money() == ((spent, 0, unconfirmed), (spent, 0, unconfirmed))
    assert (ended.fine_tunes[0].status, ended.fine_tunes[0].fine_tuned_model) == ("cancelled", None)
    [said] = await work.told("The training of student 0 is stopped.")
    assert ("Up to 0.000005 dollars" in said.message) is bool(unconfirmed)


async def test_a_provider_that_takes_its_time_to_stop_may_bill_what_it_trains(training, trainer):
    work = await training()

    async def taken_in(job_id):
        trainer.cancelled_later = job_id

    trainer.cancel = taken_in
    await work.stopped()

    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))


@pytest.mark.parametrize("limit_nano", [10**9, None], ids=["budget", "no budget"])
@pytest.mark.parametrize("how", ["cancelled", "late", "failed"])
async def test_one_that_the_provider_would_not_stop_may_be_billed_and_is_left_to_the_deletion(
    training, trainer, how, limit_nano
):
    work = await training(limit_nano=limit_nano)

    async def away(job_id):
        raise ProviderUnavailable("Down.")

    trainer.cancel = away
    ended = await work.stopped(how, stage_attempts_max=2)

    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))
    assert len(await work.told("did not stop the training of student 0")) == 1
    wanted = cleanup_of(ended, delete_models=True, now_ms=now_ms()).remnants
    assert [remnant.id for remnant in wanted if remnant.kind is Kind.TRAINING] == ["ftjob-0"]


@pytest.mark.parametrize("when", ["while it is followed", "before the job is cancelled"])
async def test_a_training_that_is_gone_may_be_billed(training, trainer, when):
    work = await training()
    trainer.deleted = {"ftjob-0"}

    if when == "while it is followed":
        assert (await work.look(60)).fine_tunes[0].status == "deleted"
    else:
        await work.stopped()

    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))


@pytest.mark.parametrize(("status", "unconfirmed"), [("cancelled", CEILING), ("failed", 0)])
async def test_a_training_that_the_provider_ends_is_settled_likewise(training, trainer, status, unconfirmed):
    work = await training()
    trainer.status = status

    assert (await work.look(60)).status is S.FAILED
    assert await work.money() == ((0, 0, unconfirmed), (0, 0, unconfirmed))


async def test_a_success_whose_tokens_nobody_counts_is_unconfirmed(training, trainer):
    work = await training()
    trainer.status, trainer.trained_tokens = "succeeded", {}

    ended = await rung(work.store, work.engine(), work.job, until_step="ended")

    assert ended.fine_tunes[0].status == "succeeded"
    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))


async def test_a_submission_that_never_shows_may_be_billed(training, trainer):
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 10**6
    work = await training(looks=1)

    await work.stopped()

    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))
    assert len(await work.told("does not show what became of the submission")) == 1


async def test_a_submission_that_was_turned_away_is_not(training, trainer):
    trainer.faults["submit"] = ProviderRateLimited("Slow down.", status=429)
    work = await training(looks=1)
    assert (await work.money())[0] == (0, CEILING, 0)

    await work.stopped()

    assert await work.money() == ((0, 0, 0), (0, 0, 0))


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_what_is_stopped_is_kept_while_a_lost_submission_is_waited_for(training, trainer, how):
    trainer.status = "queued"
    work = await training(students=2, looks=0)
    submit, count = trainer.submit, itertools.count(1)

    async def lost_at_the_second(request):
        if next(count) == 2:
            raise LOST
        return await submit(request)

    trainer.submit = lost_at_the_second
    await work.look(1)
    trainer.calls.clear()

    ended = await work.stopped(how)

    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING)), "of the queued one nothing was trained"
    assert [tune.status for tune in ended.fine_tunes] == ["cancelled", "cancelled"]
    assert (trainer.calls.count("poll"), trainer.calls.count("cancel")) == (2, 1)
    assert trainer.calls.count("find") > 2
    assert len(await work.told("The training of student 0 is stopped.")) == 1


@pytest.mark.parametrize("meanwhile", ["nothing", "killed", "paused"])
async def test_a_job_that_has_failed_trains_nothing_while_a_lost_submission_of_it_is_waited_for(
    training, trainer, meanwhile
):
    trainer.status = "queued"
    work = await training(students=3, looks=0)
    submit, count = trainer.submit, itertools.count(1)

    async def lost_at_the_second(request):
        if next(count) == 2:
            trainer.faults["upload"] = ProviderAuthFailed("No.", status=401)  # of the third
            raise LOST
        return await submit(request)

    trainer.submit = lost_at_the_second
    await work.look(3)
    if meanwhile == "killed":
        trainer.faults["find"] = Killed()
        with contextlib.suppress(Killed):
            await work.look(1)
        await let_the_lease_run_out(work.store, work.job)
    elif meanwhile == "paused":
        await work.store.jobs.change(work.job, Change(status=S.PAUSED, set={"paused_reason": PausedReason.REQUESTED}))
    ended = await work.look(60)

    assert (ended.status, ended.error.code) == (S.FAILED, "provider_auth_failed")
    assert next(count) == 3, "nothing is submitted once it has failed"
    first, second, _ = ended.fine_tunes
    assert (first.status, first.error, first.unconfirmed_nano) == ("cancelled", None, 0)
    assert (second.status, second.unconfirmed_nano) == ("cancelled", CEILING)
    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))


# --- students at two providers ---------------------------------------------------------------------------------------


class TwoLabs(Lab):
    """trainers: by the names of the providers that are configured."""

    def __init__(self, trainers):
        super().__init__(prices="lab")
        self.trainers = trainers

    def settings(self, name):
        if name not in self.trainers:
            raise JobFailed("It is no longer configured.", code="provider_unavailable", retryable=True)
        return super().settings(name)

    def trainer(self, name):
        self.settings(name)
        return self.trainers[name]


@pytest.fixture
async def apart(training, trainer):
    """A job with a student in training at `lab` and one at `other`."""
    other = ScriptedTrainer()
    other.status, other.trained_tokens = "running", trainer.trained_tokens
    work = await training(students=2, looks=0)
    students = [Student(provider=name, model="base") for name in ("lab", "other")]
    await work.store.jobs.change(work.job, Change(set={"spec": replace(work.job.spec, students=students)}))
    work._lab = TwoLabs({"lab": trainer, "other": other})
    await work.look(2)
    work.other = other
    return work


def refusing_to_stop(trainer):
    async def away(job_id):
        raise ProviderUnavailable("Down.")

    trainer.cancel = away


@pytest.mark.parametrize("how", ["cancelled", "late", "failed"])
@pytest.mark.parametrize("status", ["running", "succeeded"])
async def test_a_provider_that_is_away_keeps_nobody_from_stopping_what_trains_elsewhere(apart, trainer, how, status):
    refusing_to_stop(trainer)
    apart.other.status = status

    ended = await apart.stopped(how, stage_attempts_max=2)

    assert apart.other.cancelled == (["ftjob-0"] if status == "running" else [])
    expected = (TOKENS, 0, CEILING) if status == "succeeded" else (0, 0, 2 * CEILING)
    assert await apart.money() == (expected, expected)
    assert [tune.step for tune in ended.fine_tunes] == ["submitted", "ended"]
    assert len(await apart.told("did not stop the training of student 0")) == 1
    assert await apart.told("did not stop the training of student 1") == []


@pytest.mark.parametrize("how", ["cancelled", "late", "failed"])
async def test_a_provider_that_does_not_stop_a_training_at_once_is_asked_again(apart, trainer, how):
    cancel, fails = trainer.cancel, itertools.chain([True] * 3, itertools.repeat(False))
    trainer.status = apart.other.status = "queued"

    async def stop(job_id):
        if next(fails):
            raise ProviderUnavailable("Down.")
        await cancel(job_id)

    trainer.cancel = stop
    ended = await apart.stopped(how)

    assert (trainer.cancelled, apart.other.cancelled) == (["ftjob-0"], ["ftjob-0"])
    assert [tune.step for tune in ended.fine_tunes] == ["ended", "ended"]
    assert await apart.money() == ((0, 0, 0), (0, 0, 0)), "nothing was trained of what waited"
    assert len(await apart.told("The training of student 1 is stopped.")) == 1


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_what_was_stopped_is_booked_once_whenever_another_provider_is_given_up(apart, trainer, times):
    refusing_to_stop(trainer)
    apart.other.status = "succeeded"

    await apart.stopped("cancelled", stage_attempts_max=times)

    assert await apart.money() == ((TOKENS, 0, CEILING), (TOKENS, 0, CEILING))


@pytest.mark.parametrize("how", ["cancelled", "late", "while it trains"])
async def test_a_job_ends_although_a_provider_of_its_students_is_no_longer_configured(apart, how):
    del apart._lab.trainers["lab"]
    if how != "while it trains":
        await apart.stop(how)

    ended = await apart.look(60, stage_attempts_max=2)

    assert ended.status is (S.CANCELLED if how == "cancelled" else S.FAILED)
    assert ended.error is None or ended.error.code == ("deadline_exceeded" if how == "late" else "provider_unavailable")
    assert apart.other.cancelled == ["ftjob-0"]
    assert (await apart.money())[1] == (0, 0, 2 * CEILING)


@pytest.mark.parametrize("how", ["cancelled", "late", "while it trains"])
async def test_a_defect_of_ours_that_meets_a_training_keeps_no_job_from_ending(training, trainer, how):
    work = await training()

    async def unreadable(job_id):
        raise ValueError

    trainer.poll = unreadable
    if how != "while it trains":
        await work.stop(how)

    with structlog.testing.capture_logs():  # to render each defect takes seconds
        ended = await work.look(60, stage_attempts_max=2)

    assert (ended.status, ended.error.code) == (S.FAILED, "attempts_exhausted")
    assert await work.money() == ((0, 0, CEILING), (0, 0, CEILING))


async def test_after_the_deadline_a_provider_that_is_away_is_given_its_time(training, trainer):
    work = await training()
    refusing_to_stop(trainer)
    await work.stop("late")

    await work.look(1, retry_base_seconds=30, retry_cap_seconds=60)

    due_ms = await work.store._redis.zscore(keys.DUE, f"job:{work.job.id}")
    assert due_ms - now_ms() > 20_000


# --- crashes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [f"{call}{when}" for call in ("poll", "cancel") for when in ("", "!")])
@pytest.mark.parametrize("end", ["succeeded", "running"])
async def test_a_kill_at_any_call_books_the_training_once(training, trainer, call, end):
    work = await training()
    trainer.status = end
    trainer.faults[call] = Killed()

    await work.stop("cancelled")
    for _ in range(60):
        with contextlib.suppress(Killed):
            await work.look(1)
        if (await loaded(work.store, work.job.id)).status in TERMINAL:
            break
        await let_the_lease_run_out(work.store, work.job)

    expected = (TOKENS, 0, 0) if end == "succeeded" else (0, 0, CEILING)
    assert await work.money() == (expected, expected)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("end", ["succeeded", "running"])
async def test_a_kill_at_any_write_books_the_training_once(training, trainer, when, end):
    work = await training()
    trainer.status = end
    await work.stop("cancelled")
    change, count = work.store.jobs.change, itertools.count(1)

    async def killed_at_the_first(*args, **kwargs):
        first = next(count) == 1
        if first and when == "before":
            raise Killed
        answer = await change(*args, **kwargs)
        if first:
            raise Killed
        return answer

    work.store.jobs.change = killed_at_the_first
    with contextlib.suppress(Killed):
        await work.look(1)
    work.store.jobs.change = change
    await let_the_lease_run_out(work.store, work.job)
    assert (await work.look(60)).status is S.CANCELLED

    expected = (TOKENS, 0, 0) if end == "succeeded" else (0, 0, CEILING)
    assert await work.money() == (expected, expected)
    assert next(count) <= 3, "the record, the money and the end of the job are one write"

"""What becomes of a batch whose job ends without it: it is stopped, its answers land, and whatever else the provider
may bill is in the books."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import structlog
from builders import a_job, a_spec, accepted, loaded, now_ms, prompts, standing_at
from doubles import Lab, ScriptedBatcher, prices_of_a_nano
from engines import Killed, an_engine, let_the_lease_run_out, rung
from msgspec.structs import replace

from shared.cleanup import Kind
from shared.deletion import cleanup_of
from shared.errors import JobFailed, ProviderAuthFailed, ProviderRateLimited, ProviderRejected, ProviderUnavailable
from shared.lifecycle import TERMINAL, JobStatus, Stage
from shared.models import Budget, Teacher
from shared.pricing import batch_nano
from shared.store.jobs import Change
from worker.stages import LeaseLost
from worker.stages.batches import following
from worker.stages.batches.rounds import leave_batches

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_a_day")]
S = JobStatus
LOST = ProviderUnavailable("No answer.", billed_maybe=True)
COUNT = 10
ANSWER = batch_nano(3 + 2)  # tokens of one answer, at a nano-dollar each and half of that


CEILING = 1_697  # of all lines: half of a nano-dollar for each byte of a prompt, and for five tokens of its answer


class Labs(Lab):
    """configured: whether the operator still has the provider."""

    configured = True

    def settings(self, name):
        if not self.configured:
            raise JobFailed("It is no longer configured.", code="provider_unavailable", retryable=True)
        return super().settings(name)

    def batcher(self, name):
        self.settings(name)
        return super().batcher(name)


class Work:
    """A job in batch mode, and what it has cost."""

    def __init__(self, store, lab, prices, job):
        self.store, self.lab, self.job = store, lab, job
        self._prices = prices

    async def look(self, times=3, **fields):
        return await rung(
            self.store, an_engine(self.store, self.lab, prices=self._prices, **fields), self.job, times=times
        )

    async def stop(self, how):
        if how == "cancelled":
            await self.store.jobs.change(self.job, Change(status=S.CANCELLING, due_in_seconds=0))
        elif how == "late":
            await self.store.jobs.change(self.job, Change(set={"deadline_at_ms": 1}))
        else:  # whatever is asked next is refused for good
            refused = ProviderAuthFailed("No.", status=401)
            self.lab.the_batcher.faults |= {"poll": refused, "find": refused}

    async def stopped(self, how="cancelled", **fields):
        await self.stop(how)
        ended = await self.look(60, **fields)
        assert ended.status is (S.CANCELLED if how == "cancelled" else S.FAILED)
        codes = {"cancelled": None, "late": "deadline_exceeded", "failed": "provider_auth_failed"}
        assert (ended.error and ended.error.code) == codes[how]
        return ended

    async def money(self):
        """(spent, reserved, unconfirmed) of the job; of its tenant today it must be the same."""
        money = (await loaded(self.store, self.job.id)).money
        standing = await self.store.spending.standing(self.job.tenant)
        of_job = (money.spent_nano, money.reserved_nano, money.unconfirmed_nano)
        assert of_job == (standing.today.spent_nano, standing.reserved_nano, standing.today.unconfirmed_nano)
        return of_job

    async def told(self, part):
        events = await self.store.jobs.events(self.job.id, after=0, limit=100)
        return [event for event in events if part in event.message]


@pytest.fixture
def batcher():
    made = ScriptedBatcher()
    made.status = "in_progress"
    return made


@pytest.fixture
async def batched(real_store, batcher, tmp_path):
    """A job whose prompts are out.  limit_nano: its budget, None for none."""

    async def make(*, limit_nano=10**9, looks=2, **fields):
        teacher = Teacher(provider="lab", model="gpt-4.1", mode="batch", params={"max_completion_tokens": 5})
        spec = a_spec(teacher=teacher, budget=Budget(max_cost_nano=limit_nano))
        job = await accepted(real_store, a_job(spec=spec, chunk_size=3, limit_nano=limit_nano), prompts(COUNT))
        await standing_at(real_store, job, S.RUNNING)
        await real_store.jobs.change(job, Change(set={"stage": Stage.GENERATING}))
        lab = Labs(batcher=batcher, prices="lab", can_batch=True)
        work = Work(real_store, lab, prices_of_a_nano(tmp_path), job)
        await work.look(looks, **fields)
        return work

    return make


BUDGETS = pytest.mark.parametrize("limit_nano", [10**9, None], ids=["budget", "no budget"])
ENDS = pytest.mark.parametrize("how", ["cancelled", "late", "failed"])


# --- a submission whose answer was lost ------------------------------------------------------------------------------


@BUDGETS
@ENDS
async def test_a_submission_that_never_shows_may_be_billed(batched, batcher, how, limit_nano):
    batcher.faults["submit!"] = LOST
    batcher.visible_after = 10**6
    work = await batched(limit_nano=limit_nano, looks=1)

    ended = await work.stopped(how)

    assert await work.money() == (0, 0, CEILING)
    assert ended.counters.possibly_billed == COUNT
    assert ended.batches[0].status == "not_shown"
    [said] = await work.told("does not show")
    assert (said.level, said.data["requests"]) == ("warn", COUNT)


@ENDS
async def test_one_that_shows_is_stopped_and_its_answers_land(batched, batcher, how):
    batcher.faults["submit!"] = LOST
    batcher.visible_after = 3
    batcher.lines_of = lambda custom_id, attempt: "Billing" if int(custom_id) < 4 else None
    work = await batched(looks=1)

    ended = await work.stopped(how, unknown_outcome_wait_seconds=5)

    assert batcher.cancelled == ["batch-0"]
    assert await work.money() == (4 * ANSWER, 0, 0)
    assert ended.counters.settled == 4


@pytest.mark.parametrize("call", ["upload", "upload!"])
@ENDS
async def test_what_was_never_submitted_is_not_billed(batched, batcher, call, how):
    batcher.faults[call] = Killed()
    with contextlib.suppress(Killed):
        await (work := await batched(looks=0)).look(1)
    await let_the_lease_run_out(work.store, work.job)
    batcher.faults["find_file"] = ProviderAuthFailed("No.", status=401)

    await work.stopped(how)

    assert batcher.batches == []
    assert await work.money() == (0, 0, 0)


TURNED_AWAY = [
    ProviderRateLimited("Slow down.", status=429),
    ProviderUnavailable("Overloaded.", billed_maybe=False, status=503),
]


@pytest.mark.parametrize("refusal", TURNED_AWAY, ids=["429", "503"])
async def test_nor_is_a_submission_that_was_turned_away(batched, batcher, refusal):
    batcher.faults["submit"] = refusal
    work = await batched(looks=1)
    assert await work.money() == (0, CEILING, 0)

    await work.stopped()

    assert await work.money() == (0, 0, 0)


async def test_nor_is_one_that_an_earlier_version_has_counted_although_it_was_turned_away(batched, batcher):
    batcher.faults["submit"] = TURNED_AWAY[0]
    work = await batched(looks=1)
    [run] = (await loaded(work.store, work.job.id)).batches
    counted = replace(run, step="uploaded", submissions=1, intent_at_ms=now_ms() - 86_400_000)
    await work.store.jobs.change(work.job, Change(set={"batches": [counted]}))

    await work.stopped()

    assert await work.money() == (0, 0, 0)


@pytest.mark.parametrize("refusal", TURNED_AWAY, ids=["429", "503"])
async def test_one_that_was_turned_away_is_made_again(batched, batcher, refusal):
    batcher.faults["submit"] = refusal
    work = await batched(looks=1)

    await work.look(3)

    assert len(batcher.batches) == 1


async def test_one_that_was_turned_away_after_one_that_was_lost_leaves_that_one_in_the_books(batched, batcher):
    batcher.faults["submit!"] = LOST
    batcher.visible_after = 10**6
    work = await batched(looks=1)

    async def turned_away(input_file, metadata):
        raise TURNED_AWAY[0]

    batcher.submit = turned_away
    await work.look(3, unknown_outcome_wait_seconds=0)
    assert (await loaded(work.store, work.job.id)).batches[0].submissions == 1

    await work.stopped()

    assert await work.money() == (0, 0, CEILING)


async def test_a_provider_that_answers_no_submission_ends_the_job_and_may_bill_it(batched, batcher):
    work = await batched(looks=0)
    batcher.visible_after = 10**6

    async def never_answered(input_file, metadata):
        raise LOST

    batcher.submit = never_answered
    ended = await work.look(60, unknown_outcome_wait_seconds=0, stage_attempts_max=3)

    assert (ended.status, ended.error.code) == (S.FAILED, "provider_unavailable")
    assert ended.batches[0].submissions == 3
    assert await work.money() == (0, 0, CEILING)


# --- a batch that was submitted twice --------------------------------------------------------------------------------


async def submitted_twice(batched, batcher):
    """The first batch shows from here on."""
    batcher.faults["submit!"] = LOST
    batcher.visible_after = 10**6
    work = await batched(looks=8, unknown_outcome_wait_seconds=0.01)
    [run] = (await loaded(work.store, work.job.id)).batches
    assert (len(batcher.batches), run.batch_id) == (2, "batch-1")
    batcher.visible_after = 0
    return work


@pytest.mark.parametrize(
    ("other", "spent", "unconfirmed"),
    [
        ("completed", COUNT, 0),
        ("in_progress", 4, 0),  # stopped long before the one that is kept has ended
        ("cancelling", 0, CEILING),  # nobody knows yet what it has done
        ("gone", 0, CEILING),
    ],
)
@pytest.mark.parametrize("how", [None, "cancelled", "late"])
async def test_both_are_in_the_books_once_both_show(batched, batcher, other, spent, unconfirmed, how):
    work = await submitted_twice(batched, batcher)
    batcher.statuses["batch-0"] = {"gone": "completed", "cancelling": "in_progress"}.get(other, other)
    batcher.ends_when_cancelled = other != "cancelling"
    if other == "gone":
        batcher.files_gone = {"out-0"}
    if other == "in_progress":
        batcher.lines_of = lambda id_, attempt: "Billing" if attempt == 2 or int(id_) < 4 else None
    await work.look(1)
    batcher.statuses["batch-1"] = "completed"

    if how is None:
        ended = await rung(work.store, an_engine(work.store, work.lab, prices=work._prices), work.job, times=5)
        assert ended.batches[0].step == "ended"
    else:
        ended = await work.stopped(how)

    assert await work.money() == ((COUNT + spent) * ANSWER, 0, unconfirmed)
    assert ended.money.generating_nano == (COUNT + spent) * ANSWER
    assert [number for number in batcher.cancelled if number == "batch-1"] == []
    assert len(await work.told("was submitted twice")) == 1


async def test_the_other_is_in_the_books_as_soon_as_it_has_ended(batched, batcher):
    work = await submitted_twice(batched, batcher)
    batcher.statuses["batch-0"] = "completed"

    await work.look(3)

    assert await work.money() == (COUNT * ANSWER, CEILING, 0)
    assert len(await work.told("was submitted twice")) == 1


@pytest.mark.parametrize("other", ["completed", "in_progress"])
async def test_the_other_is_in_the_books_although_the_one_that_is_followed_never_ends(
    batched, batcher, other, monkeypatch
):
    monkeypatch.setattr(following, "_CANCELLING_SECONDS", 0)
    work = await submitted_twice(batched, batcher)
    batcher.statuses["batch-0"] = other
    batcher.ends_when_cancelled = False

    await work.stopped()

    assert await work.money() == ((COUNT * ANSWER, 0, CEILING) if other == "completed" else (0, 0, 2 * CEILING))


async def test_answers_of_the_other_that_nobody_can_read_stand_in_the_way_of_none(batched, batcher):
    work = await submitted_twice(batched, batcher)
    batcher.status = "completed"
    lines = batcher.lines

    def unreadable(file_id):
        if file_id == "out-0":
            batcher.faults["lines"] = ProviderRejected("No.", status=400)
        return lines(file_id)

    batcher.lines = unreadable
    ended = await work.look(5)

    assert ended.batches[0].step == "ended"
    assert await work.money() == (COUNT * ANSWER, 0, CEILING)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", range(1, 7))
async def test_the_other_is_booked_once_whenever_a_worker_is_killed(batched, batcher, when, point):
    work = await submitted_twice(batched, batcher)
    batcher.status = "completed"
    await work.stop("cancelled")

    await killed_at_write(work, point, when)
    assert (await work.look(60)).status is S.CANCELLED

    assert await work.money() == (2 * COUNT * ANSWER, 0, 0)
    assert len(await work.told("was submitted twice")) == 1


# --- a provider that does not stop -----------------------------------------------------------------------------------


def refusing(batcher, call):
    async def away(batch_id):
        raise ProviderUnavailable("Down.")

    setattr(batcher, call, away)


@BUDGETS
@ENDS
@pytest.mark.parametrize("call", ["cancel", "poll"])
async def test_one_that_the_provider_would_not_stop_may_be_billed_and_is_left_to_the_deletion(
    batched, batcher, call, how, limit_nano
):
    work = await batched(limit_nano=limit_nano)
    await work.stop(how)
    if how == "failed":
        await work.look(1)
    refusing(batcher, call)

    ended = await work.look(60, stage_attempts_max=2)

    assert ended.status is (S.CANCELLED if how == "cancelled" else S.FAILED)
    assert await work.money() == (0, 0, CEILING)
    [said] = await work.told("may go on there")
    assert (said.level, said.data["batch_id"], said.data["requests"]) == ("error", "batch-0", COUNT)
    wanted = cleanup_of(ended, delete_models=False, now_ms=now_ms()).remnants
    assert [remnant.id for remnant in wanted if remnant.kind is Kind.BATCH] == ["batch-0"]


@BUDGETS
@pytest.mark.parametrize("how", ["cancelled", "late", "while it runs"])
async def test_a_job_ends_as_it_should_although_its_provider_is_no_longer_configured(batched, how, limit_nano):
    work = await batched(limit_nano=limit_nano)
    work.lab.configured = False
    if how != "while it runs":
        await work.stop(how)

    ended = await work.look(60, stage_attempts_max=2)

    assert ended.status is (S.CANCELLED if how == "cancelled" else S.FAILED)
    assert ended.error is None or ended.error.code == ("deadline_exceeded" if how == "late" else "provider_unavailable")
    # Without the provider's price list, what was reserved is all that is known.
    assert await work.money() == (0, 0, CEILING if limit_nano else 0)
    assert ended.counters.possibly_billed == COUNT
    assert len(await work.told("may go on there")) == 1


async def test_what_was_never_submitted_is_not_billed_without_its_provider_either(batched, batcher):
    batcher.faults["upload"] = Killed()
    with contextlib.suppress(Killed):
        await (work := await batched(looks=0)).look(1)
    await let_the_lease_run_out(work.store, work.job)
    work.lab.configured = False

    await work.stopped()

    assert await work.money() == (0, 0, 0)


@pytest.mark.parametrize("how", ["cancelled", "late", "while it runs"])
async def test_a_defect_of_ours_keeps_no_job_from_ending(batched, batcher, how):
    work = await batched()

    async def unreadable(batch_id):
        raise ValueError

    batcher.poll = unreadable
    if how != "while it runs":
        await work.stop(how)

    with structlog.testing.capture_logs():  # to render each defect takes seconds
        ended = await work.look(60, stage_attempts_max=2)

    assert (ended.status, ended.error.code) == (S.FAILED, "attempts_exhausted")
    assert await work.money() == (0, 0, CEILING)


async def test_a_worker_that_has_lost_the_lease_leaves_no_further_batch(batched, batcher):
    work = await batched()
    [run] = (await loaded(work.store, work.job.id)).batches
    job = replace(await loaded(work.store, work.job.id), batches=[run, run])
    saves = []

    async def save(fields, **_):
        saves.append(fields)
        raise LeaseLost

    with pytest.raises(LeaseLost):
        await leave_batches(job, an_engine(work.store, work.lab, prices=work._prices)._tools, save)
    assert len(saves) == 1


# --- a batch that has ended, or ends meanwhile -----------------------------------------------------------------------


@BUDGETS
@ENDS
async def test_a_batch_that_had_ended_before_it_could_be_stopped_is_paid_and_its_answers_land(
    batched, batcher, how, limit_nano
):
    work = await batched(limit_nano=limit_nano)
    batcher.status = "completed"

    ended = await work.stopped(how)

    assert batcher.cancelled == []
    assert await work.money() == (COUNT * ANSWER, 0, 0)
    assert ended.counters.settled == COUNT
    assert len(await work.told(f"has completed: {COUNT} answered")) == 1


@ENDS
async def test_so_is_what_was_answered_of_one_that_is_stopped(batched, batcher, how):
    batcher.lines_of = lambda custom_id, attempt: "Billing" if int(custom_id) < 4 else None
    work = await batched()

    ended = await work.stopped(how)

    assert batcher.cancelled == ["batch-0"]
    assert await work.money() == (4 * ANSWER, 0, 0)
    assert ended.counters.settled == 4
    assert len(await work.told("has cancelled: 4 answered")) == 1


@pytest.mark.parametrize("status", ["cancelled", "expired"])
async def test_answers_that_are_counted_and_not_handed_out_may_be_billed(batched, batcher, status):
    batcher.lines_of = lambda custom_id, attempt: "Billing" if int(custom_id) < 4 else None
    work = await batched()
    batcher.status = status
    now = batcher._now
    batcher._now = lambda batch: replace(now(batch), output_file=None, error_file=None)

    await work.stopped()

    assert await work.money() == (0, 0, CEILING)


# --- crashes ---------------------------------------------------------------------------------------------------------


async def killed_at_write(work, point, when):
    """A worker looks after the job until it is killed at that write of its row, if there are so many."""
    change, count = work.store.jobs.change, itertools.count(1)

    async def killed(*args, **kwargs):
        strikes = next(count) == point
        if strikes and when == "before":
            raise Killed
        answer = await change(*args, **kwargs)
        if strikes:
            raise Killed
        return answer

    work.store.jobs.change = killed
    with contextlib.suppress(Killed):
        await work.look(10)
    work.store.jobs.change = change
    await let_the_lease_run_out(work.store, work.job)


@pytest.mark.parametrize("call", [f"{call}{when}" for call in ("poll", "cancel", "lines") for when in ("", "!")])
@pytest.mark.parametrize("end", ["completed", "in_progress"])
async def test_a_kill_at_any_call_books_the_batch_once(batched, batcher, call, end):
    batcher.lines_of = lambda custom_id, attempt: "Billing" if int(custom_id) < 4 else None
    work = await batched()
    batcher.status = end
    batcher.faults[call] = Killed()

    await work.stop("cancelled")
    for _ in range(60):
        with contextlib.suppress(Killed):
            await work.look(1)
        if (await loaded(work.store, work.job.id)).status in TERMINAL:
            break
        await let_the_lease_run_out(work.store, work.job)

    assert (await loaded(work.store, work.job.id)).status is S.CANCELLED
    assert await work.money() == (4 * ANSWER, 0, 0)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("point", range(1, 5))
@pytest.mark.parametrize("end", ["answered", "never shown"])
async def test_a_kill_at_any_write_books_the_batch_once(batched, batcher, when, point, end):
    if end == "never shown":
        batcher.faults["submit!"] = LOST
        batcher.visible_after = 10**6
    work = await batched(looks=1)
    await work.stop("cancelled")

    await killed_at_write(work, point, when)
    assert (await work.look(60)).status is S.CANCELLED

    assert await work.money() == ((COUNT * ANSWER, 0, 0) if end == "answered" else (0, 0, CEILING))

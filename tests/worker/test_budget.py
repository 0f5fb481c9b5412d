"""What a job may cost: at its limit it pauses or fails, says which sum is lacking, and goes on with that sum."""

from __future__ import annotations

import re

import pytest
from builders import a_job, a_spec, accepted, loaded, prompts
from doubles import Lab, ScriptedTeacher, ScriptedTrainer, an_answer, prices_of_a_nano
from engines import an_engine, in_training, rung
from pumps import pumping

from shared.lifecycle import JobStatus, PausedReason
from shared.models import Budget, Curation, FineTune, Manifest, Split
from shared.rules import parse_usd
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
S = JobStatus
#: Two examples of 100 tokens each, 25 times, at a nano-dollar each.
TRAINING_NANO = 5_000


@pytest.fixture
def store(real_store):
    return real_store


@pytest.fixture
def prices(tmp_path):
    return prices_of_a_nano(tmp_path)


def dear():
    """Answers of 20,010 nano-dollars each; the upper bound of a call is some 33,000."""

    async def answer():
        return an_answer(completion_tokens=20_000)

    return lambda _: [answer()]


def limited(limit_nano, **fields):
    spec = a_spec(
        split=Split(holdout=0.0, validation=0.0),
        curation=Curation(min_accepted=1, dedupe=False),
        budget=Budget(max_cost_nano=limit_nano, **fields),
    )
    return a_job(spec=spec, limit_nano=limit_nano, chunk_size=10, fine_tunes=[FineTune() for _ in spec.students])


async def about_to_train(store, limit_nano, **fields):
    job = await in_training(store, budget=Budget(max_cost_nano=limit_nano, **fields))
    manifest = Manifest(
        sha256="ab" * 32, holdout_sha256="cd" * 32, train=2, validation=0, holdout=0, rejected={}, train_bytes=400
    )
    await store.jobs.change(job, Change(set={"manifest": manifest, "limit_nano": limit_nano}))
    return await loaded(store, job.id)


async def told(store, job, pattern):
    """What the first group of the pattern found in the job's events, oldest first."""
    events = await store.jobs.events(job.id, after=0, limit=100)
    return [found[1] for event in events if (found := re.search(pattern, event.message))]


async def resumed(store, job, limit_nano):
    change = {"paused_reason": None, "needs_nano": None, "limit_nano": limit_nano}
    await store.jobs.change(await loaded(store, job.id), Change(status=S.RUNNING, set=change, due_in_seconds=0))


async def test_a_job_at_its_budget_says_what_it_takes_to_go_on_and_goes_on_with_just_that(store, prices):
    lab = Lab(ScriptedTeacher(dear()), prices="lab")
    job, engine = await accepted(store, limited(200_000), prompts(20)), an_engine(store, lab, prices=prices)

    async with pumping(store, lab, prices=prices, in_flight=4):
        paused = await rung(store, engine, job, times=300, until_status=S.PAUSED)
        asked = len(lab.the_teacher.asked)
        [step] = await told(store, job, r"paused: budget\.  The next step may cost up to (\S+) dollars")
        [enough] = await told(store, job, r"a budget of (\S+) dollars or more")
        assert paused.paused_reason is PausedReason.BUDGET
        assert 0.00002 < float(step) < 0.00004
        assert parse_usd(enough) == paused.money.used_nano + paused.money.needs_nano > 200_000

        await resumed(store, job, parse_usd(enough))
        again = await rung(store, engine, job, times=300, until_status=S.PAUSED)

    assert again.paused_reason is PausedReason.BUDGET
    assert len(lab.the_teacher.asked) > asked


async def test_a_job_that_is_to_fail_at_its_budget_says_what_the_next_call_may_cost(store, prices):
    lab = Lab(ScriptedTeacher(dear()), prices="lab")
    job = await accepted(store, limited(200_000, on_limit="fail"), prompts(20))

    async with pumping(store, lab, prices=prices, in_flight=4):
        ended = await rung(store, an_engine(store, lab, prices=prices), job, times=300)

    assert (ended.status, ended.error.code) == (S.FAILED, "cost_above_limit")
    assert re.search(r"next call may cost up to 0\.00003\d+ dollars", ended.error.message)


async def test_a_training_above_the_budget_says_what_it_takes_and_is_submitted_with_just_that(store, prices):
    lab = Lab(trainer=ScriptedTrainer(), prices="lab")
    job, engine = await about_to_train(store, TRAINING_NANO - 1), an_engine(store, lab, prices=prices)

    await rung(store, engine, job, until_status=S.PAUSED)
    assert await told(store, job, r"next step may cost up to (\S+) dollars") == ["0.000005"]
    [enough] = await told(store, job, r"a budget of (\S+) dollars or more")
    assert lab.the_trainer.submitted == []

    await resumed(store, job, parse_usd(enough))
    await rung(store, engine, job, until_step="ended")
    assert len(lab.the_trainer.submitted) == 1


async def test_a_training_that_is_to_fail_at_the_budget_names_the_sum(store, prices):
    lab = Lab(trainer=ScriptedTrainer(), prices="lab")
    job = await about_to_train(store, TRAINING_NANO - 1, on_limit="fail")

    ended = await rung(store, an_engine(store, lab, prices=prices), job)

    assert (ended.status, ended.error.code) == (S.FAILED, "cost_above_limit")
    assert "Training may cost up to 0.000005 dollars" in ended.error.message


@pytest.mark.parametrize(("limit_nano", "tells"), [(TRAINING_NANO * 5 // 4, ["0"]), (TRAINING_NANO * 5 // 4 + 1, [])])
async def test_a_training_under_way_counts_as_used_when_the_owner_is_told_of_80_percent(
    store, prices, limit_nano, tells
):
    lab = Lab(trainer=ScriptedTrainer(), prices="lab")
    lab.the_trainer.status = "running"
    job, engine = await about_to_train(store, limit_nano), an_engine(store, lab, prices=prices)

    await rung(store, engine, job, times=5)

    assert (await loaded(store, job.id)).fine_tunes[0].reserved_nano == TRAINING_NANO
    events = await store.jobs.events(job.id, after=0, limit=100)
    assert [event.data["spent_usd"] for event in events if "threshold_percent" in event.data] == tells
    assert (await loaded(store, job.id)).money.told_share == (80 if tells else 0)

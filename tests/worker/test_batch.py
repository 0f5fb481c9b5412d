"""Batches of the teacher's pass: how they are split, submitted once, and joined with their prompts."""

import asyncio
import contextlib
import itertools
import json
from types import MappingProxyType

import msgspec
import pytest
from builders import a_job, a_prompt, a_spec, accepted, loaded, prompts, standing_at
from doubles import ScriptedBatcher, a_line
from engines import LOST, Killed

from shared.errors import ProviderModelMissing, ProviderRateLimited, ProviderRejected, ProviderUnavailable
from shared.lifecycle import JobStatus, PausedReason
from shared.models import NANO, Budget, Teacher
from shared.ports import BatchFault
from shared.pricing import Prices, batch_nano
from shared.settings import ProviderSettings, Settings
from shared.store.jobs import Change
from worker.outcomes import Done, Fail, Pause, Wait
from worker.stages import Tools
from worker.stages.batches.lines import BatchLimits, Room, after_line, read_line
from worker.stages.batches.rounds import generate_by_batches, stop_batches

pytestmark = pytest.mark.anyio
PRICES = '[lab."*"]\ninput = "1"\noutput = "1"\n'  # 1,000 nano-dollars a token


class Providers:
    def __init__(self, batcher):
        self._batcher = batcher

    def settings(self, name):
        return ProviderSettings(base_url="http://lab.invalid/v1", prices="lab", can_batch=True)

    def batcher(self, name):
        return self._batcher


class Work:
    """A running job in batch mode.  `look` is one visit of the engine's, `to_the_end` as many as it takes."""

    def __init__(self, store, job, batcher, tmp_path, limits, **settings):
        (tmp_path / "prices.toml").write_text(PRICES)
        patience = {"poll_min_seconds": 0.01, "poll_max_seconds": 0.01, "unknown_outcome_wait_seconds": 60}
        self.settings = Settings(redis_url="redis://lab", secret_key="s" * 40, **patience | settings)
        self.store, self.job_id, self.batcher, self.limits = store, job.id, batcher, limits
        self.tools = Tools(store, Providers(batcher), Prices(tmp_path / "prices.toml"), self.settings, lambda: None)
        self.saves = 0
        self.killed_at = None  # the number of the save that is never made

    async def job(self):
        return await loaded(self.store, self.job_id)

    async def save(self, fields, add=MappingProxyType({}), events=(), notices=()):
        self.saves += 1
        if self.saves == self.killed_at:
            raise Killed
        await self.store.jobs.change(await self.job(), Change(set=fields, add=add, events=events))

    async def look(self):
        return await generate_by_batches(await self.job(), self.tools, self.save, self.limits)

    async def to_the_end(self, looks=60):
        for _ in range(looks):
            outcome = await self.look()
            if not isinstance(outcome, Wait):
                return outcome
        raise AssertionError("The job waits for ever.")

    async def completions(self):
        found = {}
        for chunk in range(100):
            found |= await self.store.content.completion_chunk(self.job_id, "teacher", chunk)
        return found


@pytest.fixture
def batcher():
    return ScriptedBatcher()


@pytest.fixture
def work(real_store, batcher, tmp_path):
    async def make(count=10, *, chunk_size=3, limits=None, source=None, max_cost_nano=None, on_limit="pause", **more):
        teacher = Teacher(provider="lab", model="gpt-4.1", mode="batch", params={"max_completion_tokens": 5})
        spec = a_spec(teacher=teacher, budget=Budget(max_cost_nano=max_cost_nano, on_limit=on_limit))
        source = prompts(count) if source is None else source
        job = await accepted(real_store, a_job(spec=spec, chunk_size=chunk_size, limit_nano=max_cost_nano), source)
        job = await standing_at(real_store, job, JobStatus.RUNNING)
        return Work(real_store, job, batcher, tmp_path, limits or BatchLimits(), **more)

    return make


# --- splitting -------------------------------------------------------------------------------------------------------


def test_a_file_takes_as_many_lines_as_it_may_have_and_as_many_bytes():
    by_number, by_size = Room(BatchLimits(2, 1_000)), Room(BatchLimits(50, 100))

    assert [by_number.take(10) for _ in range(3)] == [True, True, False]
    assert [by_size.take(size) for size in (60, 41, 40)] == [True, False, True]


def test_a_line_larger_than_a_whole_file_is_not_left_behind_for_ever():
    assert Room(BatchLimits(50, 100)).take(101)


@pytest.mark.parametrize(
    ("limits", "files"),
    [(BatchLimits(4, 10**6), [4, 4, 2]), (BatchLimits(100, 10**6), [10]), (BatchLimits(1, 10**6), [1] * 10)],
)
async def test_prompts_are_split_into_files_that_the_provider_takes(work, batcher, limits, files):
    work = await work(10, limits=limits)

    assert isinstance(await work.to_the_end(), Done)
    assert [len(asked) for asked in batcher.asked] == files
    assert sorted(itertools.chain(*batcher.asked), key=int) == [str(index) for index in range(10)]


async def test_a_file_is_split_by_its_bytes(work, batcher):
    work = await work(10, limits=BatchLimits(100, 600))

    await work.to_the_end()
    assert len(batcher.files) > 1
    assert all(len(content) <= 600 for content in batcher.files.values())
    assert sorted(itertools.chain(*batcher.asked), key=int) == [str(index) for index in range(10)]


async def test_each_line_is_the_request_that_a_live_call_would_send(work, batcher):
    work = await work(1)

    await work.to_the_end()
    line = json.loads(batcher.files["file-0"])
    assert line == {
        "custom_id": "0",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {"model": "gpt-4.1", "messages": prompts(1)[0].messages, "max_completion_tokens": 5},
    }


async def test_no_pump_sees_the_pass(work, batcher):
    work = await work()
    await work.look()

    assert await work.store.passes.open_passes(limit=10) == []


# --- joining ---------------------------------------------------------------------------------------------------------


async def test_answers_are_joined_by_their_id_in_whatever_order_they_come(work, batcher):
    batcher.lines_of = lambda custom_id, attempt: f"Answer {custom_id}"
    work = await work()

    await work.to_the_end()
    said = {
        index: json.loads(bytes(kept.raw))["choices"][0]["message"]["content"]
        for index, kept in (await work.completions()).items()
    }
    assert said == {index: f"Answer {index}" for index in range(10)}


async def test_foreign_doubled_and_broken_lines_are_ignored(work, batcher):
    strange = ["99", "-1", "x", "", "1.0", "٣", "9" * 50]
    batcher.extra_lines = [a_line(custom_id, "Strange") for custom_id in strange]
    batcher.extra_lines += [a_line("0", "Again"), b"{", b"[]", b'{"custom_id": 1}', b"\xff"]
    work = await work()

    assert isinstance(await work.to_the_end(), Done)
    assert {
        json.loads(bytes(kept.raw))["choices"][0]["message"]["content"] for kept in (await work.completions()).values()
    } == {"Billing"}
    assert (await work.job()).money.spent_nano == 10 * batch_nano(5_000)


def test_a_line_that_is_none_is_told_from_one_that_is():
    assert read_line(b'{"custom_id": "7", "response": null, "error": {"code": "batch_expired"}}').index == 7
    assert read_line(b"null") is None


def test_half_a_price_is_rounded_up():
    assert [batch_nano(nano) for nano in (0, 1, 2, 3)] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("error", "attempt", "wanted"),
    [
        (LOST, 1, "again"),
        (LOST, 3, "failed"),
        (ProviderRateLimited("Slow."), 2, "again"),
        (ProviderRateLimited("Slow."), 3, "failed"),
        (ProviderRejected("No."), 1, "failed"),
        (ProviderModelMissing("None."), 1, "stop"),
    ],
)
def test_what_becomes_of_a_line_that_failed(error, attempt, wanted):
    assert after_line(error, attempt=attempt, attempts_max=3) == wanted


async def test_a_refused_line_fails_alone_and_a_passing_error_is_asked_again(work, batcher):
    troubles = {"2": [400], "3": [500, "Billing"], "4": [None, None, "Billing"], "5": [429, "Billing"]}
    batcher.lines_of = lambda custom_id, attempt: troubles.get(custom_id, ["Billing"])[attempt - 1]
    work = await work()

    assert isinstance(await work.to_the_end(), Done)
    assert [sorted(asked, key=int) for asked in batcher.asked[1:]] == [["3", "4", "5"], ["4"]]
    completions = await work.completions()
    assert [index for index, kept in completions.items() if kept.status == "failed"] == [2]
    job = await work.job()
    assert job.money.spent_nano == 9 * batch_nano(5_000)
    assert job.counters.possibly_billed == 0


@pytest.mark.parametrize("max_cost_nano", [NANO, None], ids=["budget", "no budget"])
async def test_an_answer_that_cannot_be_read_may_be_billed(work, batcher, max_cost_nano):
    batcher.lines_of = lambda custom_id, attempt: None if custom_id == "9" else "Billing"
    unreadable = {"status_code": 200, "request_id": "r", "body": {"choices": 1}}
    batcher.extra_lines = [json.dumps({"custom_id": "9", "response": unreadable, "error": None}).encode()]
    work = await work(max_cost_nano=max_cost_nano, completion_attempts_max=1)

    await work.to_the_end()

    job = await work.job()
    assert job.counters.possibly_billed == 1
    assert job.money.unconfirmed_nano == batch_nano(1_000 * (334 + 5)), "a token per byte, and five to come"


async def test_what_expires_every_time_fails_in_the_end(work, batcher):
    batcher.lines_of = lambda custom_id, attempt: None if custom_id == "1" else "Billing"
    work = await work(completion_attempts_max=3)

    assert isinstance(await work.to_the_end(), Done)
    assert [len(asked) for asked in batcher.asked] == [10, 1, 1]
    assert (await work.completions())[1].status == "failed"


async def test_equal_prompts_are_bought_once(work, batcher):
    work = await work(source=[a_prompt("The same.") for _ in range(5)])

    assert isinstance(await work.to_the_end(), Done)
    assert [len(asked) for asked in batcher.asked] == [1]
    assert (await work.job()).counters.reused == 4


async def test_completions_that_came_with_the_prompts_are_in_no_batch(work, batcher):
    message = {"role": "assistant", "content": "Known."}
    work = await work(source=[a_prompt(f"Q{n}", completion=message if n % 2 else None) for n in range(6)])

    assert isinstance(await work.to_the_end(), Done)
    assert batcher.asked == [["0", "2", "4"]]


# --- refusals --------------------------------------------------------------------------------------------------------


async def test_a_refused_file_ends_the_job(work, batcher):
    batcher.refusals = [[], [BatchFault("invalid_request", 3, "body.x")]]
    batcher.status = "in_progress"
    work = await work(limits=BatchLimits(5, 10**6))

    outcome = await work.to_the_end()
    assert isinstance(outcome, Fail)
    assert outcome.error.code == "provider_rejected_batch"
    assert outcome.error.provider.code == "invalid_request"


async def test_a_model_whose_queue_is_full_is_asked_later_and_with_less(work, batcher):
    batcher.refusals = [[BatchFault("token_limit_exceeded", None, None)]]
    work = await work(10)

    outcome = await work.look()
    assert isinstance(outcome, Wait)
    while isinstance(outcome, Wait):
        await asyncio.sleep(0.01)
        outcome = await work.look()
    assert isinstance(outcome, Done)
    assert [len(asked) for asked in batcher.asked] == [10, 5, 5]


# --- once ------------------------------------------------------------------------------------------------------------


async def test_a_batch_is_submitted_once_wherever_the_worker_is_killed(real_store, work, batcher):
    undisturbed = await work(10, limits=BatchLimits(6, 10**6))
    await undisturbed.to_the_end()
    points = undisturbed.saves
    assert points > 8
    for point in range(1, points + 1):
        batcher.__init__()
        disturbed = await work(10, limits=BatchLimits(6, 10**6), source=[a_prompt(f"{point}/{n}") for n in range(10)])
        disturbed.killed_at = point
        with pytest.raises(Killed):
            await disturbed.to_the_end()

        assert isinstance(await disturbed.to_the_end(), Done)
        assert [len(asked) for asked in batcher.asked] == [6, 4], f"killed at save {point}"
        assert len(batcher.files) == 2
        job = await disturbed.job()
        assert job.money.spent_nano == 10 * batch_nano(5_000)
        assert (job.money.reserved_nano, job.counters.possibly_billed) == (0, 0)


@pytest.mark.parametrize("struck", ["upload!", "submit!", "poll", "poll!", "lines", "lines!", "find_file"])
async def test_an_answer_of_the_provider_that_is_lost_costs_nothing(work, batcher, struck):
    batcher.faults = {struck: LOST}
    work = await work(10)

    for _ in range(60):
        with contextlib.suppress(ProviderUnavailable):  # the engine waits, and looks again
            if isinstance(await work.look(), Done):
                break
    assert [len(asked) for asked in batcher.asked] == [10]
    assert len(batcher.files) == 1
    assert (await work.job()).counters.settled == 10


async def test_a_submission_that_shows_up_after_it_was_repeated_is_cancelled(work, batcher):
    batcher.faults = {"submit": LOST}
    work = await work(10, unknown_outcome_wait_seconds=0)
    batcher.status = "in_progress"
    await work.look()
    await work.look()
    assert len(batcher.batches) == 1
    batcher.batches.append(msgspec.structs.replace(batcher.batches[0], id="batch-1"))
    batcher.asked.append([])
    await work.look()
    batcher.status = "completed"

    assert isinstance(await work.to_the_end(), Done)
    assert batcher.cancelled == ["batch-1"]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_cancelling_keeps_what_was_answered_and_gives_the_rest_of_the_budget_back(work, batcher):
    batcher.status = "in_progress"
    batcher.lines_of = lambda custom_id, attempt: "Billing" if int(custom_id) < 4 else None
    work = await work(10, max_cost_nano=NANO)
    await work.look()
    assert (await work.job()).money.reserved_nano > 0

    assert await stop_batches(await work.job(), work.tools, work.save) is not None
    assert await stop_batches(await work.job(), work.tools, work.save) is None
    job = await work.job()
    assert batcher.cancelled == ["batch-0"]
    assert job.counters.settled == 4
    assert (job.money.reserved_nano, job.money.unconfirmed_nano) == (0, 0)


async def test_trouble_with_one_batch_keeps_no_other_from_being_stopped(work, batcher):
    batcher.status = "in_progress"
    work = await work(10, limits=BatchLimits(5, 10**6))
    while len(batcher.batches) < 2:
        await work.look()
    batcher.statuses["batch-0"] = "completed"
    lines = batcher.lines

    async def broken(file_id):
        if file_id == "out-0":
            raise LOST
        async for line in lines(file_id):
            yield line

    batcher.lines = broken
    for _ in range(3):
        with pytest.raises(ProviderUnavailable):
            await stop_batches(await work.job(), work.tools, work.save)

    assert batcher.cancelled == ["batch-1"]
    assert (await work.job()).counters.settled == 5
    batcher.lines = lines
    assert await stop_batches(await work.job(), work.tools, work.save) is None
    assert (await work.job()).counters.settled == 10


async def test_cancelling_before_anything_is_submitted_submits_nothing(work, batcher):
    batcher.faults = {"upload": Killed()}
    work = await work(10, max_cost_nano=NANO)
    with pytest.raises(Killed):
        await work.look()

    assert await stop_batches(await work.job(), work.tools, work.save) is None
    assert batcher.batches == []
    assert (await work.job()).money.reserved_nano == 0


# --- the budget ------------------------------------------------------------------------------------------------------


async def test_a_batch_holds_what_the_budget_allows_and_the_next_what_is_left_of_it(work, batcher):
    work = await work(10, max_cost_nano=600_000)

    outcome = await work.to_the_end()
    assert len(batcher.asked[0]) < 10
    assert isinstance(outcome, Done | Pause)
    job = await work.job()
    assert job.money.spent_nano + job.money.unconfirmed_nano <= 600_000
    assert job.money.reserved_nano == 0


@pytest.mark.parametrize("on_limit", ["pause", "fail"])
async def test_a_budget_that_allows_no_call_ends_as_asked_and_says_what_one_needs(work, batcher, on_limit):
    work = await work(10, max_cost_nano=10, on_limit=on_limit)

    outcome = await work.to_the_end()
    if on_limit == "pause":
        assert isinstance(outcome, Pause)
        assert outcome.reason is PausedReason.BUDGET
        assert outcome.needs_nano > 10
    else:
        assert isinstance(outcome, Fail)
        assert "may cost up to 0.000" in outcome.error.message
    assert batcher.batches == []

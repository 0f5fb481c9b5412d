"""The noticeboard: many fine-tuning jobs looked at by few requests, and none ever missed."""

import asyncio
from collections import Counter

import pytest
from builders import a_job, accepted
from doubles import ScriptedTrainer

from shared.errors import ProviderModelMissing, ProviderUnavailable
from shared.ids import JobId
from shared.ports import TrainingJob, TrainingPage
from shared.store import keys
from shared.store.followed import Entry, Pace, Sight
from worker.noticeboard import Noticeboard, due, read_on, way

pytestmark = pytest.mark.anyio
BORN = 2_000_000_000


@pytest.fixture
def store(real_store):
    return real_store


def a_training_job(number, **fields):
    defaults = {"status": "running", "state": "running", "training_file": f"file-{number}", "metadata": {"a": "b"}}
    return TrainingJob(id=f"ftjob-{number}", created_at=BORN + number, **defaults | fields)


def a_trainer(jobs, *, page_size=100):
    trainer = ScriptedTrainer()
    trainer.status = "running"
    trainer.page_size = page_size
    trainer.jobs = [a_training_job(number) for number in range(jobs)]
    return trainer


def a_board(store, trainer, **fields):
    return Noticeboard(store.followed, "lab", trainer, JobId("job_1"), **{"list_from": 3} | fields)


async def look(board, number, *, every=60.0, **how):
    return await board.look(f"ftjob-{number}", since=BORN + number - 600, every_seconds=every, **how)


async def look_at_all(board, numbers, **how):
    return [await look(board, number, **how) for number in numbers]


async def everything_is_old(store, *, by_seconds=120):
    """As if so much time had passed since what is on the board was read."""
    _, board = await store.followed.all("lab")
    older = {id_: Entry(entry.read_at_ms - by_seconds * 1000, entry.job) for id_, entry in board.items()}
    await store.followed.post("lab", older)


async def followed(store, trainer, jobs, *, page_size=100):
    """A board on which so many jobs are followed, all due."""
    board = a_board(store, trainer)
    for number in range(jobs):
        await store.followed.look("lab", f"ftjob-{number}", JobId("job_1"), since=BORN + number - 600, every_ms=60_000)
    return board


# --- what is asked ---------------------------------------------------------------------------------------------------


async def test_two_jobs_are_retrieved_and_the_list_is_left_alone(store):
    trainer = a_trainer(2)

    await look_at_all(a_board(store, trainer), [0, 1, 0, 1])

    assert trainer.calls == ["poll"] * 4


@pytest.mark.parametrize(("jobs", "pages"), [(10, 1), (100, 1), (250, 3), (1000, 10)])
async def test_in_one_interval_every_job_is_seen_for_the_price_of_the_pages(store, jobs, pages):
    trainer = a_trainer(jobs)
    board = await followed(store, trainer, jobs)

    found = await look_at_all(board, range(jobs))

    assert [seen.job.id for seen in found] == [job.id for job in trainer.jobs]
    assert Counter(trainer.calls) == {"page": pages}


async def test_in_the_next_interval_the_pages_are_read_once_more(store):
    trainer = a_trainer(250)
    board = await followed(store, trainer, 250)
    await look_at_all(board, range(250))
    await everything_is_old(store)

    await look_at_all(board, range(0, 250, 7))

    assert Counter(trainer.calls) == {"page": 6}


async def test_a_job_that_is_new_is_retrieved_once_and_then_read_with_the_others(store):
    trainer = a_trainer(30)
    board = a_board(store, trainer)

    await look_at_all(board, range(30))
    await everything_is_old(store)
    await look_at_all(board, range(30))

    assert Counter(trainer.calls) == {"poll": 30, "page": 1}


async def test_a_job_that_is_looked_at_often_does_not_have_all_pages_read_often(store):
    trainer = a_trainer(500)
    board = await followed(store, trainer, 500)
    await look(board, 0)
    trainer.calls.clear()
    trainer.jobs.append(a_training_job(500))

    for _ in range(5):
        await look(board, 500, every=0.001)
        await asyncio.sleep(0.002)

    assert trainer.calls == ["poll"] * 5


async def test_what_was_read_before_the_provider_told_of_a_change_counts_no_more(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    await look(board, 0)
    trainer.statuses["ftjob-3"] = "succeeded"

    assert (await look(board, 3)).job.state == "running"
    assert (await look(board, 3, hinted=True)).job.state == "succeeded"


async def test_many_looks_at_once_read_the_list_once(store):
    trainer = a_trainer(200)
    board = await followed(store, trainer, 200)

    found = await asyncio.gather(*(look(board, number) for number in range(0, 200, 10)))

    assert Counter(trainer.calls) == {"page": 2}
    assert all(seen.job is not None or seen.later for seen in found)


async def test_the_end_of_another_job_makes_it_due(store):
    trainer = a_trainer(5)
    board = await followed(store, trainer, 5)
    job = await accepted(store, a_job())
    await store.followed.expect("lab", "ftjob-4", job.id)
    await store._redis.zadd(keys.DUE, {f"job:{job.id}": 9_999_999_999_999})
    trainer.statuses["ftjob-4"] = "succeeded"

    await look(board, 0)

    assert await store._redis.zscore(keys.DUE, f"job:{job.id}") < 9_000_000_000_000


# --- what the list does not show -------------------------------------------------------------------------------------


async def test_a_job_deleted_at_the_provider_is_found_out(store):
    trainer = a_trainer(300)
    board = await followed(store, trainer, 300)
    trainer.deleted = {"ftjob-7"}

    found = await look_at_all(board, [0, 7, 8])

    assert [seen.job and seen.job.id for seen in found] == ["ftjob-0", None, "ftjob-8"]
    assert not any(seen.later for seen in found)
    assert trainer.calls.count("poll") == 1


async def test_a_job_too_new_for_the_list_is_retrieved(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    trainer.unlisted = {"ftjob-8", "ftjob-9"}

    found = await look_at_all(board, range(10))

    assert [seen.job.id for seen in found] == [job.id for job in trainer.jobs]
    assert Counter(trainer.calls) == {"page": 1, "poll": 2}


@pytest.mark.parametrize("jobs", [50, 450])
async def test_a_list_in_another_order_costs_a_page_more_and_misses_nothing(store, jobs):
    trainer = a_trainer(jobs)

    class OldestFirst:
        poll = trainer.poll

        async def page(self, *, after):
            with trainer._call("page"):
                start = 0 if after is None else int(after.rpartition("-")[2]) + 1
                some = [trainer._now(job) for job in trainer.jobs[start : start + 100]]
                return TrainingPage(some, start + 100 < jobs)

    board = a_board(store, OldestFirst())
    first = range(jobs - 40, jobs)  # older ones are there, and nobody follows them
    for number in first:
        await store.followed.look("lab", f"ftjob-{number}", JobId("job_1"), since=BORN + jobs - 100, every_ms=60_000)

    found = await look_at_all(board, first)

    assert [seen.job.id for seen in found] == [f"ftjob-{number}" for number in first]
    assert trainer.calls.count("page") + trainer.calls.count("poll") <= 41


async def test_a_list_that_shows_nothing_of_ours_costs_at_most_twice_as_much(store):
    trainer = a_trainer(40)
    board = await followed(store, trainer, 40)
    trainer.unlisted = {job.id for job in trainer.jobs}
    strangers = [a_training_job(number) for number in range(1000, 3000)]
    trainer.jobs += strangers

    found = await look_at_all(board, range(40))

    assert [seen.job.id for seen in found] == [f"ftjob-{number}" for number in range(40)]
    assert len(trainer.calls) <= 80


@pytest.mark.parametrize("refusal", [ProviderModelMissing("No such route.", status=404)])
async def test_a_provider_without_a_list_is_asked_one_by_one(store, refusal):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    trainer.faults["page"] = refusal

    found = await look_at_all(board, range(10))

    assert all(seen.job for seen in found)
    assert Counter(trainer.calls) == {"page": 1, "poll": 10}


# --- troubles --------------------------------------------------------------------------------------------------------


async def test_a_provider_that_does_not_answer_is_told_to_one_job_and_read_again(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    trainer.faults["page"] = ProviderUnavailable("Down.")

    with pytest.raises(ProviderUnavailable):
        await look(board, 0)

    assert (await look(board, 1)).job is not None


async def test_a_reader_that_died_is_waited_for_a_moment_and_then_replaced(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    await store.followed.begin_reading("lab", for_ms=500)  # and was killed

    assert (await look(board, 0)).later
    assert trainer.calls == []
    await asyncio.sleep(0.5)

    assert (await look(board, 0)).job is not None


async def test_while_another_reads_what_is_known_serves(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    await look(board, 0)
    await everything_is_old(store, by_seconds=100)
    await store.followed.begin_reading("lab", for_ms=5000)

    assert (await look(board, 4)).job is not None
    assert trainer.calls == ["page"]


async def test_a_page_read_before_a_crash_is_not_read_for_nothing(store):
    trainer = a_trainer(250)
    board = await followed(store, trainer, 250)

    class Killed(BaseException):
        pass

    read, pages = trainer.page, []

    async def killed_at_the_second(*, after):
        pages.append(after)
        if len(pages) == 2:
            raise Killed
        return await read(after=after)

    trainer.page = killed_at_the_second
    with pytest.raises(Killed):
        await look(board, 10)
    trainer.calls.clear()

    assert (await look(board, 249)).job is not None
    assert trainer.calls == []


async def test_what_nobody_looks_at_any_more_is_forgotten(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 9)
    await store._redis.hset(keys.followed("lab"), "ftjob-9", "[0,60000,1]")

    await look(board, 0)

    assert "ftjob-9" not in (await store.followed.all("lab"))[0]


async def test_what_another_version_has_written_is_read_again(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    await store._redis.hset(keys.noticeboard("lab"), "ftjob-0", '9999999999999 {"of": "old"}')
    await store._redis.hset(keys.followed("lab"), "ftjob-1", '{"of": "old"}')

    assert [seen.job.id for seen in await look_at_all(board, [0, 2])] == ["ftjob-0", "ftjob-2"]


async def test_an_ended_job_is_followed_no_more(store):
    trainer = a_trainer(10)
    board = await followed(store, trainer, 10)
    await look(board, 0)

    await store.followed.unfollow("lab", "ftjob-3")

    paces, entries = await store.followed.all("lab")
    assert "ftjob-3" not in paces | entries
    assert len(paces) == 9


# --- the decisions ---------------------------------------------------------------------------------------------------

KNOWN, ABSENT = Entry(1_000_000, a_training_job(1)), Entry(1_000_000, None)


@pytest.mark.parametrize(
    ("followed", "entry", "age_ms", "has_list", "hinted", "wanted"),
    [
        (1, None, 0, True, False, "retrieve"),
        (2, KNOWN, 0, True, False, "retrieve"),
        (3, None, 0, True, False, "list"),
        (3, KNOWN, 9_000, True, False, "board"),
        (3, KNOWN, 9_500, True, False, "list"),
        (3, ABSENT, 9_000, True, False, "retrieve"),
        (3, ABSENT, 9_500, True, False, "list"),
        (3, KNOWN, 9_000, True, True, "retrieve"),
        (3, KNOWN, 99_000, False, False, "retrieve"),
    ],
)
def test_where_to_look(followed, entry, age_ms, has_list, hinted, wanted):
    sight = Sight(followed, entry, 1_000_000 + age_ms, has_list)
    assert way(sight, every_ms=10_000, list_from=3, hinted=hinted) == wanted


def test_what_will_be_asked_for_before_long_is_read_too():
    paces = {name: Pace(0, every, 0) for name, every in {"fast": 1_000, "slow": 100_000, "new": 5_000}.items()}
    board = {"fast": Entry(10_000, None), "slow": Entry(10_000, None)}
    assert set(due(paces, board, 11_000)) == {"fast", "new"}
    assert set(due(paces, board, 80_000)) == {"fast", "new", "slow"}


PAGE = TrainingPage([a_training_job(9), a_training_job(8)], more=True)
OLDER, YOUNGER = Pace(BORN, 1, 1), Pace(BORN + 100, 1, 1)


@pytest.mark.parametrize(
    ("page", "pages", "met", "unmet", "on"),
    [
        (PAGE, 1, 2, [OLDER], True),
        (PAGE, 1, 2, [], False),
        (TrainingPage(PAGE.jobs, more=False), 1, 2, [OLDER], False),
        (TrainingPage([], more=True), 1, 2, [OLDER], False),
        (PAGE, 1, 2, [YOUNGER], False),
        (PAGE, 1, 0, [OLDER], False),
        (PAGE, 1, 0, [OLDER] * 3, True),
        (PAGE, 10, 2, [OLDER], False),
    ],
)
def test_pages_are_read_as_long_as_they_pay(page, pages, met, unmet, on):
    assert read_on(page, pages=pages, met=met, unmet=unmet, wanted=10, list_from=3) is on

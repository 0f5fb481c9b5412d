"""The sweep: a bounded number of rows in hand, every tenant's among them, and no message needed for any."""

import asyncio
import contextlib
from types import SimpleNamespace

import pytest
import structlog
from builders import a_job, accepted
from pumps import until

from shared.errors import NewerVersion, StoreError
from shared.ids import TenantId
from shared.queue import ADVANCE_JOB, QUEUE, celery_app
from shared.store import keys
from worker.sweeper import Sweeper, Work
from worker.tasks import register

pytestmark = pytest.mark.anyio
A, B = TenantId("a"), TenantId("b")


@pytest.fixture
def store(real_store):
    return real_store


class Engine:
    """Looks at jobs as a worker would: the lease first, and never again after.  slow: seconds by the job's id."""

    def __init__(self, store):
        self.store = store
        self.seconds = {}
        self.looked = []
        self.at_once = self.most_at_once = 0

    async def advance(self, id_):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            assert await self.store.jobs.claim(id_, lease_seconds=60) is not None
            self.looked.append(id_)
            await asyncio.sleep(self.seconds.get(id_, 0))
        finally:
            self.at_once -= 1


@contextlib.asynccontextmanager
async def sweeping(store, engine, *, hands=4, interval_seconds=0.05):
    works = {"job": Work(hands, engine.advance)}
    sweeper = Sweeper(store, works, interval_seconds=interval_seconds, grace_seconds=60)
    running = asyncio.create_task(sweeper.run())
    try:
        yield sweeper
    finally:
        running.cancel()
        await sweeper.finished(within_seconds=0)


async def test_a_row_that_waits_for_the_store_or_a_newer_worker_is_no_defect(store):
    due = [*await due_jobs(store, A, 2)]
    errors = dict(zip(due, [StoreError("Away."), NewerVersion("Later.")], strict=True))

    async def advance(id_):
        if (error := errors.pop(id_, None)) is not None:
            raise error

    with structlog.testing.capture_logs() as logged:
        async with sweeping(store, SimpleNamespace(advance=advance)):
            await until(lambda: not errors)
    assert {(line["event"], line["log_level"]) for line in logged} == {("due_row_waits", "warning")}
    assert sorted(line["code"] for line in logged) == ["newer_version", "store_unavailable"]


async def due_jobs(store, tenant, count):
    return [(await accepted(store, a_job(tenant=tenant))).id for _ in range(count)]


async def test_every_due_row_is_looked_at_once_and_no_more_at_once_than_there_are_hands(store):
    jobs, engine = await due_jobs(store, A, 30) + await due_jobs(store, B, 30), Engine(store)

    async with sweeping(store, engine), sweeping(store, engine):
        await until(lambda: len(engine.looked) == 60)

    assert sorted(engine.looked) == sorted(jobs)
    assert engine.most_at_once <= 8


async def test_a_tenant_whose_jobs_take_long_leaves_room_for_others(store):
    slow, engine = await due_jobs(store, A, 20), Engine(store)
    engine.seconds = dict.fromkeys(slow, 60)

    async with sweeping(store, engine) as sweeper:
        await until(lambda: engine.at_once == 2)
        quick = await due_jobs(store, B, 10)
        sweeper.wake()
        await until(lambda: set(quick) <= set(engine.looked), seconds=2)
        await until(lambda: engine.at_once == 2)

    assert len(engine.looked) == 12


async def test_rows_that_found_no_hand_are_taken_as_soon_as_one_is_free(store):
    await due_jobs(store, A, 12)
    engine = Engine(store)

    async with sweeping(store, engine, interval_seconds=60):
        await until(lambda: len(engine.looked) == 12, seconds=2)


async def test_the_sweep_leaves_no_message_behind(store, valkey_client):
    """However long the rows wait: what is not in hand stays in the clock alone."""
    jobs, engine = await due_jobs(store, A, 40), Engine(store)
    engine.seconds = dict.fromkeys(jobs, 60)

    async with sweeping(store, engine, interval_seconds=0.01):
        await until(lambda: engine.at_once == 2)
        await asyncio.sleep(0.2)

    assert await valkey_client.llen(QUEUE) == 0
    assert await valkey_client.zcard(keys.DUE) == 40


async def test_a_store_that_is_away_and_a_defect_in_one_row_do_not_end_the_sweep(store):
    jobs, engine = await due_jobs(store, A, 3), Engine(store)
    hand_out, troubles = store.due.hand_out, [StoreError("away"), ValueError("a defect")]

    async def away_at_first(*args, **more):
        if troubles:
            raise troubles.pop()
        return await hand_out(*args, **more)

    async def defective(id_):
        await engine.advance(id_)
        raise ValueError("a defect")

    store.due.hand_out = away_at_first
    async with sweeping(store, SimpleNamespace(advance=defective)):
        await until(lambda: sorted(engine.looked) == sorted(jobs))


async def test_a_stopping_worker_finishes_what_it_has_in_hand_and_takes_nothing_more(store):
    jobs, engine = await due_jobs(store, A, 6), Engine(store)
    engine.seconds = dict.fromkeys(jobs, 0.2)
    ended = []

    async def to_the_end(id_):
        await engine.advance(id_)
        ended.append(id_)

    async with sweeping(store, SimpleNamespace(advance=to_the_end)) as sweeper:
        await until(lambda: engine.at_once == 2)
        sweeper.stop()
        await sweeper.finished(within_seconds=2)
        await asyncio.sleep(0.1)

    assert len(ended) == len(engine.looked) == 2


def test_a_bell_waits_for_nothing_and_a_thousand_of_them_are_as_good_as_one():
    asked = []
    app = celery_app("memory://")
    register(app, SimpleNamespace(loop=SimpleNamespace(call=asked.append), look="look"))

    for _ in range(1_000):
        app.tasks[ADVANCE_JOB]("job_1")

    assert set(asked) == {"look"}

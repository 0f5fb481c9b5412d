"""Job rows, on both servers: accepted whole, moved by one holder at a time, never twice."""

import asyncio
import itertools

import pytest
from builders import TENANT, a_delivery, a_job, accepted, an_event, claimed, loaded, prompts, standing_at

from shared.errors import NewerVersion, NotFound, StoreFull
from shared.ids import DeliveryId, TenantId
from shared.lifecycle import MOVES, TERMINAL, JobStatus
from shared.models import FineTune
from shared.store import keys
from shared.store.connection import Scripts
from shared.store.jobs import Change, Refused

pytestmark = pytest.mark.anyio
S = JobStatus


@pytest.fixture
def every_script_twice(monkeypatch):
    """As when redis-py sends a script again because the first answer did not come.  Answers with the second answer."""
    run = Scripts.run

    async def twice(self, name, keys, args):
        await run(self, name, keys, args)
        return await run(self, name, keys, args)

    monkeypatch.setattr(Scripts, "run", twice)


async def due_jobs(store):
    return await store.sweep(grace_seconds=60, limit=100)


# --- acceptance ------------------------------------------------------------------------------------------------------


async def test_an_accepted_job_is_there_whole(store):
    job = await accepted(store, a_job(chunk_size=2, fine_tunes=[FineTune()]), prompts(5))

    assert await loaded(store, job.id) == job
    assert [await store.content.prompt_chunk(job.id, "source", n) for n in range(4)] == [
        prompts(5)[0:2], prompts(5)[2:4], prompts(5)[4:], []
    ]  # fmt: skip
    assert [(e.sequence, e.message) for e in await store.jobs.events(job.id, after=0, limit=9)] == [
        (1, "The job was accepted.")
    ]
    assert await listed(store) == await listed(store, S.QUEUED) == [job.id]
    assert await due_jobs(store) == [f"job:{job.id}"]


async def test_acceptance_sent_twice_is_one_job(store):
    job = await accepted(store, a_job(), prompts(3))
    await store.jobs.change(job, Change(status=S.RUNNING))

    await accepted(store, job, prompts(3))

    assert (await loaded(store, job.id)).status is S.RUNNING
    assert len(await store.jobs.events(job.id, after=0, limit=9)) == 1
    assert await listed(store) == [job.id]


async def test_a_full_server_refuses_a_job_whole_and_lets_accepted_work_finish(real_store, valkey_client):
    store = real_store
    old = await accepted(store, a_job(), prompts(1))
    await valkey_client.config_set("maxmemory", "1mb")
    new = a_job()

    with pytest.raises(StoreFull):
        await accepted(store, new, prompts(1))
    lease = await claimed(store, old)
    moved = await store.jobs.change(old, Change(status=S.RUNNING, events=[an_event()]), lease=lease)

    assert await store.jobs.load(new.id) is None
    assert not [key async for key in valkey_client.scan_iter(match=f"*{new.id}*")]
    assert new.id not in await listed(store)
    assert isinstance(moved, int)
    assert await store.jobs.renew(lease, lease_seconds=30)


async def test_new_jobs_are_not_admitted_above_four_fifths_of_the_memory(real_store, valkey_client):
    used = (await valkey_client.info("memory"))["used_memory"]
    await valkey_client.config_set("maxmemory", int(used / 0.9))

    with pytest.raises(StoreFull):
        await real_store.require_room()


# --- the life cycle --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("now", "wanted"), list(itertools.product(S, S)))
async def test_only_the_moves_in_the_table_are_possible(store, now, wanted):
    job = await standing_at(store, await accepted(store, a_job()), now)

    answer = await store.jobs.change(job, Change(status=wanted))

    after = await loaded(store, job.id)
    if wanted in MOVES[now]:
        assert answer == after.version == job.version + 1
        assert after.status is wanted
    else:
        assert answer == Refused(now, stale=False)
        assert after == job


@pytest.mark.parametrize("status", list(S))
async def test_the_list_of_each_status_holds_the_jobs_that_stand_there(store, status):
    job = await standing_at(store, await accepted(store, a_job()), status)

    found = {listed_as: await listed(store, listed_as) for listed_as in S}

    assert found == {listed_as: [job.id] if listed_as is status else [] for listed_as in S}
    assert await listed(store) == [job.id]


async def test_a_change_is_written_whole_with_its_events_and_deliveries(store):
    job = await accepted(store, a_job())
    await due_jobs(store)
    delivery = a_delivery(job)

    await store.jobs.change(
        job,
        Change(
            status=S.RUNNING,
            set={"stage_attempts": 3},
            events=[an_event("One."), an_event("Two.")],
            deliveries=[delivery],
            results={"verdict": "better"},
            due_in_seconds=0,
        ),
    )

    after = await loaded(store, job.id)
    assert (after.status, after.stage_attempts, after.has_results) == (S.RUNNING, 3, True)
    assert [(e.sequence, e.message) for e in await store.jobs.events(job.id, after=1, limit=9)] == [
        (2, "One."),
        (3, "Two."),
    ]
    assert await store.deliveries.of_job(job.id) == [delivery]
    assert await store.jobs.results(job.id) == {"verdict": "better"}
    assert sorted(await due_jobs(store)) == sorted([f"job:{job.id}", f"dlv:{delivery.id}"])


async def test_a_refused_change_writes_nothing(store):
    job = await accepted(store, a_job())
    await due_jobs(store)

    await store.jobs.change(
        job,
        Change(status=S.SUCCEEDED, events=[an_event()], deliveries=[a_delivery(job)], results={}, due_in_seconds=0),
    )

    assert await loaded(store, job.id) == job
    assert len(await store.jobs.events(job.id, after=0, limit=9)) == 1
    assert await store.deliveries.of_job(job.id) == []
    assert await store.jobs.results(job.id) is None
    assert await due_jobs(store) == []


async def test_events_are_numbered_without_gaps_under_concurrent_changes(store):
    job = await accepted(store, a_job())

    await asyncio.gather(*(store.jobs.change(job, Change(events=[an_event(), an_event()])) for _ in range(20)))

    events = await store.jobs.events(job.id, after=0, limit=100)
    assert [event.sequence for event in events] == list(range(1, 42))
    assert [e.sequence for e in await store.jobs.events_before(job.id, before=5, limit=2)] == [4, 3]
    assert (await loaded(store, job.id)).version == 21


async def test_text_that_json_and_lua_could_spoil_comes_back_as_it_was(store):
    job = await accepted(store, a_job())
    text = 'quote " backslash \\ zero \x00 line \u2028 emoji 🙂 and ]]>'

    await store.jobs.change(job, Change(events=[an_event(text, data={"deep": [[], {}], "n": 2**53 + 1})]))

    event = (await store.jobs.events(job.id, after=1, limit=1))[0]
    assert (event.message, event.data) == (text, {"deep": [[], {}], "n": 2**53 + 1})


async def test_a_foreign_job_looks_like_none(store):
    job = await accepted(store, a_job())

    with pytest.raises(NotFound):
        await store.jobs.get(TenantId("other"), job.id)
    with pytest.raises(NotFound):
        await store.jobs.version(TenantId("other"), job.id)
    assert await listed(store, tenant=TenantId("other")) == []


async def test_a_list_is_read_in_pages_in_both_directions(store):
    ids = []
    for _ in range(5):
        ids.append((await accepted(store, a_job())).id)
        await asyncio.sleep(0.002)

    async def read(*, newest_first):
        seen, after, more = [], None, True
        while more:
            page, more = await store.jobs.page(TENANT, limit=2, after=after, newest_first=newest_first, status=None)
            seen += [job.id for job in page]
            after = seen[-1]
        return seen

    assert await read(newest_first=False) == ids
    assert await read(newest_first=True) == ids[::-1]


# --- the lease -------------------------------------------------------------------------------------------------------


async def test_a_job_has_one_holder(store):
    job = await accepted(store, a_job())

    leases = await asyncio.gather(*(store.jobs.claim(job.id, lease_seconds=30) for _ in range(10)))

    assert len([lease for lease in leases if lease]) == 1


async def test_a_lease_that_ran_out_is_taken_over_and_counted(store):
    job = await accepted(store, a_job())
    first = await claimed(store, job, lease_seconds=0.02)
    await asyncio.sleep(0.04)

    second = await claimed(store, job, lease_seconds=0.02)
    await asyncio.sleep(0.04)
    third = await claimed(store, job)

    assert [first.takeovers, second.takeovers, third.takeovers] == [0, 1, 2]
    assert first.fence < second.fence < third.fence


async def test_progress_forgives_earlier_takeovers(store):
    job = await accepted(store, a_job())
    await claimed(store, job, lease_seconds=0.01)
    await asyncio.sleep(0.02)
    lease = await claimed(store, job)

    await store.jobs.change(job, Change(release=True, progress=True, due_in_seconds=0), lease=lease)

    assert (await claimed(store, job)).takeovers == 0


async def test_a_holder_that_lost_its_lease_changes_nothing(store):
    job = await accepted(store, a_job())
    stale = await claimed(store, job, lease_seconds=0.01)
    await asyncio.sleep(0.02)
    await claimed(store, job)

    answer = await store.jobs.change(job, Change(status=S.RUNNING, events=[an_event()]), lease=stale)

    assert answer == Refused(S.QUEUED, stale=True)
    await store.jobs.give_back(stale, due_in_seconds=0)
    assert not await store.jobs.renew(stale, lease_seconds=30)
    assert await due_jobs(store) == []
    assert await loaded(store, job.id) == job


async def test_a_change_to_a_job_that_a_newer_version_has_moved_says_so(store):
    job = await accepted(store, a_job())
    lease = await claimed(store, job)
    await store._redis.hset(keys.job(job.id), "status", "archived")

    with pytest.raises(NewerVersion):
        await store.jobs.change(job, Change(status=S.RUNNING), lease=lease)


async def test_a_lease_given_back_is_no_longer_good(store):
    job = await accepted(store, a_job())
    lease = await claimed(store, job)
    await store.jobs.change(job, Change(release=True, due_in_seconds=5), lease=lease)

    assert await store.jobs.change(job, Change(status=S.RUNNING), lease=lease) == Refused(S.QUEUED, stale=True)
    assert not await store.jobs.renew(lease, lease_seconds=30)
    assert (await claimed(store, job)).takeovers == 0


@pytest.mark.parametrize("status", sorted(TERMINAL))
async def test_an_ended_job_is_not_taken_and_leaves_the_clock(store, status):
    job = await standing_at(store, await accepted(store, a_job()), status)

    assert await store.jobs.claim(job.id, lease_seconds=30) is None
    assert await due_jobs(store) == []


async def test_a_worker_does_not_let_go_of_a_job_that_its_owner_has_moved_meanwhile(store):
    """Its wait was decided on what it saw: with it, a cancelled or resumed job would sleep for a day."""
    paused = await standing_at(store, await accepted(store, a_job()), S.PAUSED)
    lease = await claimed(store, paused)
    await store.jobs.change(paused, Change(status=S.RUNNING, due_in_seconds=0))

    answer = await store.jobs.change(paused, Change(release=True, due_in_seconds=86_400), lease=lease)

    assert answer == Refused(S.RUNNING, stale=False)
    assert await store.jobs.renew(lease, lease_seconds=30)


# --- scripts sent twice ----------------------------------------------------------------------------------------------


async def test_a_claim_sent_twice_is_one_claim(store, every_script_twice):
    job = await accepted(store, a_job())

    lease = await claimed(store, job)

    assert (lease.fence, lease.takeovers) == (1, 0)


async def test_a_job_given_back_twice_is_as_if_it_had_not_been_taken(store, every_script_twice):
    job = await accepted(store, a_job())
    lease = await claimed(store, job)

    await store.jobs.give_back(lease, due_in_seconds=60)

    assert not await store.jobs.renew(lease, lease_seconds=30)
    assert await due_jobs(store) == []
    assert (await claimed(store, job)).takeovers == 0


async def test_a_change_sent_twice_is_one_change(store, every_script_twice):
    job = await accepted(store, a_job())
    lease = await claimed(store, job)

    version = await store.jobs.change(
        job, Change(status=S.RUNNING, events=[an_event()], deliveries=[a_delivery(job)], release=True), lease=lease
    )

    assert version == 2
    assert len(await store.jobs.events(job.id, after=0, limit=9)) == 2
    assert len(await store.deliveries.of_job(job.id)) == 1


async def test_a_change_sent_again_after_another_one_is_still_one_change(store, client):
    job = await accepted(store, a_job())
    sent = []
    run = store.jobs._scripts.run

    async def remember(name, keys, args):
        sent.append((name, keys, args))
        return await run(name, keys, args)

    store.jobs._scripts.run = remember
    await store.jobs.change(job, Change(events=[an_event("First.")]))
    await store.jobs.change(job, Change(events=[an_event("Second.")]))

    await run(*sent[0])

    messages = [event.message for event in await store.jobs.events(job.id, after=1, limit=9)]
    assert messages == ["First.", "Second."]


# --- the sweep -------------------------------------------------------------------------------------------------------


async def test_a_due_job_is_handed_out_once_per_grace_period_however_many_sweep(store):
    jobs = [await accepted(store, a_job()) for _ in range(20)]

    swept = await asyncio.gather(*(store.sweep(grace_seconds=0.2, limit=7) for _ in range(10)))
    at_once = await store.sweep(grace_seconds=0.2, limit=100)
    await asyncio.sleep(0.25)
    again = await store.sweep(grace_seconds=0.2, limit=100)

    handed_out = [member for members in swept for member in members]
    assert sorted(handed_out) == sorted(again) == sorted(f"job:{job.id}" for job in jobs)
    assert at_once == []


async def test_the_oldest_due_row_is_the_alarm_for_stuck_jobs(store):
    assert await store.oldest_due_seconds() == 0.0
    await accepted(store, a_job())
    await asyncio.sleep(0.05)

    assert 0.03 < await store.oldest_due_seconds() < 5


# --- deliveries ------------------------------------------------------------------------------------------------------


@pytest.fixture
async def delivery(store):
    job = await accepted(store, a_job())
    made = a_delivery(job)
    await store.jobs.change(job, Change(deliveries=[made]))
    return made


async def test_one_worker_attempts_a_delivery_at_a_time(store, delivery):
    id_ = DeliveryId(delivery.id)

    claims = await asyncio.gather(*(store.deliveries.claim(id_, lease_seconds=30) for _ in range(5)))

    assert [claim for claim in claims if claim] == [delivery]


async def test_a_delivery_is_not_attempted_again_before_its_time_however_often_the_bell_rings(store, delivery):
    id_ = DeliveryId(delivery.id)
    await store.deliveries.claim(id_, lease_seconds=30)

    await store.deliveries.settle(delivery, next_attempt_in_seconds=0.2)

    assert await store.deliveries.claim(id_, lease_seconds=30) is None
    await asyncio.sleep(0.25)
    assert await store.deliveries.claim(id_, lease_seconds=30) == delivery


async def test_a_settled_delivery_is_never_looked_at_again(store, delivery):
    id_ = DeliveryId(delivery.id)
    await store.deliveries.claim(id_, lease_seconds=30)
    await store.deliveries.settle(delivery, next_attempt_in_seconds=None)

    assert await store.deliveries.claim(id_, lease_seconds=30) is None
    assert await store._redis.zscore(keys.DUE, f"dlv:{id_}") is None
    assert await store.deliveries.of_job(delivery.job_id) == [delivery]


async def listed(store, status=None, *, tenant=TENANT):
    page, more = await store.jobs.page(tenant, limit=100, after=None, newest_first=False, status=status)
    assert more is False
    return [job.id for job in page]

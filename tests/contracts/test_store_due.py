"""The due clock, on both servers: everybody's row gets its turn, and none is handed out twice."""

import asyncio

import pytest
from builders import a_delivery, a_job, accepted, now_ms

from shared.ids import TenantId
from shared.store import due, keys
from shared.store.due import Due, Room
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
A, B = TenantId("a"), TenantId("b")


async def due_jobs(store, tenant, count):
    return [(await accepted(store, a_job(tenant=tenant))).id for _ in range(count)]


async def handed_out(store, rows, *, share=100, held=(), kind="job", grace_seconds=60):
    rooms = {kind: Room(rows, share, dict(held))}
    return await store.due.hand_out(rooms, grace_seconds=grace_seconds)


async def test_a_row_behind_very_many_of_another_tenant_is_handed_out_among_the_first(store):
    await due_jobs(store, A, 60)
    (late,) = await due_jobs(store, B, 1)

    found = await handed_out(store, 4)

    assert len(found) == 4
    assert Due("job", late, B) in found


async def test_rows_of_one_tenant_are_handed_out_in_the_order_of_their_times(store):
    jobs = await due_jobs(store, A, 6)
    await asyncio.sleep(0.01)

    found = await handed_out(store, 3) + await handed_out(store, 100)

    assert sorted(row.id for row in found) == sorted(jobs)
    assert [row.tenant for row in found] == [A] * 6


async def test_a_tenant_gets_no_more_than_its_share_and_the_rest_stays_due(store):
    jobs = await due_jobs(store, A, 6)

    assert len(await handed_out(store, 10, share=4)) == 4
    assert await handed_out(store, 10, share=4, held={A: 4}) == []
    assert len(await handed_out(store, 10, share=4, held={A: 2})) == 2
    assert len(jobs) == 6


async def test_the_next_row_goes_to_the_tenant_with_the_fewest_in_hand(store):
    await due_jobs(store, A, 3)
    await due_jobs(store, B, 3)

    found = await handed_out(store, 2, held={A: 2})

    assert [row.tenant for row in found] == [B, B]


async def test_a_kind_without_room_is_left_alone_and_still_due(store):
    (job,) = await due_jobs(store, A, 1)

    assert await handed_out(store, 5, kind="dlv") == []
    assert await handed_out(store, 0) == []
    assert [row.id for row in await handed_out(store, 5)] == [job]


async def test_rows_that_have_to_wait_do_not_hide_those_behind_them(store, monkeypatch):
    """More is due than one sweep looks at, and all of it belongs to a tenant that has its share."""
    monkeypatch.setattr(due, "_SCAN", 10)
    await due_jobs(store, A, 35)
    (late,) = await due_jobs(store, B, 1)
    await asyncio.sleep(0.002)

    sweeps = []
    for _ in range(8):
        sweeps += await handed_out(store, 5, share=2, held={A: 2})
        await asyncio.sleep(0.002)

    assert sweeps == [Due("job", late, B)]
    assert len(await handed_out(store, 50, share=50)) == 10


async def test_webhooks_and_retention_count_for_their_tenant(store, client):
    job = await accepted(store, a_job(tenant=B))
    delivery = a_delivery(job, body='{"tenant":"a","text":"\\"tenant\\":\\"a\\""}')
    await store.jobs.change(job, Change(deliveries=[delivery], set={"expires_at_ms": now_ms() - 10}))

    rooms = {kind: Room(5, 5, {}) for kind in ("dlv", "exp")}
    found = await store.due.hand_out(rooms, grace_seconds=60)

    assert sorted(found, key=lambda row: row.kind) == [Due("dlv", delivery.id, B), Due("exp", job.id, B)]


async def test_a_row_that_is_gone_is_handed_out_so_that_the_clock_forgets_it(store, client):
    await client.zadd(keys.DUE, {"job:job_gone": 1, "dlv:dlv_gone": 1})

    rooms = {kind: Room(5, 5, {}) for kind in ("job", "dlv")}
    found = await store.due.hand_out(rooms, grace_seconds=60)

    assert {row.id for row in found} == {"job_gone", "dlv_gone"}


async def test_what_a_newer_version_enters_into_the_clock_is_left_to_it(store, client):
    await client.zadd(keys.DUE, {"new:thing": 1, "odd": 1})

    assert await store.sweep(grace_seconds=60, limit=9) == []
    assert await client.zscore(keys.DUE, "new:thing") == 1

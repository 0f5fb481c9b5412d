"""Which open passes a pump draws from when there are more than it can hold: every tenant has its share."""

import asyncio

import pytest
from builders import (
    a_job,
    accepted,
    prompts,
)
from passes import CHUNK, Bench

from shared.ids import TenantId
from shared.lifecycle import JobStatus
from shared.store import keys, passes
from shared.store.passes import Halt, PassId

pytestmark = pytest.mark.anyio
S = JobStatus


async def opened(store, tenant, count):
    """So many open passes of a tenant, the longest open first."""
    made = []
    for _ in range(count):
        job = await accepted(store, a_job(tenant=TenantId(tenant), chunk_size=CHUNK), prompts(1))
        made.append(PassId(job.id, "teacher"))
        await store.passes.open(made[-1], prompts=1, chunk_size=CHUNK, smoke=0)
        await asyncio.sleep(0.002)
    return made


async def test_a_tenant_with_more_passes_than_the_window_does_not_keep_another_tenants_out(store):
    many = await opened(store, "a", 8)
    (late,) = await opened(store, "b", 1)

    window = await store.passes.open_passes(limit=4)

    assert window == [("a", many[0]), ("b", late), ("a", many[1]), ("a", many[2])]


async def test_the_window_is_shared_evenly_and_what_one_does_not_use_is_for_the_others(store):
    few, some, many = await opened(store, "a", 1), await opened(store, "b", 3), await opened(store, "c", 9)

    window = [pass_id for _, pass_id in await store.passes.open_passes(limit=9)]

    assert sorted(map(str, window)) == sorted(map(str, [*few, *some, *many[:5]]))
    assert len(await store.passes.open_passes(limit=100)) == 13


async def test_more_tenants_than_the_window_holds_take_turns(store, monkeypatch):
    monkeypatch.setattr(passes, "_TURN_MS", 20)
    everybody = {(await opened(store, f"t{n}", 2))[0] for n in range(7)}
    seen = set()

    for _ in range(200):
        window = await store.passes.open_passes(limit=3)
        assert len({tenant for tenant, _ in window}) == 3
        seen |= {pass_id for _, pass_id in window}
        if seen == everybody:
            break
        await asyncio.sleep(0.005)

    assert seen == everybody


async def test_a_tenant_without_open_passes_is_forgotten(store, client):
    for end in ("complete", "halt", "close"):
        bench = await Bench.of(store, count=1)
        match end:
            case "complete":
                await bench.claim()
                await bench.settle(0)
            case "halt":
                await store.passes.halt(bench.pass_id, Halt("pause", "budget"))
            case "close":
                await store.passes.close(bench.job.tenant, bench.pass_id)

        assert await store.passes.open_passes(limit=9) == []
        assert await client.exists(keys.OPEN, keys.open_passes(bench.job.tenant)) == 0

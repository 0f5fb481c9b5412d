"""Two jobs that ask the same: one buys, the other waits for it while its worker may answer, and no longer."""

import time
from dataclasses import replace

import pytest
from builders import (
    a_beginning,
    a_settlement,
    loaded,
)
from passes import CHUNK, Bench

from shared.deletion import mark_deleted
from shared.lifecycle import JobStatus
from shared.store import keys
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
S = JobStatus


async def asked_by_two(store):
    """(the job that is buying, the one that asks the same)"""
    first, second = await Bench.of(store, count=4), await Bench.of(store, count=4)
    await first.claim("a")
    await second.claim("b")
    assert await asks(first, "a1", token="a") == "go"
    return first, second


async def asks(bench, call, *, token, index=0):
    beginning = replace(a_beginning(index, call, chunk_size=CHUNK), fingerprint="same")
    return (await bench.tick(token, begin=[beginning])).answers[0]


async def ends(store, bench, status=S.CANCELLED):
    for target in (S.CANCELLING, status):
        await store.jobs.change(bench.job, Change(status=target))


async def lease_ended(client, bench, *, seconds_ago):
    chunks = keys.pass_chunks(bench.job.id, "teacher")
    assert await client.zadd(chunks, {"0": (time.time() - seconds_ago) * 1000}, xx=True, ch=True)


@pytest.mark.parametrize("has_ended", [False, True])
async def test_what_another_job_is_buying_is_waited_for_while_its_worker_may_answer(store, client, has_ended):
    first, second = await asked_by_two(store)
    if has_ended:
        await ends(store, first)

    assert await asks(second, "b1", token="b") == "twin"
    await lease_ended(client, first, seconds_ago=0.2)
    assert await asks(second, "b2", token="b") == "twin", "its answer may be on its way to the store"
    await first.tick("a", settle=[replace(a_settlement(0, "a1"), fingerprint="same", ledger_seconds=60)])

    assert await asks(second, "b3", token="b") == "paid"
    assert await second.money() == (0, 0, 0, 0)


@pytest.mark.parametrize("has_ended", [False, True])
async def test_the_call_of_a_worker_that_vanished_is_not_waited_for(store, client, has_ended):
    first, second = await asked_by_two(store)
    if has_ended:
        await ends(store, first)
    await lease_ended(client, first, seconds_ago=2.5)

    assert await asks(second, "b1", token="b") == "go"
    assert await asks(await opened_by(store, "c"), "c1", token="c") == "twin", "it is the second's now"

    await first.end(0, "a1", lost=True)
    assert await asks(await opened_by(store, "d"), "d1", token="d") == "twin"


async def opened_by(store, token):
    bench = await Bench.of(store, count=4)
    await bench.claim(token)
    return bench


async def test_a_call_whose_chunk_another_worker_holds_or_nobody_is_not_waited_for(store, client):
    for let_go in (True, False):
        first, second = await asked_by_two(store)
        if let_go:
            await store.passes.give_back(first.pass_id, "a", [0])
        else:
            await lease_ended(client, first, seconds_ago=0.2)
            assert await first.claim("c") == (0, "vanished")

        assert await asks(second, "b1", token="b") == "go"
        await second.end(0, "b1", lost=False)
        await client.delete(keys.ledger(second.job.tenant, "same"))


async def test_an_answer_that_will_not_be_kept_is_not_waited_for(store):
    first, second = await asked_by_two(store)
    await ends(store, first)

    await mark_deleted(store, await loaded(store, first.job.id), delete_models=False, now_ms=1)

    assert await asks(second, "b1", token="b") == "go"


async def test_a_call_of_an_older_version_is_waited_for_until_its_entry_runs_out(store, client):
    bench = await opened_by(store, "b")
    await client.set(keys.ledger(bench.job.tenant, "same"), "call|a1")

    assert await asks(bench, "b1", token="b") == "twin"


async def test_a_pass_that_only_waits_for_another_job_tells_so_once(store):
    first, second = await asked_by_two(store)
    assert await store.passes.wait_to_tell(second.pass_id) is None

    await second.begin(1, "b0", token="b")
    await asks(second, "b1", token="b")
    assert await store.passes.wait_to_tell(second.pass_id) is None, "it has a call of its own to wait for"
    await second.end(1, "b0", lost=True, token="b")
    await asks(second, "b2", token="b")

    told = [await store.passes.wait_to_tell(second.pass_id) for _ in range(2)]
    assert told == [first.job.id, None]


async def test_calls_that_nobody_keeps_are_lost_and_those_of_a_living_worker_are_not(store, client):
    bench = await Bench.of(store, count=12)
    for chunk, token in enumerate("abc"):
        await bench.claim(token)
        await bench.begin(chunk * CHUNK, f"{token}1", token=token)
    await bench.begin(1, "a2", token="a")
    await bench.end(1, "a2", lost=True, token="a")
    await lease_ended(client, bench, seconds_ago=3)
    await store.passes.give_back(bench.pass_id, "b", [1])

    lost, seconds = await store.passes.abandoned(bench.pass_id, late_seconds=2)
    assert sorted((ended.chunk, ended.index, ended.call) for ended in lost) == [(0, 0, "a1"), (1, 4, "b1")]
    assert 30 < seconds <= 32
    assert (await store.passes.abandoned(bench.pass_id, late_seconds=10))[1] < 8

    for _ in range(2):
        await bench.tick("", settle=lost)
    assert await bench.money() == (0, 100, 300, 3)
    assert [ended.call for ended in (await store.passes.abandoned(bench.pass_id, late_seconds=2))[0]] == []

"""Passes, on both servers: no chunk has two holders, no call counts twice, no budget is exceeded."""

import asyncio
import random
import time
from dataclasses import replace

import fakeredis
import pytest
from builders import (
    a_beginning,
    a_job,
    a_settlement,
    accepted,
    an_end_without_answer,
    loaded,
    prompts,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from passes import CHUNK, Bench

from shared.deletion import mark_deleted
from shared.ids import TenantId
from shared.lifecycle import JobStatus
from shared.models import JobError
from shared.store import Store, keys, passes
from shared.store.jobs import Change
from shared.store.passes import Halt, PassId

pytestmark = pytest.mark.anyio
S = JobStatus


# --- chunks ----------------------------------------------------------------------------------------------------------


async def test_no_chunk_has_two_holders(store):
    bench = await Bench.of(store, count=10)

    claims = await asyncio.gather(*(bench.claim(f"worker{n}") for n in range(5)))

    assert sorted(claim for claim in claims if claim) == [(0, False), (1, False), (2, False)]


async def test_a_chunk_whose_holder_vanished_is_taken_over_and_marked_so(store):
    bench = await Bench.of(store, count=4)
    await bench.claim("a", lease_seconds=0.02)
    await asyncio.sleep(0.04)

    assert await bench.claim("b") == (0, True)
    assert await store.passes.renew_chunks(bench.pass_id, "a", [0], lease_seconds=30) == (True, set())


async def test_a_chunk_given_back_is_free_at_once_and_not_taken_over(store):
    bench = await Bench.of(store, count=4)
    await bench.claim("a")

    await store.passes.give_back(bench.pass_id, "a", [0])

    assert await bench.claim("b") == (0, False)


async def test_nobody_gives_back_or_renews_what_another_holds(store):
    bench = await Bench.of(store, count=4)
    await bench.claim("a")

    await store.passes.give_back(bench.pass_id, "b", [0])

    assert await store.passes.renew_chunks(bench.pass_id, "b", [0], lease_seconds=30) == (True, set())
    assert await bench.claim("c") is None


async def test_a_renewed_chunk_is_not_taken_over(store):
    bench = await Bench.of(store, count=4)
    await bench.claim("a", lease_seconds=0.05)

    assert await store.passes.renew_chunks(bench.pass_id, "a", [0], lease_seconds=30) == (True, {0})
    await asyncio.sleep(0.07)

    assert await bench.claim("b") is None


async def test_a_worker_learns_when_it_renews_that_nothing_more_may_start(store):
    paused, halted, complete = [await Bench.of(store, count=1) for _ in range(3)]
    await store.jobs.change(paused.job, Change(status=S.PAUSED))
    await store.passes.halt(halted.pass_id, Halt("pause", "budget"))
    await complete.claim()
    await complete.settle(0)

    for bench in (paused, halted, complete):
        open_, _ = await store.passes.renew_chunks(bench.pass_id, "a", [], lease_seconds=30)
        assert not open_, bench


# --- two jobs that ask the same --------------------------------------------------------------------------------------


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
            assert await first.claim("c") == (0, True)

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


# --- completions -----------------------------------------------------------------------------------------------------


async def test_the_first_completion_of_a_prompt_is_kept(store):
    bench = await Bench.of(store, count=4)
    await bench.claim()

    await bench.settle(2, "a1")
    await bench.settle(2, "a2", outcome="rejected")

    assert (await store.content.completion(bench.job.id, "teacher", 0, 2)).id == "cmp_2_a1"
    state = await bench.state()
    assert (state.settled, state.accepted, state.rejected) == (1, 1, 0)


async def test_the_job_is_due_at_once_when_its_last_prompt_is_settled(store):
    bench = await Bench.of(store, count=6)
    await store.sweep(grace_seconds=60, limit=100)
    for _ in range(2):
        await bench.claim()

    results = [await bench.settle(index) for index in range(6)]

    assert [result.state for result in results] == ["open"] * 5 + ["complete"]
    assert await store.sweep(grace_seconds=60, limit=100) == [f"job:{bench.job.id}"]
    assert await store.passes.open_passes(limit=10) == []
    assert await bench.open() == "complete"


async def test_only_a_pass_that_pumps_could_not_draw_from_is_told_of_as_opened(store):
    bench = await Bench.of(store, count=3)
    assert await bench.open() == "open"

    await store.passes.halt(bench.pass_id, Halt("pause", "budget"))
    await store.passes.clear_halt(bench.pass_id)
    assert [await bench.open(), await bench.open()] == ["opened", "open"]

    await store.passes.close(bench.job.tenant, bench.pass_id)
    assert [await bench.open(), await bench.open()] == ["opened", "open"]


async def test_a_halt_that_the_engine_has_not_read_outlives_an_opening(store):
    """The pass was halted after the engine had looked at it, and before it opened it."""
    bench = await Bench.of(store, count=3)
    halt = Halt("fail", "smoke_test_failed")

    await store.passes.halt(bench.pass_id, halt)

    assert await bench.open() == "open"
    assert (await store.passes.state(bench.pass_id)).halt == halt
    assert await store.passes.open_passes(limit=10) == []


async def test_a_server_that_has_just_started_is_given_the_scripts(store, client):
    bench = await Bench.of(store, count=6)
    await bench.claim()
    await client.script_flush()

    assert await bench.claim() == (1, False)
    await client.script_flush()
    assert (await bench.settle(0)).settled == 1


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


async def test_a_late_answer_completes_a_chunk_that_another_holds_by_now(store):
    bench = await Bench.of(store, count=1)
    await bench.claim("a", lease_seconds=0.01)
    await bench.begin(0, "a1")
    await asyncio.sleep(0.02)
    await bench.claim("b")

    result = await bench.settle(0, "a1", token="a")

    assert result.state == "complete"
    assert await bench.begin(0, "b1", token="b") in {"unleased", "settled"}
    assert await bench.money() == (10, 0, 0, 0)


async def test_a_pass_without_prompts_is_complete(store):
    bench = await Bench.of(store, count=0)

    assert (await bench.state()).complete


# --- which calls may begin -------------------------------------------------------------------------------------------


async def test_only_the_holder_of_a_chunk_begins_its_calls(store):
    bench = await Bench.of(store, count=8)
    await bench.claim("a")

    assert await bench.begin(0, "b1", token="b") == "unleased"
    assert await bench.begin(4, "a1") == "unleased"
    assert await bench.begin(0, "a1") == "go"


async def test_a_settled_prompt_is_not_asked_again(store):
    bench = await Bench.of(store)
    await bench.claim()
    await bench.settle(1)

    assert await bench.begin(1, "a1") == "settled"


@pytest.mark.parametrize("status", [S.PAUSED, S.CANCELLING, S.FAILED])
async def test_nothing_begins_unless_the_job_runs(store, status):
    bench = await Bench.of(store)
    await bench.claim()
    await store.jobs.change(bench.job, Change(status=status))

    assert await bench.begin(0, "a1") == "stopped"
    assert (await bench.settle(1)).settled == 1


async def test_nothing_begins_in_a_halted_pass_and_the_engine_is_called(store):
    bench = await Bench.of(store)
    await bench.claim()
    await store.sweep(grace_seconds=60, limit=9)
    why = Halt("fail", "provider_auth_failed", JobError(code="provider_auth_failed", message="No."))

    await store.passes.halt(bench.pass_id, why)
    await store.passes.halt(bench.pass_id, Halt("pause", "budget"))

    assert (await bench.state()).halt == why
    assert await bench.begin(0, "a1") == "stopped"
    assert await bench.claim("b") is None
    assert await store.passes.open_passes(limit=9) == []
    assert await store.sweep(grace_seconds=60, limit=9) == [f"job:{bench.job.id}"]


async def test_a_halt_is_void_once_the_job_was_resumed(store):
    """A call that began before the pause fails after it; its halt must not pause the job its owner has resumed."""
    bench = await Bench.of(store)
    await store.jobs.change(bench.job, Change(status=S.PAUSED))
    await store.passes.halt(bench.pass_id, Halt("pause", "provider_quota"))

    await store.jobs.change(bench.job, Change(status=S.RUNNING))

    assert (await bench.state()).halt is None
    await bench.open()
    await bench.claim()
    assert await bench.begin(0, "a1") == "go"


async def test_a_trial_lets_through_as_many_calls_as_it_may(store):
    bench = await Bench.of(store, count=10, smoke=3)
    await bench.claim()

    answers = [await bench.begin(index, f"a{index}") for index in range(4)]
    for index in range(3):
        await bench.settle(index, f"a{index}")

    assert answers == ["go", "go", "go", "smoke"]
    assert await bench.begin(3, "a4") == "smoke"
    await store.passes.smoke_passed(bench.pass_id)
    assert await bench.begin(3, "a5") == "go"


@pytest.mark.parametrize("lost", [True, False])
async def test_a_call_that_brought_no_answer_is_tried_again_within_the_trial(store, lost):
    bench = await Bench.of(store, count=10, smoke=2)
    await bench.claim()
    await bench.begin(0, "a1")
    await bench.begin(1, "a2")

    await bench.end(0, "a1", lost=lost)

    assert await bench.begin(2, "a3") == "go"
    assert await bench.begin(0, "a4") == "smoke"


# --- money -----------------------------------------------------------------------------------------------------------


async def test_a_calls_upper_bound_is_reserved_and_settled_to_its_cost(store):
    bench = await Bench.of(store, limit_nano=1000)
    await bench.claim()

    await bench.begin(0, "a1", 300)
    assert await bench.money() == (0, 300, 0, 0)
    await bench.settle(0, "a1", cost_nano=120)

    assert await bench.money() == (120, 0, 0, 0)


async def test_a_call_that_could_exceed_the_budget_does_not_begin(store):
    bench = await Bench.of(store, limit_nano=250)
    await bench.claim()

    assert [await bench.begin(i, f"a{i}", 100) for i in range(3)] == ["go", "go", "budget"]
    await bench.settle(0, "a0", cost_nano=50)

    assert await bench.begin(2, "a3", 100) == "go"
    assert await bench.money() == (50, 200, 0, 0)


async def test_calls_that_begin_together_share_one_budget(store):
    bench = await Bench.of(store, limit_nano=250)
    await bench.claim()

    result = await bench.tick(begin=[a_beginning(i, f"a{i}", 100, chunk_size=CHUNK) for i in range(4)])

    assert result.answers == ["go", "go", "budget", "budget"]
    assert result.reserved_nano == 200


async def test_a_call_without_an_answer_frees_its_reserve_when_it_cannot_have_been_billed(store):
    bench = await Bench.of(store, limit_nano=1000)
    await bench.claim()
    await bench.begin(0, "a1")

    await bench.end(0, "a1", lost=False)

    assert await bench.money() == (0, 0, 0, 0)


async def test_a_lost_call_keeps_its_upper_bound_until_its_answer_comes_after_all(store):
    bench = await Bench.of(store, limit_nano=1000)
    await bench.claim()
    await bench.begin(0, "a1")

    await bench.end(0, "a1", lost=True)
    assert await bench.money() == (0, 0, 100, 1)
    await bench.settle(0, "a1")

    assert await bench.money() == (10, 0, 0, 0)


async def test_what_a_vanished_worker_had_asked_may_have_been_billed(store):
    bench = await Bench.of(store, limit_nano=1000)
    await bench.claim("a", lease_seconds=0.01)
    await bench.begin(0, "a1")
    await asyncio.sleep(0.02)
    await bench.claim("b")

    assert await bench.begin(0, "b1", token="b") == "go"
    assert await bench.money() == (0, 100, 100, 1)
    await bench.settle(0, "b1", token="b")
    await bench.settle(0, "a1", token="a", cost_nano=30)

    assert await bench.money() == (40, 0, 0, 0)


async def test_reserves_of_a_vanished_worker_do_not_keep_the_budget_waiting(store):
    """Waiting for them would be for ever: nothing comes back that could free them."""
    bench = await Bench.of(store, count=8, limit_nano=450)
    await bench.claim("a", lease_seconds=0.01)
    await bench.tick("a", begin=[a_beginning(i, f"a{i}", 100, chunk_size=CHUNK) for i in range(4)])
    await asyncio.sleep(0.02)

    await bench.claim("b")
    refused = await bench.tick("b", begin=[a_beginning(0, "b1", 100, chunk_size=CHUNK)])

    assert refused.answers == ["budget"]
    assert refused.reserved_nano == 0


async def test_reserves_of_another_living_worker_are_waited_for(store):
    bench = await Bench.of(store, count=8, limit_nano=150)
    await bench.claim("a")
    await bench.claim("b")
    await bench.begin(0, "a1")

    refused = await bench.tick("b", begin=[a_beginning(4, "b1", 100, chunk_size=CHUNK)])

    assert (refused.answers, refused.reserved_nano) == (["budget"], 100)


async def test_an_unpriced_answer_is_counted_as_such(store):
    bench = await Bench.of(store)
    await bench.claim()
    await bench.begin(0, "a1", 0)

    await bench.settle(0, "a1", cost_nano=None)

    assert (await loaded(store, bench.job.id)).counters.unpriced_calls == 1


async def test_a_full_server_still_takes_answers(real_store, valkey_client):
    bench = await Bench.of(real_store)
    await bench.claim()
    await bench.begin(0, "a1")
    await valkey_client.config_set("maxmemory", "1mb")

    assert (await bench.settle(0, "a1")).settled == 1
    assert await bench.begin(1, "a2") == "go"
    await real_store.passes.halt(bench.pass_id, Halt("pause", "budget"))
    assert (await bench.state()).halt is not None


# --- scripts sent twice ----------------------------------------------------------------------------------------------


async def test_a_tick_sent_twice_counts_once(store, every_script_twice):
    bench = await Bench.of(store, count=8, limit_nano=1000)
    await bench.claim("a")
    await store.passes.give_back(bench.pass_id, "a", [1])

    began = await bench.tick(begin=[a_beginning(i, f"a{i}", chunk_size=CHUNK) for i in range(3)])
    ended = await bench.tick(
        settle=[
            a_settlement(0, "a0", chunk_size=CHUNK),
            an_end_without_answer(1, "a1", lost=True, chunk_size=CHUNK),
            an_end_without_answer(2, "a2", lost=False, chunk_size=CHUNK),
        ],
        begin=[a_beginning(1, "a4", chunk_size=CHUNK)],
    )

    assert (began.answers, ended.answers) == (["go"] * 3, ["go"])
    assert ended.settled == 1
    assert await bench.money() == (10, 100, 100, 1)


# --- whatever happens ------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), limit=st.integers(0, 900))
def test_the_books_balance_whatever_workers_do(seed, limit):
    """Random calls, answers, losses, takeovers and doubled scripts: reserved is the sum of the open calls, every cost
    is counted once, and the budget holds while no answer costs more than its upper bound."""
    asyncio.run(_keep_books(random.Random(seed), limit))


async def _keep_books(rng, limit):
    server = fakeredis.FakeAsyncRedis()
    bench = await Bench.of(Store(server, script_headers=False), count=6, limit_nano=limit)
    for _ in range(2):
        await bench.claim("a")
    holder = {0: "a", 1: "a"}
    ceilings, reserved, lost, ended, cost_of = {}, {}, {}, set(), {}
    spent = 0
    for number in range(40):
        index = rng.randrange(6)
        token = holder[index // CHUNK]
        match rng.choice(["begin", "begin", "answer", "answer", "lose", "drop", "take over"]):
            case "begin":
                call, ceiling = f"{token}{number}", rng.randrange(0, 200)
                beginning = [a_beginning(index, call, ceiling, chunk_size=CHUNK)]
                result = await bench.tick(token, begin=beginning)
                ceilings[index, call] = ceiling
                cost_of[index, call] = rng.randint(0, ceiling)
                if result.answers in (["go"], ["budget"]):
                    if index in reserved:  # the call of a holder that vanished
                        old = reserved.pop(index)
                        lost[old] = ceilings[old]
                    if result.answers == ["go"]:
                        reserved[index] = (index, call)
                        if rng.random() < 0.3:
                            assert (await bench.tick(token, begin=beginning)).answers == ["go"]
            case "take over":
                chunk = rng.randrange(2)
                await server.zadd(keys.pass_chunks(bench.job.id, "teacher"), {str(chunk): 1}, xx=True)
                claim = await bench.claim(f"b{number}")
                if claim is not None:
                    assert claim == (chunk, True)
                    holder[chunk] = f"b{number}"
            case end:
                known = [call for call in ceilings if call not in ended]
                if not known:
                    continue
                call = rng.choice(known)
                open_, was_lost = call in reserved.values(), call in lost
                if end == "answer":
                    settlement = a_settlement(*call, chunk_size=CHUNK, cost_nano=cost_of[call])
                    if open_ or was_lost:
                        spent += cost_of[call]
                        ended.add(call)
                        lost.pop(call, None)
                else:
                    settlement = an_end_without_answer(*call, lost=end == "lose", chunk_size=CHUNK)
                    if open_ and end == "lose":
                        lost[call] = ceilings[call]
                    elif was_lost and end == "drop":
                        lost.pop(call)
                if open_:
                    reserved.pop(call[0])
                for _ in range(rng.choice([1, 1, 2])):
                    await bench.tick(token, settle=[settlement])
        held = sum(ceilings[call] for call in reserved.values())
        assert await bench.money() == (spent, held, sum(lost.values()), len(lost))
        assert spent + held + sum(lost.values()) <= limit

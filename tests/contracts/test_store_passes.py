"""Passes, on both servers: no chunk has two holders, no call counts twice, no budget is exceeded."""

import asyncio
import random

import fakeredis
import pytest
from builders import (
    a_beginning,
    a_settlement,
    an_end_without_answer,
    loaded,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from passes import CHUNK, Bench

from shared.lifecycle import JobStatus
from shared.models import JobError
from shared.store import Store, keys
from shared.store.jobs import Change
from shared.store.passes import Halt

pytestmark = pytest.mark.anyio
S = JobStatus


# --- chunks ----------------------------------------------------------------------------------------------------------


async def test_no_chunk_has_two_holders(store):
    bench = await Bench.of(store, count=10)

    claims = await asyncio.gather(*(bench.claim(f"worker{n}") for n in range(5)))

    assert sorted(claim for claim in claims if claim) == [(0, "nobody"), (1, "nobody"), (2, "nobody")]


async def test_a_chunk_whose_holder_vanished_is_taken_over_and_marked_so(store):
    bench = await Bench.of(store, count=4)
    await bench.claim("a", lease_seconds=0.02)
    await asyncio.sleep(0.04)

    assert await bench.claim("b") == (0, "vanished")
    assert await store.passes.renew_chunks(bench.pass_id, "a", [0], lease_seconds=30) == (True, set())


async def test_a_chunk_given_back_is_free_at_once_and_not_taken_over(store):
    bench = await Bench.of(store, count=4)
    await bench.claim("a")

    await store.passes.give_back(bench.pass_id, "a", [0])

    assert await bench.claim("b") == (0, "returned")


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

    assert await bench.claim() == (1, "nobody")
    await client.script_flush()
    assert (await bench.settle(0)).settled == 1


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
                call, ceiling = f"{token}{number}", rng.randrange(1, 200)
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
                    assert claim == (chunk, "vanished")
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

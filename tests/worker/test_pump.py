"""The pump: every prompt asked once, nothing paid lost, nothing waits for ever."""

import asyncio
import time
from collections import Counter

import pytest
from builders import a_prompt, a_spec, loaded
from doubles import Lab, ScriptedTeacher, an_answer, flaky, prices_of_a_nano
from passes import work
from pumps import pumping, until

from shared.errors import (
    ProviderAuthFailed,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from shared.ids import TenantId
from shared.lifecycle import JobStatus
from shared.models import Teacher
from shared.store import keys
from shared.store.jobs import Change
from worker import pump as pump_module

pytestmark = pytest.mark.anyio
S = JobStatus


@pytest.fixture
def store(real_store):
    return real_store


# --- once, and all ---------------------------------------------------------------------------------------------------


async def test_every_prompt_is_asked_once_and_the_engine_called_at_the_end(store):
    teacher, job = ScriptedTeacher(), await work(store, 23)

    async with pumping(store, Lab(teacher)) as (_, called):
        await until(job.complete)
        await until(lambda: called == [job.job.id])

    assert teacher.calls == Counter(job.texts)
    assert sorted(await job.completions()) == list(range(23))


async def test_two_pumps_on_one_pass_ask_each_prompt_once(store):
    teacher, job = ScriptedTeacher(seconds=0.01), await work(store, 200, chunk_size=10)

    async with pumping(store, Lab(teacher), in_flight=10), pumping(store, Lab(teacher), in_flight=10):
        await until(job.complete)

    assert teacher.calls == Counter(job.texts)


async def test_a_job_of_a_newer_version_holds_up_no_other(store, monkeypatch):
    monkeypatch.setattr(pump_module, "_JOINS_AT_ONCE", 1)
    strange = await work(store, 8, tenant=TenantId("strange"))
    await store._redis.hset(keys.job(strange.job.id), "stage", "distilling")
    jobs = [await work(store, 8, tenant=TenantId(name)) for name in ("before", "then")]

    async with pumping(store, Lab(ScriptedTeacher())):
        for job in jobs:
            await until(job.complete)
        late = await work(store, 8, tenant=TenantId("late"))
        await until(late.complete)

    assert (await strange.state()).settled == 0
    await store._redis.hset(keys.job(strange.job.id), "stage", "generating")
    async with pumping(store, Lab(ScriptedTeacher())):
        await until(strange.complete)


async def test_a_completion_the_caller_supplied_is_not_bought(store):
    given = a_prompt("Known?", completion={"role": "assistant", "content": "Yes."})
    teacher, job = ScriptedTeacher(), await work(store, source=[given, a_prompt("Unknown?")])

    async with pumping(store, Lab(teacher)):
        await until(job.complete)

    assert teacher.asked == ["Unknown?"]


async def test_a_worker_does_not_call_more_at_once_than_it_may(store):
    teacher, job = ScriptedTeacher(seconds=0.01), await work(store, 60)

    async with pumping(store, Lab(teacher), in_flight=7):
        await until(job.complete)

    assert teacher.most_at_once == 7


async def test_a_provider_is_not_asked_more_at_once_than_it_takes_however_many_jobs_ask(store):
    teacher, jobs = ScriptedTeacher(seconds=0.01), [await work(store, 20, tenant=TenantId(name)) for name in "aab"]

    async with pumping(store, Lab(teacher, max_in_flight=3), in_flight=40):
        for job in jobs:
            await until(job.complete)

    assert teacher.most_at_once == 3


async def test_a_provider_that_takes_few_calls_and_answers_none_keeps_no_other_waiting(store):
    stuck, quick = ScriptedTeacher(seconds=60), ScriptedTeacher()
    narrow = Lab(stuck, max_in_flight=2)

    class Labs(Lab):
        def settings(self, name):
            return narrow.settings(name) if name == "narrow" else super().settings(name)

        def teacher(self, name):
            return stuck if name == "narrow" else quick

    teacher = Teacher(provider="narrow", model="gpt-4.1")
    for _ in range(3):
        await work(store, 40, spec=a_spec(teacher=teacher))
    async with pumping(store, Labs(), in_flight=6) as (pump, _):
        await until(lambda: len(stuck.asked) == 2)
        other = await work(store, 40)
        await until(other.complete)

        assert (len(stuck.asked), pump.in_flight) == (2, 2)


async def test_a_worker_takes_no_more_of_a_job_than_its_provider_lets_it_ask_soon(store):
    teacher = ScriptedTeacher(seconds=60)
    await work(store, 200, chunk_size=5)

    async with pumping(store, Lab(teacher, max_in_flight=4), in_flight=100) as (pump, _):
        await until(lambda: len(teacher.asked) == 4)
        await asyncio.sleep(0.05)

        (run,) = pump._runs.values()
        assert len(run.mine) <= 10, "one and a half of the four, in whole chunks"


async def test_a_small_job_is_not_kept_waiting_by_a_large_one(store):
    teacher, large = ScriptedTeacher(seconds=0.02), await work(store, 1000, chunk_size=50)

    async with pumping(store, Lab(teacher), in_flight=10):
        await until(lambda: len(teacher.asked) > 50)
        small = await work(store, source=[a_prompt(f"Small {n}?") for n in range(10)], tenant=TenantId("other"))
        await until(small.complete)

        assert (await large.state()).settled < 500


async def test_a_tenant_with_more_passes_than_a_pump_draws_from_does_not_keep_another_tenant_waiting(
    store, monkeypatch
):
    monkeypatch.setattr(pump_module, "_PASSES_MAX", 4)
    teacher, crowd = ScriptedTeacher(seconds=0.02), [await work(store, 300, chunk_size=20) for _ in range(9)]

    async with pumping(store, Lab(teacher), in_flight=8) as (pump, _):
        await until(lambda: len(teacher.asked) > 30)
        small = await work(store, source=[a_prompt(f"Small {n}?") for n in range(10)], tenant=TenantId("other"))
        await until(small.complete)

        assert not any([await job.complete() for job in crowd])
        await until(lambda: len(pump._runs) <= 4)


async def test_what_many_passes_ask_of_the_store_at_once_is_one_exchange(store):
    for number in range(40):
        await work(store, source=[a_prompt(f"{number} {n}?") for n in range(4)])
    teacher = ScriptedTeacher(seconds=0.1)

    async with pumping(store, Lab(teacher), in_flight=40, chunk_lease_seconds=60, discover_seconds=60):
        await until(lambda: len(teacher.asked) > 40)
        before = (await store._redis.info("stats"))["total_reads_processed"]
        await until(lambda: len(teacher.asked) == 160)
        exchanges = (await store._redis.info("stats"))["total_reads_processed"] - before

    assert exchanges < 80, "120 calls were begun, each in a script call of its pass, and as many settled"


async def test_what_leaves_the_window_is_drawn_from_again_when_there_is_room(store, monkeypatch):
    """Its chunk goes back at once, so that the pass is whole when its turn comes."""
    monkeypatch.setattr(pump_module, "_PASSES_MAX", 2)
    first = [await work(store, 30, chunk_size=10) for _ in range(2)]
    teacher = ScriptedTeacher(seconds=0.01)

    async with pumping(store, Lab(teacher), in_flight=4, chunk_lease_seconds=60):
        await until(lambda: len(teacher.asked) > 4)
        other = await work(store, 10, tenant=TenantId("other"))
        for job in (*first, other):
            await until(job.complete)

    assert max(teacher.calls[text] for job in first for text in job.texts) <= 2  # two jobs ask the same
    assert max(teacher.calls.values()) <= 3


async def test_a_worker_forgets_a_pass_that_another_completed(store):
    """Else it would ask for its chunks for ever, and leave less room for each pass with every job."""
    job = await work(store, 1)

    async with pumping(store, Lab(ScriptedTeacher(seconds=0.3))) as (first, _):
        async with pumping(store, Lab(ScriptedTeacher(seconds=0.3))) as (second, _):
            await until(lambda: len(first._runs) == len(second._runs) == 1)
            await until(job.complete)
            await until(lambda: not first._runs and not second._runs, seconds=2)


# --- when the provider fails -----------------------------------------------------------------------------------------


async def test_a_rate_limited_teacher_is_asked_again_after_the_time_it_named(store):
    times = []

    def script(_):
        times.append(time.monotonic())
        return [ProviderRateLimited("Slow down.", retry_after_seconds=0.3), "Billing"]

    job = await work(store, 1)
    async with pumping(store, Lab(ScriptedTeacher(script))):
        await until(job.complete)

    assert times[1] - times[0] >= 0.3


async def test_a_teacher_that_breaks_down_is_asked_a_bounded_number_of_times(store):
    down = ProviderUnavailable("Down.", status=500, billed_maybe=False)
    teacher = ScriptedTeacher(lambda text: [down, "Billing"] if "0:" in text else [down])
    job = await work(store, 2)

    async with pumping(store, Lab(teacher)):
        await until(job.complete)

    completions = await job.completions()
    assert [completions[n].status for n in (0, 1)] == ["answered", "failed"]
    assert sorted(teacher.calls.values()) == [2, 3]


async def test_a_bad_prompt_fails_alone(store):
    teacher = ScriptedTeacher(lambda text: [ProviderRejected("No.", status=400)] if "3:" in text else ["Billing"])
    job = await work(store, 6)

    async with pumping(store, Lab(teacher)):
        await until(job.complete)

    assert ((await job.state()).accepted, (await job.state()).failed) == (5, 1)
    assert max(teacher.calls.values()) == 1


async def test_exhausted_credit_pauses_and_a_resumed_job_goes_on(store):
    """However many calls were out when the credit ended: the owner resumes once."""
    empty = [ProviderQuotaExhausted("No credit.", status=429)]
    lines = {"all": empty}
    teacher, job = ScriptedTeacher(lambda _: lines["all"], seconds=0.02), await work(store, 40)

    async with pumping(store, Lab(teacher), in_flight=10) as (_, called):
        await until(job.halted)
        await until(lambda: called)
        halt = (await job.state()).halt
        lines["all"] = ["Billing"]
        await job.pause_and_resume()
        await until(job.complete)

    assert (halt.kind, halt.reason) == ("pause", "provider_quota")
    assert (await job.state()).failed == 0


async def test_a_refused_key_fails_the_job(store):
    teacher, job = ScriptedTeacher([ProviderAuthFailed("No.", status=401)]), await work(store, 10)

    async with pumping(store, Lab(teacher)):
        await until(job.halted)

    halt = (await job.state()).halt
    assert (halt.kind, halt.error.code) == ("fail", "provider_auth_failed")


@pytest.mark.parametrize("usage", [{"prompt_tokens": 10**30}, {"prompt_tokens": -50}])
async def test_an_answer_with_an_absurd_usage_harms_nobody_else(store, tmp_path, usage):
    teacher = ScriptedTeacher(lambda text: [odd()] if "0:" in text else ["Billing"])

    async def odd():
        return an_answer(**usage)

    job = await work(store, 8, limit_nano=10**12)

    async with pumping(store, Lab(teacher, prices="lab"), prices=prices_of_a_nano(tmp_path)):
        await until(lambda: len(teacher.asked) >= 8)
        await until(job.complete, seconds=3)

    assert (await loaded(store, job.job.id)).money.spent_nano >= 7 * 15


async def test_a_defect_in_one_call_does_not_leave_its_prompt_and_slot_hanging(store):
    teacher = ScriptedTeacher(lambda text: [ValueError("a defect")] if "0:" in text else ["Billing"])
    job = await work(store, 5)

    async with pumping(store, Lab(teacher)) as (pump, _):
        await until(job.complete, seconds=3)
        assert pump.in_flight == 0


# --- the budget ------------------------------------------------------------------------------------------------------


def dear():
    """Answers of 20,010 nano-dollars each; the upper bound of a call is some 33,000."""

    async def answer():
        return an_answer(completion_tokens=20_000)

    return lambda _: [answer()]


async def test_the_budget_pauses_the_job_and_more_of_it_resumes_it(store, tmp_path):
    teacher, job = ScriptedTeacher(dear()), await work(store, 40, limit_nano=400_000)

    async with pumping(store, Lab(teacher, prices="lab"), prices=prices_of_a_nano(tmp_path), in_flight=4):
        await until(job.halted)
        assert (await job.state()).halt.reason == "budget"
        money = (await loaded(store, job.job.id)).money
        assert money.spent_nano + money.reserved_nano + money.unconfirmed_nano <= 400_000
        assert 0 < len(teacher.asked) < 40
        await job.pause_and_resume(limit_nano=10**9)
        await until(job.complete)

    assert teacher.calls == Counter(job.texts)


async def test_the_budget_pauses_the_job_although_a_worker_died_with_calls_in_flight(store, tmp_path):
    prices = prices_of_a_nano(tmp_path)
    job = await work(store, 40, chunk_size=20, limit_nano=400_000)
    slow = ScriptedTeacher(seconds=60)

    async with pumping(store, Lab(slow, prices="lab"), prices=prices, in_flight=20):
        await until(lambda: slow.at_once >= 3)
        await asyncio.sleep(0.1)
    async with pumping(store, Lab(prices="lab"), prices=prices, in_flight=2):
        await until(job.halted)

    assert (await job.state()).halt.reason == "budget"


def lost(times):
    timeout = ProviderUnavailable("Too late.", provider_code="timeout", billed_maybe=True)
    return lambda _: [*[timeout] * times, "Billing"]


@pytest.mark.parametrize("times", [1, 99], ids=["asked again", "given up"])
async def test_lost_calls_are_counted_at_the_most_they_can_cost_with_a_limit_and_without(
    store, tmp_path, times, within_a_day
):
    prices, counted = prices_of_a_nano(tmp_path), []
    for letter, limit_nano in (("A", 10**12), ("B", None)):
        job = await work(store, source=[a_prompt(f"{letter}{n}") for n in range(10)], limit_nano=limit_nano)
        async with pumping(store, Lab(ScriptedTeacher(lost(times)), prices="lab"), prices=prices):
            await until(job.complete)
        found = await loaded(store, job.job.id)
        counted.append((found.money.unconfirmed_nano, found.counters.possibly_billed))

    limited, unlimited = counted
    assert limited == unlimited
    assert limited[0] > 0
    assert limited[1] in {10, 30}
    assert (await store.spending.standing(job.job.tenant)).today.unconfirmed_nano == 2 * limited[0]


@pytest.mark.parametrize("way", ["vanished", "returned"])
async def test_so_are_those_that_die_with_their_worker(store, tmp_path, way):
    prices, counted = prices_of_a_nano(tmp_path), []
    for limit_nano in (10**12, None):
        job = await work(store, 6, limit_nano=limit_nano, chunk_size=3)
        stuck = ScriptedTeacher(seconds=60)
        async with pumping(store, Lab(stuck, prices="lab"), prices=prices, shutdown_grace_seconds=0) as (pump, _):
            await until(lambda stuck=stuck: stuck.at_once == 6)
            if way == "returned":
                await pump.stop()
        async with pumping(store, Lab(ScriptedTeacher(), prices="lab"), prices=prices):
            await until(job.complete)
        money = (await loaded(store, job.job.id)).money
        counted.append((money.unconfirmed_nano, money.reserved_nano))
        await store.jobs.change(job.job, Change(status=S.FAILED))
        assert (await loaded(store, job.job.id)).counters.possibly_billed == 6
        await store._redis.delete(*[name async for name in store._redis.scan_iter("*ledger*")])

    assert counted[0] == counted[1]
    assert counted[0][0] > 0
    assert counted[0][1] == 0


async def test_a_first_budget_holds_for_calls_that_waited_when_it_was_set(store, tmp_path, within_a_day):
    teacher, job = ScriptedTeacher(seconds=0.3), await work(store, 30)
    async with pumping(store, Lab(teacher, prices="lab"), prices=prices_of_a_nano(tmp_path), in_flight=5):
        await until(lambda: teacher.at_once == 5)
        await store.jobs.change(job.job, Change(status=S.PAUSED))
        # Before the pump has begun another call, and so noticed.
        await store.jobs.change(job.job, Change(status=S.RUNNING, set={"limit_nano": 100}))
        await until(job.halted)

    money = (await loaded(store, job.job.id)).money
    assert (await job.state()).halt.reason == "budget"
    assert (len(teacher.asked), money.used_nano <= 100) == (5, True)


# --- when the owner stops --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [S.PAUSED, S.CANCELLING])
async def test_nothing_more_is_asked_once_the_owner_has_stopped_the_job(store, status):
    teacher, job = ScriptedTeacher(seconds=0.02), await work(store, 400, chunk_size=20)

    async with pumping(store, Lab(teacher), in_flight=5) as (pump, _):
        await until(lambda: len(teacher.asked) > 20)
        await store.jobs.change(job.job, Change(status=status))
        await asyncio.sleep(0.1)
        asked = len(teacher.asked)
        await until(lambda: not pump._runs)

        assert len(teacher.asked) == asked
        assert (await job.state()).settled == asked


async def test_a_job_paused_while_a_chunk_is_taken_over_can_be_resumed(store):
    job = await work(store, 10)
    await store.passes.claim_chunk(job.pass_id, "dead", lease_seconds=0.001)

    async with pumping(store, Lab(), takeover_grace_seconds=0.4):
        await asyncio.sleep(0.15)
        await store.jobs.change(job.job, Change(status=S.PAUSED))
        await asyncio.sleep(0.6)
        await store.jobs.change(job.job, Change(status=S.RUNNING))
        await job.open()
        await until(job.complete, seconds=3)


async def test_a_job_halted_while_calls_wait_for_the_budget_can_be_resumed(store):
    """A refusal that arrives after the halt must not leave a call behind that nobody will ever make."""
    lines = {"all": [ProviderQuotaExhausted("No credit.", status=429)]}
    job = await work(store, 60, chunk_size=20, smoke=4)
    async with pumping(store, Lab(ScriptedTeacher(lambda _: lines["all"])), smoke_completions=4, in_flight=20):
        for _ in range(6):
            await until(job.halted)
            await job.pause_and_resume()
        lines["all"] = ["Billing"]
        await asyncio.sleep(0.2)
        await job.pause_and_resume()
        await until(job.complete, seconds=3)


# --- when workers and store vanish -----------------------------------------------------------------------------------


async def test_what_an_abandoned_worker_held_is_taken_over(store):
    job, stuck = await work(store, 20), ScriptedTeacher(seconds=60)
    async with pumping(store, Lab(stuck), in_flight=6):
        await until(lambda: stuck.at_once == 6)

    teacher = ScriptedTeacher()
    async with pumping(store, Lab(teacher)):
        await until(job.complete)

    assert teacher.calls == Counter(job.texts)
    assert (await loaded(store, job.job.id)).counters.possibly_billed == 6


async def test_a_worker_that_stops_in_order_loses_nothing_and_frees_its_chunks_at_once(store):
    teacher, job = ScriptedTeacher(seconds=0.05), await work(store, 100, chunk_size=20)
    async with pumping(store, Lab(teacher), in_flight=10, chunk_lease_seconds=60) as (pump, _):
        await until(lambda: len(teacher.asked) > 15)
        await pump.stop()

    assert (await job.state()).settled == len(teacher.asked)
    async with pumping(store, Lab(teacher), in_flight=50):
        await until(job.complete, seconds=3)
    assert teacher.calls == Counter(job.texts)
    assert (await loaded(store, job.job.id)).counters.possibly_billed == 0


async def test_answers_in_hand_survive_a_store_that_is_away_and_a_worker_that_stops(store):
    teacher, job = ScriptedTeacher(seconds=0.05), await work(store, 5)
    flaky(store)
    async with pumping(store, Lab(teacher)) as (pump, _):
        await until(lambda: len(teacher.asked) == 5)
        store.passes.fail["tick"] = 4
        await asyncio.sleep(0.15)
        await pump.stop()

    assert (await job.state()).settled == 5


async def test_answers_are_offered_to_the_store_until_it_takes_them(store):
    teacher, job = ScriptedTeacher(seconds=0.02), await work(store, 30)
    flaky(store)
    async with pumping(store, Lab(teacher), chunk_lease_seconds=30):
        await until(lambda: len(teacher.asked) >= 10)
        for name in ("tick", "claim_chunk", "renew_chunks", "open_passes"):
            store.passes.fail[name] = -1
        await asyncio.sleep(0.5)
        store.passes.fail.clear()
        await until(job.complete)

    assert teacher.calls == Counter(job.texts)


@pytest.mark.parametrize(
    ("part", "method"),
    [
        pytest.param("passes", "smoke_passed"),
        pytest.param("passes", "halt"),
        pytest.param("passes", "give_back"),
        pytest.param("passes", "settled_indexes"),
        pytest.param("content", "prompt_chunk"),
        ("jobs", "load"),
    ],
)
async def test_one_answer_that_the_store_did_not_give_stops_nothing_for_long(store, tmp_path, part, method):
    job = await work(store, 30, smoke=4, limit_nano=200_000 if method in {"halt", "give_back"} else 10**12)
    flaky(store)
    failing = getattr(store, part)
    failing.fail[method] = 1
    lab, prices = Lab(ScriptedTeacher(dear()), prices="lab"), prices_of_a_nano(tmp_path)

    async with pumping(store, lab, prices=prices, smoke_completions=4, in_flight=4):
        if method in {"halt", "give_back"}:
            await until(job.halted, seconds=4)
            await asyncio.sleep(0.1)
            await job.pause_and_resume(limit_nano=10**12)
        await until(job.complete, seconds=3)

    assert failing.failed[method] == 1


async def test_a_worker_that_lost_the_store_for_longer_than_its_lease_does_not_buy_twice_what_it_still_waits_for(store):
    teacher, job = ScriptedTeacher(seconds=1.5), await work(store, 5)
    flaky(store)
    async with pumping(store, Lab(teacher), chunk_lease_seconds=0.3):
        await until(lambda: len(teacher.asked) == 5)
        for name in ("tick", "claim_chunk", "renew_chunks", "open_passes"):
            store.passes.fail[name] = -1
        await asyncio.sleep(0.6)
        store.passes.fail.clear()
        await until(job.complete)
        await asyncio.sleep(0.1)

    assert teacher.calls == Counter(job.texts)


async def test_a_long_pause_asked_by_the_provider_does_not_double_the_calls(store):
    """No answer for longer than `stall_seconds`: when the chunk goes back, its waiting calls go with it."""
    slow = ProviderRateLimited("Slow down.", retry_after_seconds=1.5)
    teacher, job = ScriptedTeacher([slow, "Billing"]), await work(store, 5)

    async with pumping(store, Lab(teacher), chunk_lease_seconds=0.2, stall_seconds=0.3):
        await until(job.complete)
        await asyncio.sleep(0.3)

    assert max(teacher.calls.values()) <= 2


async def test_a_rate_limited_worker_does_not_hoard_the_whole_job(store):
    teacher = ScriptedTeacher([ProviderUnavailable("Busy.", billed_maybe=False, retry_after_seconds=60)])
    job = await work(store, 400, chunk_size=10)

    async with pumping(store, Lab(teacher), in_flight=4) as (pump, _):
        await asyncio.sleep(1)
        held = sum(len(run.chunks) for run in pump._runs.values())

    assert held <= 4
    assert job.texts


async def test_the_answer_of_a_frozen_worker_is_kept_and_accounted_for(store, tmp_path):
    thaw = asyncio.get_running_loop().create_future()

    async def late():
        return await asyncio.shield(thaw)

    frozen, prices = ScriptedTeacher(lambda _: [late()]), prices_of_a_nano(tmp_path)
    job = await work(store, 1, limit_nano=10**12)
    async with pumping(store, Lab(frozen, prices="lab"), prices=prices) as (pump, _):
        await until(lambda: frozen.asked)
        for task in list(pump._tasks):  # its heart stops, its call is still out
            if "keep_leases" in repr(task.get_coro()):
                task.cancel()
        pump._stopping = True
        async with pumping(store, Lab(prices="lab"), prices=prices):
            await until(job.complete)
        assert (await loaded(store, job.job.id)).counters.possibly_billed == 1
        thaw.set_result(an_answer("Late"))
        await until(lambda: settled_money(store, job, spent=30))

    assert (await loaded(store, job.job.id)).counters.possibly_billed == 0


async def settled_money(store, job, *, spent):
    money = (await loaded(store, job.job.id)).money
    return (money.spent_nano, money.reserved_nano, money.unconfirmed_nano) == (spent, 0, 0)

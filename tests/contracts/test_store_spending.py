"""What a tenant spends a day, on both servers: every call counts once, on one day, and the limit is never passed."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta

import pytest
from builders import TENANT, a_day_passes, an_end_without_answer, claimed
from passes import CHUNK, Bench

from shared.ids import TenantId
from shared.lifecycle import JobStatus
from shared.models import Usage
from shared.store import Store, keys
from shared.store.jobs import Change, Refused
from shared.store.spending import day_number

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_a_day")]
S = JobStatus


@pytest.fixture
async def limited(store):
    """The same store, where a tenant may spend 250 nano-dollars a day."""
    made = Store(store._redis, script_headers=store._scripts._headers, day_limit=lambda _: 250)
    yield made
    await made.close()


class Buyer(Bench):
    """Worker `a`, who holds the only chunk of a pass."""

    @classmethod
    async def of(cls, store, **fields):
        buyer = await super().of(store, count=CHUNK, **fields)
        await buyer.claim()
        return buyer

    async def end_job(self):
        assert isinstance(await self.store.jobs.change(self.job, Change(status=S.FAILED)), int)


async def money(store, tenant=TENANT):
    """(spent, unconfirmed, reserved) of today."""
    standing = await store.spending.standing(tenant)
    return standing.today.spent_nano, standing.today.unconfirmed_nano, standing.reserved_nano


def yesterday():
    return day_number(datetime.now(UTC).date()) - 1


async def test_a_call_counts_once_on_the_day_it_is_settled(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")
    assert await money(store) == (0, 0, 100)

    await buyer.settle(0, "a1", usage=Usage(prompt_tokens=7, completion_tokens=3))

    assert await money(store) == (10, 0, 0)
    today = (await store.spending.standing(TENANT)).today
    assert (today.usage.prompt_tokens, today.usage.completion_tokens) == (7, 3)
    assert (today.bought, today.reused) == (1, 0)


async def test_a_reused_completion_is_counted_and_costs_nothing(store, every_script_twice):
    buyer = await Buyer.of(store)

    await buyer.settle(0, None, reused=True, cost_nano=0)

    today = (await store.spending.standing(TENANT)).today
    assert (today.spent_nano, today.bought, today.reused) == (0, 0, 1)


async def test_a_call_that_ends_without_an_answer_frees_what_it_reserved(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")

    await buyer.tick(settle=[an_end_without_answer(0, "a1", lost=False, chunk_size=CHUNK)])

    assert await money(store) == (0, 0, 0)


async def test_a_lost_call_counts_in_full_until_its_answer_is_found(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")

    await buyer.end(0, "a1", lost=True)
    assert await money(store) == (0, 100, 0)

    await buyer.settle(0, "a1")
    assert await money(store) == (10, 0, 0)


async def test_a_lost_call_that_had_reserved_nothing_counts_with_what_its_settlement_says(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1", 0)
    await buyer.begin(1, "a2", 100)

    await buyer.end(0, "a1", lost=True, cost_nano=70)
    await buyer.end(1, "a2", lost=True, cost_nano=70)
    assert await money(store) == (0, 170, 0)
    assert await buyer.money() == (0, 0, 170, 2)

    await buyer.settle(0, "a1")
    assert await money(store) == (10, 100, 0)
    assert await buyer.money() == (10, 0, 100, 1)


async def test_and_without_one_with_the_upper_bound_of_the_call_that_asks_the_same_again(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1", 0)

    assert await buyer.begin(0, "a2", 70) == "go"
    assert await money(store) == (0, 70, 70)
    await buyer.settle(0, "a2")

    assert await money(store) == (10, 70, 0)
    assert await buyer.money() == (10, 0, 70, 1)


async def test_that_upper_bound_counts_before_another_call_begins(store):
    buyer = await Buyer.of(store, limit_nano=150)
    await buyer.begin(0, "a1", 0)

    assert await buyer.begin(0, "a2", 80) == "budget"
    assert await buyer.money() == (0, 0, 80, 1)


async def test_one_that_is_lost_after_its_job_has_let_go_of_another_counts_too(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1", 0)
    await buyer.begin(1, "a2", 100)
    await buyer.end_job()

    await buyer.end(0, "a1", lost=True, cost_nano=70)
    assert await money(store) == (0, 170, 0)
    await buyer.settle(0, "a1")
    await buyer.settle(1, "a2")

    assert await money(store) == (20, 0, 0)
    assert await buyer.money() == (20, 0, 0, 0)


async def test_what_is_reserved_one_day_and_settled_the_next_counts_on_the_next(store, client, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")
    await buyer.begin(1, "a2")
    await buyer.settle(0, "a1")

    await a_day_passes(client)
    assert await money(store) == (0, 0, 100), "what is out may be billed today"
    await buyer.settle(1, "a2")

    assert await money(store) == (10, 0, 0)
    days, _ = await store.spending.page(TENANT, limit=10, after=None, newest_first=True)
    assert [(day_number(day.day), day.spent_nano) for day in days] == [(yesterday() + 1, 10), (yesterday(), 10)]


async def test_a_call_lost_one_day_and_found_the_next_leaves_both_days_right(store, client, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")
    await buyer.end(0, "a1", lost=True)
    await a_day_passes(client)
    await client.hset(keys.pass_calls(buyer.job.id, "teacher"), "0|a1", f"100|{yesterday()}")

    await buyer.settle(0, "a1")

    days, _ = await store.spending.page(TENANT, limit=10, after=None, newest_first=True)
    assert [(day.spent_nano, day.unconfirmed_nano) for day in days] == [(10, 0), (0, 0)]


async def test_a_job_that_ends_holds_nothing_for_ever(store, every_script_twice):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")
    await buyer.begin(1, "a2")

    await buyer.end_job()
    assert await money(store) == (0, 200, 0), "its answers may still come, and be billed"

    await buyer.settle(0, "a1")
    assert await money(store) == (10, 100, 0)
    await buyer.end(1, "a2", lost=True)
    assert await money(store) == (10, 100, 0)
    await buyer.settle(1, "a2")
    assert await money(store) == (20, 0, 0)


async def test_training_counts_like_completions(store, every_script_twice):
    job = (await Buyer.of(store)).job
    lease = await claimed(store, job)

    await store.jobs.change(job, Change(add={"reserved_nano": 80}), lease=lease)
    assert await money(store) == (0, 0, 80)
    await store.jobs.change(job, Change(add={"reserved_nano": -80, "spent_nano": 60}), lease=lease)

    assert await money(store) == (60, 0, 0)


async def test_no_call_begins_above_the_limit_of_the_day(limited, every_script_twice):
    first, second = await Buyer.of(limited), await Buyer.of(limited)

    assert await first.begin(0, "a1") == "go"
    assert await second.begin(0, "b1") == "go"
    assert await first.begin(1, "a2") == "day"
    assert await money(limited) == (0, 0, 200)

    await first.settle(0, "a1")
    assert await first.begin(1, "a3") == "go"
    assert (await limited.spending.standing(TENANT)).left_nano == 250 - 10 - 200


async def test_the_limit_counts_for_one_tenant_alone(limited):
    await (await Buyer.of(limited)).begin(0, "a1", 250)

    assert await (await Buyer.of(limited, tenant=TenantId("rival"))).begin(0, "b1", 250) == "go"


async def test_many_workers_at_once_do_not_pass_the_limit(limited):
    buyers = [await Buyer.of(limited) for _ in range(5)]

    answers = await asyncio.gather(*(b.begin(i, f"a{n}.{i}", 60) for n, b in enumerate(buyers) for i in range(CHUNK)))

    assert sorted(answers) == ["day"] * 16 + ["go"] * 4


async def test_the_next_day_begins_with_the_whole_limit_less_what_is_out(limited, client):
    buyer = await Buyer.of(limited)
    await buyer.begin(0, "a1", 200)
    await buyer.settle(0, "a1", cost_nano=200)
    await buyer.begin(1, "a2", 50)
    assert await buyer.begin(2, "a3", 50) == "day"

    await a_day_passes(client)

    assert await buyer.begin(2, "a4", 201) == "day"
    assert await buyer.begin(2, "a4", 200) == "go"


async def test_no_training_begins_above_the_limit_of_the_day(limited, every_script_twice):
    buyer = await Buyer.of(limited)
    await buyer.begin(0, "a1", 200)
    lease = await claimed(limited, buyer.job)

    refused = await limited.jobs.change(buyer.job, Change(add={"reserved_nano": 51}, set={"x": 1}), lease=lease)

    assert refused == Refused(S.RUNNING, stale=False, spent_out=True)
    assert await money(limited) == (0, 0, 200)
    assert isinstance(await limited.jobs.change(buyer.job, Change(add={"reserved_nano": 50}), lease=lease), int)


async def test_usage_is_paged_by_day_and_nobody_sees_anothers(store, client):
    today = datetime.now(UTC).date()
    for back in range(5):
        number = day_number(today - timedelta(days=back))
        await client.hset(keys.day(TENANT, number), "spent_nano", back)
        await client.zadd(keys.days(TENANT), {str(number): number})

    async def page(**asked):
        defaults = {"limit": 2, "after": None, "newest_first": True}
        days, more = await store.spending.page(TENANT, **defaults | asked)
        return [day.spent_nano for day in days], more

    def ago(days: int) -> date:
        return today - timedelta(days=days)

    assert await page() == ([0, 1], True)
    assert await page(after=ago(1)) == ([2, 3], True)
    assert await page(after=ago(3)) == ([4], False)
    assert await page(newest_first=False, after=ago(4)) == ([3, 2], True)
    assert await page(limit=10, first=ago(3), last=ago(1)) == ([1, 2, 3], False)
    assert await page(limit=10, first=ago(3), last=ago(1), after=ago(2)) == ([3], False)
    assert await store.spending.page(TenantId("rival"), limit=9, after=None, newest_first=True) == ([], False)


async def test_a_day_is_kept_for_400_days(store, client):
    buyer = await Buyer.of(store)
    await buyer.begin(0, "a1")
    await client.zadd(keys.days(TENANT), {"12": 12})

    await buyer.settle(0, "a1")

    number = day_number(datetime.now(UTC).date())
    assert 399 * 86_400 < await client.ttl(keys.day(TENANT, number)) <= 400 * 86_400
    assert await client.zrange(keys.days(TENANT), 0, -1) == [str(number).encode()]

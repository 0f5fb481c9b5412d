"""How many requests a tenant may make, and that it is told so before it is refused."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis
from api_kit import Api, FakeServer, problem_of, some_settings

from api.allowance import Allowances
from shared.errors import TooMany
from shared.ids import TenantId
from shared.store import Store

pytestmark = pytest.mark.anyio
STANDING = re.compile(r'"requests";r=(\d+);t=(\d+)')


@pytest.fixture
async def strict() -> AsyncIterator[Api]:
    redis = FakeServer()
    made = Api(some_settings(requests_per_minute=5), Store(redis, script_headers=False), redis)
    async with made.http:
        yield made
    await redis.aclose()


async def test_every_answer_says_where_the_tenant_stands_and_the_last_one_when_to_come_back(strict: Api):
    left = []
    for path in ("/v1/jobs", "/v1/jobs/nothing", "/v1/jobs?nonsense=1", "/v1/webhook_event_types", "/v1/jobs"):
        answer = await strict.http.get(path)
        assert answer.headers["ratelimit-policy"] == '"requests";q=5;w=60'
        standing = STANDING.fullmatch(answer.headers["ratelimit"])
        assert standing is not None
        left.append(int(standing[1]))
    assert left == [4, 3, 2, 1, 0]
    refused = await strict.http.get("/v1/jobs")
    assert (refused.status_code, problem_of(refused)["code"]) == (429, "rate_limited")
    assert 1 <= int(refused.headers["retry-after"]) <= 12
    assert refused.headers["ratelimit"].startswith('"requests";r=0;')
    assert (await strict.http.get("/healthz")).status_code == 200
    _, secret = await strict.store.api_keys.create(TenantId("other"), ["jobs:read"])
    other = await strict.http.get("/v1/jobs", headers={"Authorization": f"Bearer {secret}"})
    assert other.status_code == 200  # each tenant has its own


async def test_processes_share_one_bucket(valkey_client: redis.Redis):
    tenant, store = TenantId("acme"), Store(valkey_client)
    processes = [Allowances(store.rates, lambda _: 1_200) for _ in range(4)]

    async def ask(process: Allowances) -> str:
        try:
            await process.spend(tenant)
        except TooMany:
            return "refused"
        return "served"

    told = Counter(await asyncio.gather(*(ask(processes[n % 4]) for n in range(1_600))))
    assert 1_190 <= told["served"] <= 1_260  # a bucket of 1,200, and what flowed in meanwhile


async def test_what_was_drawn_and_not_used_goes_back(api: Api):
    now = 0.0
    process = Allowances(api.store.rates, lambda _: 6_000, clock=lambda: now)
    tenant = TenantId("acme")
    for _ in range(5):
        now += 10.0
        standing = STANDING.fullmatch((await process.spend(tenant))["RateLimit"])
        assert standing is not None
        assert int(standing[1]) >= 5_990  # ten drawn each time, and one used


async def test_no_limit_says_nothing():
    redis = FakeServer()
    free = Api(some_settings(requests_per_minute=0), Store(redis, script_headers=False), redis)
    assert "ratelimit" not in (await free.http.get("/v1/jobs")).headers

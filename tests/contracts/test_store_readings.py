"""What the service tells of itself: sums over all tenants, right after every kind of change, and of no tenant alone."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from builders import a_beginning, a_job, a_settlement, accepted, now_ms, prompts, standing_at

from api.metrics import metrics_app
from shared.deletion import mark_deleted
from shared.errors import StoreError
from shared.ids import JobId, TenantId
from shared.lifecycle import JobStatus
from shared.store import Store, keys
from shared.store.passes import PassId

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("within_a_day")]
TENANTS = (TenantId("canary-tenant-1"), TenantId("canary-tenant-2"))


async def told_by(store: Store) -> dict[str, float]:
    """Metrics by their names and labels, as Prometheus would read them."""
    transport = httpx2.ASGITransport(app=metrics_app(store))
    async with httpx2.AsyncClient(transport=transport, base_url="http://internal") as http:
        answer = await http.get("/metrics")
        assert (await http.get("/")).status_code == 404
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "canary" not in answer.text
    lines = [line.rpartition(" ") for line in answer.text.splitlines() if not line.startswith("#")]
    return {name.removeprefix("distillery_"): float(value) for name, _, value in lines}


async def test_jobs_are_counted_by_status_over_all_tenants_until_they_are_deleted(real_store: Store):
    store = real_store
    assert (await told_by(store))['jobs{status="queued"}'] == 0
    for tenant in TENANTS:
        await accepted(store, a_job(tenant=tenant), prompts(1))
        done = await standing_at(store, await accepted(store, a_job(tenant=tenant), prompts(1)), JobStatus.SUCCEEDED)
    told = await told_by(store)
    assert (told['jobs{status="queued"}'], told['jobs{status="succeeded"}']) == (2, 2)
    await mark_deleted(store, done, delete_models=False, now_ms=now_ms())
    assert (await told_by(store))['jobs{status="succeeded"}'] == 1


async def test_money_and_tokens_are_those_of_today(real_store: Store, valkey_client: Any):
    store = real_store
    for tenant in TENANTS:
        job = await accepted(store, a_job(tenant=tenant), prompts(3))
        job = await standing_at(store, job, JobStatus.RUNNING)
        pass_id = PassId(job.id, "teacher")
        await store.passes.open(pass_id, prompts=3, chunk_size=100, smoke=0)
        await store.passes.claim_chunk(pass_id, "token", lease_seconds=30)
        asked = [a_beginning(n, f"c{n}", 4_000_000_000) for n in range(2)]
        await store.passes.tick(pass_id, tenant, "token", [], asked)
        await store.passes.tick(pass_id, tenant, "token", [a_settlement(0, "c0", cost_nano=250_000_000)], [])
    told = await told_by(store)
    assert told["spent_today_usd"] == 0.5
    assert told["reserved_usd"] == 8
    assert told['completions_today{origin="bought"}'] == 2
    assert told["open_passes"] == 2
    assert told["store_memory_bytes"] > 1_000_000


async def test_what_waits_and_for_how_long_is_told(real_store: Store, valkey_client: Any):
    await valkey_client.zadd(keys.DUE, {"job:1": now_ms() - 90_000, "job:2": now_ms() + 90_000})
    await valkey_client.lpush(keys.QUEUE, "{}", "{}")
    await real_store.announce_worker("w", {}, for_seconds=10)
    told = await told_by(real_store)
    assert (told["due_rows"], told["queue_messages"], told["workers"]) == (1, 2, 1)
    assert 89 < told["oldest_due_seconds"] < 100
    await valkey_client.config_set("maxmemory", str(100_000_000))
    assert 0 < (await told_by(real_store))["store_memory_share"] < 1


async def test_a_store_that_is_away_is_a_metric_and_not_a_failure(real_store: Store, monkeypatch: pytest.MonkeyPatch):
    async def away() -> None:
        raise StoreError("away")

    monkeypatch.setattr(real_store, "readings", away)
    assert await told_by(real_store) == {"store_up": 0}


async def test_every_tenant_counts_however_many_there_are(real_store: Store, valkey_client: Any):
    await valkey_client.sadd(keys.TENANTS, *(f"canary-{n}" for n in range(450)))
    for n in range(450):
        await valkey_client.zadd(keys.tenant_jobs(TenantId(f"canary-{n}"), JobStatus.RUNNING), {JobId(f"job_{n}"): 0})
    assert (await told_by(real_store))['jobs{status="running"}'] == 450

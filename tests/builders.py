"""Values for tests.  What a test does not name does not matter to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from shared.completions import StoredCompletion
from shared.ids import JobId, TenantId, new_delivery_id, new_event_id, new_job_id
from shared.lifecycle import MOVES, JobStatus
from shared.models import Budget, Counters, Event, FineTune, Job, JobSpec, Money, Prompt, Student, Teacher
from shared.rules import Limits
from shared.store import Store, keys
from shared.store.content import chunked, pack_completion
from shared.store.jobs import Change, Lease
from shared.store.passes import Beginning, Settlement
from shared.webhook_records import Delivery

TENANT = TenantId("acme")


def a_prompt(text: str = "Where is my invoice?", **fields: Any) -> Prompt:
    return Prompt(messages=[{"role": "user", "content": text}], **fields)


def prompts(count: int) -> list[Prompt]:
    return [a_prompt(f"Question {number}: where is invoice {number * 7919}?") for number in range(count)]


def a_spec(**fields: Any) -> JobSpec:
    defaults: dict[str, Any] = {
        "teacher": Teacher(provider="lab", model="gpt-4.1"),
        "students": [Student(provider="lab", model="gpt-4.1-nano")],
        "source": "inline",
    }
    return JobSpec(**defaults | fields)


def a_job(*, limit_nano: int | None = None, **fields: Any) -> Job:
    """limit_nano: the budget, in the row and in the request."""
    spec = fields.pop("spec", None) or a_spec(budget=Budget(max_cost_nano=limit_nano))
    defaults: dict[str, Any] = {
        "id": new_job_id(),
        "tenant": TENANT,
        "spec": spec,
        "status": JobStatus.QUEUED,
        "version": 1,
        "created_at_ms": now_ms(),
        "money": Money(limit_nano=limit_nano),
        "fine_tunes": [FineTune() for _ in spec.students],
    }
    return Job(**defaults | fields)


def an_event(message: str = "Something happened.", **fields: Any) -> Event:
    defaults: dict[str, Any] = {"level": "info", "type": "message", "created_at_ms": now_ms()}
    return Event(id=new_event_id(), message=message, **defaults | fields)


def a_delivery(job: Job, **fields: Any) -> Delivery:
    defaults: dict[str, Any] = {
        "id": new_delivery_id(),
        "job_id": job.id,
        "tenant": job.tenant,
        "event_id": new_event_id(),
        "event_type": "job.succeeded",
        "url": "https://hooks.example/",
        "body": "{}",
        "created_at_ms": now_ms(),
    }
    return Delivery(**defaults | fields)


def a_settlement(index: int, call: str | None = None, *, chunk_size: int = 100, **fields: Any) -> Settlement:
    """An accepted answer that cost 10 nano-dollars."""
    blob = pack_completion(
        StoredCompletion(id=f"cmp_{index}_{call}", index=index, model="m", status="answered", created_at_ms=1)
    )
    defaults: dict[str, Any] = {"blob": blob, "cost_nano": 10, "outcome": "accepted"}
    return Settlement(chunk=index // chunk_size, index=index, call=call, **defaults | fields)


def an_end_without_answer(
    index: int, call: str, *, lost: bool, chunk_size: int = 100, cost_nano: int | None = None
) -> Settlement:
    return a_settlement(index, call, chunk_size=chunk_size, blob=b"", cost_nano=cost_nano, outcome="failed", lost=lost)


def a_beginning(index: int, call: str, ceiling_nano: int = 100, *, chunk_size: int = 100) -> Beginning:
    return Beginning(index // chunk_size, index, call, ceiling_nano)


async def accepted(store: Store, job: Job, source: Sequence[Prompt] = ()) -> Job:
    """The job as the API would have accepted it."""
    job = msgspec.structs.replace(job, counters=Counters(prompts_total=len(source)))
    await store.jobs.accept(job, list(chunked(source, job.chunk_size)), an_event("The job was accepted."))
    return job


async def claimed(store: Store, job: Job, *, lease_seconds: float = 30) -> Lease:
    lease = await store.jobs.claim(job.id, lease_seconds=lease_seconds)
    assert lease is not None
    return lease


async def standing_at(store: Store, job: Job, status: JobStatus) -> Job:
    """An accepted job, led to `status` by allowed moves alone."""
    ways: dict[JobStatus, list[JobStatus]] = {JobStatus.QUEUED: []}
    while status not in ways:
        for reached, way in list(ways.items()):
            for target in MOVES[reached]:
                ways.setdefault(target, [*way, target])
    for target in ways[status]:
        assert isinstance(await store.jobs.change(job, Change(status=target)), int)
    return await loaded(store, job.id)


async def a_day_passes(client: Any, tenant: TenantId = TENANT) -> None:
    """What was counted on any day was counted the day before it."""
    numbers = sorted(int(number) for number in await client.zrange(keys.days(tenant), 0, -1))
    for number in numbers:
        await client.rename(keys.day(tenant, number), keys.day(tenant, number - 1))
    await client.delete(keys.days(tenant))
    if numbers:
        await client.zadd(keys.days(tenant), {str(number - 1): number - 1 for number in numbers})


async def loaded(store: Store, job_id: JobId) -> Job:
    job = await store.jobs.load(job_id)
    assert job is not None
    return job


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def some_limits() -> Limits:
    """What an operator allows."""
    return Limits(
        prompts_max=1_000,
        prompt_max_chars=10_000,
        chunk_size=10,
        retention_days_max=365,
        webhook_allow_http=False,
        webhook_ports=(443,),
        webhook_allow_networks=(),
    )

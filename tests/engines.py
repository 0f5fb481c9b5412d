"""Engines for tests: impatient, killed where a test says so, and rung as the sweep would ring."""

from __future__ import annotations

import asyncio
from typing import Any

from builders import a_job, a_spec, accepted, loaded, prompts
from doubles import Lab

from shared.errors import ProviderUnavailable
from shared.lifecycle import TERMINAL, JobStatus, Stage
from shared.models import Curation, FineTune, Job, Manifest, Split, Student
from shared.pricing import Prices
from shared.settings import Settings
from shared.store import Store, keys
from shared.store.jobs import Change
from worker.engine import Engine
from worker.stages import Tools


def the_settings(**fields: Any) -> Settings:
    defaults: dict[str, Any] = {
        "redis_url": "redis://unused",
        "secret_key": "s" * 32,
        "smoke_completions": 0,
        "poll_min_seconds": 0.01,
        "poll_max_seconds": 0.02,
        "takeover_grace_seconds": 0.0,
        "lease_seconds": 1.0,
        "retry_base_seconds": 0.001,
        "retry_cap_seconds": 0.002,
        "unknown_outcome_wait_seconds": 0.2,
    }
    return Settings(_env_file=None, **defaults | fields)


def an_engine(store: Store, lab: Any = None, *, prices: Prices | None = None, **fields: Any) -> Engine:
    return Engine(Tools(store, lab or Lab(), prices or Prices(), the_settings(**fields), lambda: None))


class Killed(BaseException):
    """The process is gone: nothing is caught, nothing is written, the lease stays."""


#: Of a request that may have arrived.
LOST = ProviderUnavailable("The answer was lost.", provider_code="timeout")


async def let_the_lease_run_out(store: Store, job: Job) -> None:
    await store._redis.hset(keys.job(job.id), "lease_until_ms", 1)


async def rung(
    store: Store,
    engine: Engine,
    job: Job,
    *,
    times: int = 60,
    until_status: JobStatus | None = None,
    until_step: str | None = None,
) -> Job:
    """Ring for the job again and again, as the sweep would, until it has ended or stands where it should."""
    for _ in range(times):
        await engine.advance(job.id)
        found = await loaded(store, job.id)
        if found.status in TERMINAL or found.status is until_status or found.fine_tunes[0].step == until_step:
            return found
        await asyncio.sleep(0.01)
    return await loaded(store, job.id)


def a_whole_job(**fields: Any) -> Job:
    spec = a_spec(split=Split(holdout=0.25, validation=0.1), curation=Curation(min_accepted=1), **fields)
    return a_job(spec=spec, chunk_size=10, fine_tunes=[FineTune() for _ in spec.students])


async def in_training(store: Store, *, students: int = 1, validation: int = 0, **fields: Any) -> Job:
    """A job whose dataset is curated and whose students wait for their training."""
    spec = a_spec(students=[Student(provider="lab", model=f"base-{n}") for n in range(students)], **fields)
    job = await accepted(store, a_job(spec=spec), prompts(2))
    manifest = Manifest(
        sha256="ab" * 32, holdout_sha256="cd" * 32, train=2, validation=validation, holdout=0, rejected={}
    )
    await store.jobs.change(job, Change(status=JobStatus.RUNNING, set={"stage": Stage.TRAINING, "manifest": manifest}))
    return await loaded(store, job.id)


async def through_crashes(store: Store, lab: Any, job: Job, *, times: int = 60, **fields: Any) -> Job:
    """Worker after worker takes the job, each with a new engine, until training is over."""
    for _ in range(times):
        engine = an_engine(store, lab, **fields)
        try:
            await engine.advance(job.id)
        except (Killed, BaseExceptionGroup):
            await let_the_lease_run_out(store, job)
        found = await loaded(store, job.id)
        if found.status in TERMINAL or found.stage is Stage.EVALUATING:
            return found
        await asyncio.sleep(0.01)
    return await loaded(store, job.id)

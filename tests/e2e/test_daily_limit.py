"""The limit of the day, with two workers and a kill -9: the provider bills no more, and the job ends all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from shared.ids import TenantId
from shared.models import NANO, Usage
from shared.pricing import Prices
from shared.store import keys
from tests.system import System

LIMIT_NANO = NANO // 50
LOCAL = TenantId("local")


@pytest.mark.usefixtures("within_a_day")
def test_a_job_stops_at_the_limit_of_the_day_and_goes_on_the_next_day_and_with_more(tmp_path: Path) -> None:
    settings = {"WORKER_MAX_IN_FLIGHT": "4", "DAILY_SPEND_MAX_USD": "0.02", "SMOKE_COMPLETIONS": "0"}
    with System(tmp_path, settings=settings, latency_seconds=0.15) as system:
        first, second = system.start_worker(), system.start_worker()
        job_id = system.submit(prompts=120)["id"]

        system.until(lambda: system.job(job_id)["progress"]["completions_settled"] >= 5, "work has begun")
        system.kill(first)
        _paused(system, job_id)
        one_day = _billed_nano(system)
        assert 0 < one_day <= LIMIT_NANO

        _midnight(system)
        system.until(lambda: _billed_nano(system) > one_day, "the job goes on by itself")
        _paused(system, job_id)
        assert _billed_nano(system) - one_day <= LIMIT_NANO

        system.kill(second)
        system.environment["DISTILL_DAILY_SPEND_MAX_USD"] = "100"
        system.start_worker()
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        ledger = system.sandbox.ledger()
        assert ledger["completions_billed"] - ledger["distinct_prompts_billed"] <= 4, "what the kill lost"
        assert ledger["fine_tuning_jobs_created"] == 1


def _paused(system: System, job_id: str) -> None:
    system.until(lambda: system.job(job_id)["paused_reason"] == "daily_spend", "the job waits for another day")


def _billed_nano(system: System) -> int:
    """What the provider would have charged, by its own count."""
    prices, total = Prices(), 0
    models: dict[str, dict[str, Any]] = system.sandbox.ledger()["per_model"]
    for model, sums in models.items():
        usage = Usage(prompt_tokens=sums["prompt_tokens"], completion_tokens=sums["completion_tokens"])
        total += prices.cost_nano("openai", model, usage) or 0
    return total


def _midnight(system: System) -> None:
    """What was spent today was spent yesterday."""
    with redis.Redis.from_url(system.redis.url) as store:
        [number] = store.zrange(keys.days(LOCAL), 0, -1)  # type: ignore[misc]  # redis-py's types mix both worlds
        today = int(number)
        store.rename(keys.day(LOCAL, today), keys.day(LOCAL, today - 1))
        store.delete(keys.days(LOCAL))

"""The limit of the day, with two workers and a kill -9: the provider bills no more, and the job ends all the same.
A job's own budget, and what lets it go on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import redis
from system import TEACHER, System, a_request

from shared.ids import TenantId
from shared.models import NANO, Usage, usd
from shared.pricing import Prices
from shared.rules import parse_usd
from shared.store import keys

LIMIT_NANO = NANO // 50
LOCAL = TenantId("local")


@pytest.mark.usefixtures("within_a_day")
def test_a_job_stops_at_the_limit_of_the_day_and_goes_on_the_next_day_and_with_more(tmp_path: Path) -> None:
    settings = {"WORKER_MAX_IN_FLIGHT": "4", "DAILY_SPEND_MAX_USD": "0.02", "SMOKE_COMPLETIONS": "0"}
    with System(tmp_path, settings=settings, latency_seconds=0.15) as system:
        first, second = system.start_worker(), system.start_worker()
        uncapped = a_request(teacher={"provider": "sandbox", "model": TEACHER})
        refused = system.client.post("/v1/jobs", json=uncapped)
        assert (refused.status_code, refused.json()["code"]) == (422, "cost_above_limit")
        accepted = system.submit(prompts=120)
        assert "daily_spend_short" in {warning["code"] for warning in accepted["warnings"]}
        job_id = accepted["id"]

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


def test_a_job_at_its_budget_names_the_sum_that_lets_it_go_on_and_takes_no_less(tmp_path: Path) -> None:
    with System(tmp_path, settings={"SMOKE_COMPLETIONS": "0"}) as system:
        system.start_worker()
        job_id = system.submit(budget={"max_cost_usd": "0.033"})["id"]
        system.until(lambda: system.job(job_id)["paused_reason"] == "budget", "the job has used its budget")

        events = system.client.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
        [enough] = [found[1] for event in events if (found := re.search(r"budget of (\S+) dollars", event["message"]))]
        a_nano_less = usd(parse_usd(enough) - 1)
        refused = system.client.post(f"/v1/jobs/{job_id}/resume", json={"budget": {"max_cost_usd": a_nano_less}})
        assert (refused.status_code, refused.json()["code"]) == (422, "cost_above_limit")
        assert f"must be at least {enough}" in refused.json()["detail"]

        before = system.job(job_id)["cost"]["spent_usd"]
        resumed = system.client.post(f"/v1/jobs/{job_id}/resume", json={"budget": {"max_cost_usd": enough}})
        assert resumed.status_code == 200, resumed.text
        system.until(lambda: system.job(job_id)["cost"]["spent_usd"] != before, "the next step is taken")


@pytest.mark.usefixtures("within_a_day")
def test_a_training_that_ended_just_before_its_job_was_cancelled_is_paid(tmp_path: Path) -> None:
    """Nobody looks at it between its end and the cancellation."""
    seldom = {"POLL_MIN_SECONDS": "60", "POLL_MAX_SECONDS": "60", "DAILY_SPEND_MAX_USD": "1"}
    with System(tmp_path, settings=seldom, training_seconds=1) as system:
        system.start_worker()
        job_id = system.submit(prompts=40)["id"]
        key = system.until(lambda: system.job(job_id)["students"][0]["fine_tuning_job_id"], "it trains")
        training = system.until(lambda: _succeeded(system, key), "it has trained")

        system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        job = system.finished(job_id)

        price = Prices().training_nano("openai", training["model"], training["trained_tokens"])
        assert price
        [student], cost = job["students"], job["cost"]
        assert job["status"] == "cancelled"
        assert (student["status"], student["fine_tuned_model"]) == ("succeeded", training["fine_tuned_model"])
        assert cost["by_stage"]["training_usd"] == usd(price)
        assert (cost["reserved_usd"], cost["unconfirmed_usd"]) == ("0", "0")
        spend = system.client.get("/v1/limits").json()["spend"]
        assert spend["spent_usd"] == cost["spent_usd"]
        events = system.client.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).json()["data"]
        assert [event for event in events if "had ended before it could be stopped" in event["message"]]


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


def _succeeded(system: System, fine_tuning_job_id: str) -> Any:
    url = f"{system.sandbox.base_url}/fine_tuning/jobs/{fine_tuning_job_id}"
    training = system.client.get(url, headers={"Authorization": "Bearer sk-sandbox"}).json()
    return training if training["status"] == "succeeded" else None

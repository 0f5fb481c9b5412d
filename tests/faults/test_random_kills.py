"""kill -9 of workers at random moments while several generate: every prompt gets one completion, nothing that was
received is bought again, and what may have been billed in vain is counted."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import pytest
from system import System

PROMPTS = 400
IN_FLIGHT = 10


@pytest.mark.parametrize(
    "store",
    [
        pytest.param(False, id="answers in flight are lost"),
        pytest.param(True, id="answers in flight are recovered", marks=pytest.mark.soak),
    ],
)
def test_kills_cost_at_most_what_was_in_flight(tmp_path: Path, store: bool) -> None:
    chance = random.Random(20261122)
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": str(IN_FLIGHT)}, latency_seconds=0.25) as system:
        workers = [system.start_worker() for _ in range(3)]
        system.until(lambda: system.client.get("/readyz").status_code == 200, "a worker is ready")
        job_id = system.submit(prompts=PROMPTS, store=store, budget={"max_cost_usd": "20.00"})["id"]
        system.until(lambda: system.job(job_id)["progress"]["completions_settled"] > 10, "generating has begun")
        kills = 0
        while kills < 6 and system.job(job_id)["stage"] == "generating":
            time.sleep(chance.uniform(0.3, 0.9))
            victim = chance.randrange(3)
            system.kill(workers[victim])
            kills += 1
            workers[victim] = system.start_worker()
        job = system.finished(job_id, seconds=120)

        assert job["status"] == "succeeded", job["error"]
        assert kills >= 2, "the run was over before it could be disturbed"
        ledger = system.sandbox.ledger()
        completions = _completions(system, job_id)
        assert len(completions) == len({completion["prompt_key"] for completion in completions}) == PROMPTS
        teacher = ledger["per_model"]["gpt-6.1-sol"]["completions_billed"]
        possibly = job["progress"]["possibly_billed"]
        if store:
            assert teacher == PROMPTS, "what was in flight is found at the provider, not bought again"
        # A worker may die between reserving a call and making it: no provider can tell that from a lost one.
        assert PROMPTS <= teacher <= PROMPTS + possibly
        assert possibly <= kills * IN_FLIGHT
        assert job["cost"]["reserved_usd"] == "0"
        assert ledger["fine_tuning_jobs_created"] == 1


def _completions(system: System, job_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 100, "role": "teacher"}
    while True:
        page = system.client.get(f"/v1/jobs/{job_id}/completions", params=query).raise_for_status().json()
        found += page["data"]
        if not page["has_more"]:
            return found
        query["after"] = page["last_id"]

"""kill -9 of the worker in every stage, then a new one: the job ends succeeded, with one fine-tune and every answer
once."""

from __future__ import annotations

from pathlib import Path

import pytest
from system import System

STAGES = ["queued", "generating", "training", "evaluating"]


@pytest.mark.parametrize(
    "stage", [pytest.param(name, marks=pytest.mark.soak) if name in {"queued", "training"} else name for name in STAGES]
)
def test_a_job_whose_worker_is_killed_is_finished_by_the_next_one(tmp_path: Path, stage: str) -> None:
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": "8"}, latency_seconds=0.2, training_seconds=2) as system:
        first = system.start_worker()
        system.until(lambda: system.client.get("/readyz").status_code == 200, "a worker is ready")
        job_id = system.submit(prompts=80)["id"]

        system.until(lambda: _stands_in(system.job(job_id), stage), f"the job is {stage}")
        system.kill(first)
        system.start_worker()
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        ledger = system.sandbox.ledger()
        assert ledger["fine_tuning_jobs_created"] == 1
        assert ledger["files_created"] <= 2
        assert job["progress"]["completions_settled"] == 80
        bought_again = ledger["completions_billed"] - ledger["distinct_prompts_billed"]
        assert bought_again <= 8, "only what was in flight at the kill may be billed again"


def test_calls_of_a_cancelled_job_that_die_with_its_worker_are_counted_and_its_retry_goes_on(tmp_path: Path) -> None:
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": "32"}, latency_seconds=0.1) as system:
        slow = {"match": {"path": "/chat/completions"}, "skip": 8, "fault": {"kind": "delay", "seconds": 60}}
        system.sandbox.faults([slow | {"times": 400}])
        worker = system.start_worker()
        job_id = system.submit(prompts=40, budget={"max_cost_usd": "20"})["id"]
        system.until(lambda: system.job(job_id)["progress"]["completions_settled"] == 8, "the trial is over")
        system.until(lambda: system.sandbox.ledger()["in_flight"]["now"] == 32, "all others are in flight")
        system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        ended = system.finished(job_id)
        assert (ended["status"], ended["progress"]["possibly_billed"]) == ("cancelled", 0)
        reserved = ended["cost"]["reserved_usd"]
        assert float(reserved) > 0

        system.kill(worker)
        system.sandbox.clear_faults()
        system.start_worker()
        retry_id = system.client.post(f"/v1/jobs/{job_id}/retry").raise_for_status().json()["id"]
        system.until(lambda: system.job(job_id)["progress"]["possibly_billed"] == 32, "lost calls count")
        cost = system.job(job_id)["cost"]
        assert (cost["reserved_usd"], cost["unconfirmed_usd"]) == ("0", reserved)
        spend = system.client.get("/v1/limits").raise_for_status().json()["spend"]
        retry = system.finished(retry_id)

        assert (retry["status"], retry["progress"]["reused"]) == ("succeeded", 8), retry["error"]
        assert spend["unconfirmed_usd"] == reserved


def _stands_in(job: dict[str, object], stage: str) -> bool:
    """Also true when the job has gone further: then the kill comes late, and must still do no harm."""
    if stage == "queued":
        return True
    if job["stage"] == "generating":
        progress = job["progress"]
        assert isinstance(progress, dict)
        return stage == "generating" and progress["completions_settled"] >= 10
    return (
        job["stage"] is not None
        and STAGES.index(str(stage)) <= {"curating": 2, "training": 2, "evaluating": 3}[str(job["stage"])]
    )

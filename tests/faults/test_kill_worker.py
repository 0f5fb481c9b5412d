"""kill -9 of the worker in every stage, then a new one: the job ends succeeded, with one fine-tune and every answer
once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import System

STAGES = ["queued", "generating", "training", "evaluating"]


@pytest.mark.parametrize("stage", STAGES)
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

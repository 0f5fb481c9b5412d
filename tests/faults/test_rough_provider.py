"""A provider at its worst: refusals, errors, dropped connections, absurd answers.  The job ends right all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from system import TEACHER, System

from shared.models import Usage
from shared.pricing import Prices

CHAT = {"path": "/chat/completions"}


def sometimes(probability: float, **fault: Any) -> dict[str, Any]:
    return {"match": CHAT, "probability": probability, "fault": fault}


def test_a_job_ends_right_through_refusals_errors_and_dropped_connections(tmp_path: Path) -> None:
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": "40"}, latency_seconds=0.02) as system:
        worker = system.start_worker()
        system.sandbox.faults(
            [
                sometimes(0.3, kind="rate_limited", retry_after=0.05),
                sometimes(0.05, kind="server_error"),
                sometimes(0.03, kind="drop"),
                sometimes(0.03, kind="drop_after_work"),
                sometimes(0.02, kind="html"),
                sometimes(0.02, kind="truncated_json"),
                sometimes(0.02, kind="wrong_shape"),
            ]
        )
        job = system.finished(system.submit(prompts=200, budget={"max_cost_usd": "20.00"})["id"], seconds=110)

        assert job["status"] == "succeeded", job["error"]
        assert worker.poll() is None
        assert job["progress"]["completions_settled"] == 200
        assert job["progress"]["failed"] <= 2
        ledger = system.sandbox.ledger()
        bought_again = ledger["completions_billed"] - ledger["distinct_prompts_billed"]
        assert bought_again <= job["progress"]["possibly_billed"]
        assert job["cost"]["reserved_usd"] == "0"


def test_errors_after_the_work_was_done_are_counted_and_the_bill_stays_within_the_budget(tmp_path: Path) -> None:
    limit = 0.034  # a little more than the job costs when nothing goes wrong
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": "10"}, latency_seconds=0.02) as system:
        system.start_worker()
        system.sandbox.faults([sometimes(0.8, kind="server_error", status=500, after_work=True)])
        job_id = system.submit(prompts=60, budget={"max_cost_usd": str(limit)})["id"]

        def stopped() -> dict[str, Any] | None:
            job = system.job(job_id)
            return job if job["status"] not in {"queued", "running"} else None

        job = system.until(stopped, "the budget is reached")

        assert job["paused_reason"] == "budget"
        ledger = system.sandbox.ledger()
        lost = ledger["completions_billed"] - job["progress"]["completions_settled"]
        assert 0 < lost <= job["progress"]["possibly_billed"]
        billed = Usage(
            prompt_tokens=ledger["prompt_tokens_billed"], completion_tokens=ledger["completion_tokens_billed"]
        )
        assert 0 < (Prices().cost_nano("openai", TEACHER, billed) or 0) <= limit * 1e9
        used = sum(float(job["cost"][part]) for part in ("spent_usd", "reserved_usd", "unconfirmed_usd"))
        assert float(job["cost"]["unconfirmed_usd"]) > 0
        assert used <= limit


def test_an_answer_of_forty_megabytes_costs_its_prompt_and_not_the_worker(tmp_path: Path) -> None:
    with System(tmp_path, settings={"PROVIDERS__SANDBOX__ANSWER_MAX_BYTES": "1000000"}) as system:
        worker = system.start_worker()
        system.sandbox.faults(
            [{"match": CHAT | {"contains": "zebrafinch 000030"}, "probability": 1.0, "fault": {"kind": "huge_body"}}]
        )
        job = system.finished(system.submit(prompts=60)["id"])

        assert job["status"] == "succeeded", job["error"]
        assert worker.poll() is None
        assert job["progress"]["failed"] == 1
        failed = system.client.get(f"/v1/jobs/{job['id']}/completions", params={"status": "failed"}).json()["data"]
        assert [completion["prompt_key"] for completion in failed] == ["t-30"]


def test_exhausted_credit_pauses_the_job_and_resuming_finishes_it(tmp_path: Path) -> None:
    with System(tmp_path, latency_seconds=0.02) as system:
        system.start_worker()
        system.sandbox.faults(
            [{"match": CHAT, "skip": 30, "probability": 1.0, "fault": {"kind": "insufficient_quota"}}]
        )
        job_id = system.submit(prompts=60)["id"]
        paused = system.until(
            lambda: (job := system.job(job_id))["status"] == "paused" and job, "the job is paused", seconds=30
        )
        assert paused["paused_reason"] == "provider_quota"

        system.sandbox.clear_faults()
        assert system.client.post(f"/v1/jobs/{job_id}/resume").status_code in {200, 202}
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        ledger = system.sandbox.ledger()
        assert ledger["completions_billed"] == ledger["distinct_prompts_billed"], "nothing paid was bought again"


def test_a_job_stops_at_its_budget_and_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    limit = 0.11  # enough for the teacher, not for training
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": "10"}, latency_seconds=0.1) as system:
        workers = [system.start_worker() for _ in range(2)]
        job_id = system.submit(prompts=200, budget={"max_cost_usd": str(limit)})["id"]
        highest = 0.0

        def used(job: dict[str, Any]) -> float:
            return sum(float(job["cost"][part]) for part in ("spent_usd", "reserved_usd", "unconfirmed_usd"))

        def paused() -> dict[str, Any] | None:
            nonlocal highest
            job = system.job(job_id)
            highest = max(highest, used(job))
            if job["progress"]["completions_settled"] > 40 and workers[0].poll() is None:
                system.kill(workers[0])
            return job if job["status"] == "paused" else None

        job = system.until(paused, "the job is paused")

        assert job["paused_reason"] == "budget"
        assert workers[0].poll() is not None
        assert highest <= limit
        answer = system.client.post(f"/v1/jobs/{job_id}/resume", json={"budget": {"max_cost_usd": "5.00"}})
        assert answer.status_code in {200, 202}, answer.text
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        assert job["progress"]["completions_settled"] == 200
        assert used(job) <= 5.0

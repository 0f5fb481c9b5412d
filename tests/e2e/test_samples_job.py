"""Several answers to each prompt, rated by a judge; one student learns from examples and one from pairs; and the worker
dies while the judge rates, and again while it compares."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from pathlib import Path
from typing import Any

from system import STUDENT, TEACHER, System, a_ticket

JUDGE = "gpt-5.4"
PROMPTS = 48
IN_FLIGHT = 8


def test_the_best_of_three_trains_two_students_though_workers_die_in_the_judges_passes(tmp_path: Path) -> None:
    grader = {"type": "score_model", "provider": "sandbox", "model": JUDGE}
    student = {"provider": "sandbox", "model": STUDENT}
    request: dict[str, Any] = {
        "prompts": PROMPTS,
        "teacher": {
            "provider": "sandbox",
            "model": TEACHER,
            "params": {"max_completion_tokens": 100, "seed": 5},
            "samples": 3,
        },
        "students": [{**student, "suffix": "examples"}, {**student, "suffix": "pairs", "method": "dpo"}],
        "curation": {"min_accepted": 10, "grader": grader, "min_score": 0.7},
        "evaluation": {"graders": [{"type": "json_match"}, grader]},
        "budget": {"max_cost_usd": "5.00", "on_limit": "fail"},
    }
    with System(tmp_path, settings={"WORKER_MAX_IN_FLIGHT": str(IN_FLIGHT)}, latency_seconds=0.1) as system:
        first = system.start_worker()
        job_id = system.submit(**request)["id"]
        path = f"/v1/jobs/{job_id}/completions"
        system.until(lambda: system.job(job_id)["cost"]["by_stage"]["curating_usd"] != "0", "the judge is asked")
        assert system.job(job_id)["stage"] == "curating"
        system.kill(first)
        second = system.start_worker()
        system.until(lambda: _listed(system, path, role="judge", split="holdout"), "the judge compares")
        assert system.job(job_id)["stage"] == "evaluating"
        system.kill(second)
        system.start_worker()
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        assert job["progress"]["completions_settled"] == job["progress"]["completions_total"] == 3 * PROMPTS
        ledger = system.sandbox.ledger()
        assert ledger["per_model"][TEACHER]["completions_billed"] == 3 * PROMPTS
        replies = _listed(system, path, role="judge")
        assert replies
        assert all(0 <= reply["score"] <= 1 for reply in replies)
        again = ledger["completions_billed"] - ledger["distinct_prompts_billed"]
        assert again <= job["progress"]["possibly_billed"] <= 2 * IN_FLIGHT, "only what was in flight"
        cost = job["cost"]
        assert Decimal(cost["spent_usd"]) + Decimal(cost["unconfirmed_usd"]) <= Decimal(cost["limit_usd"])
        assert cost["reserved_usd"] == "0"
        stages = {name: Decimal(value) for name, value in cost["by_stage"].items()}
        assert sum(stages.values()) == Decimal(cost["spent_usd"])
        assert min(stages.values()) > 0, "each stage was paid for, curating by its judge's ratings"

        lost = _listed(system, path, status="rejected", reason="not_best")
        assert lost
        assert all(each["score"] is not None for each in lost)
        kept = _listed(system, path, status="accepted", role="teacher")
        assert min(each["score"] for each in kept) >= 0.7

        manifest = system.client.get(f"/v1/jobs/{job_id}/dataset/manifest").raise_for_status().json()
        for file in manifest["files"]:
            content = system.client.get(file["url"]).raise_for_status().content
            assert (hashlib.sha256(content).hexdigest(), len(content)) == (file["sha256"], file["bytes"])
        pairs = next(f for f in manifest["files"] if (f["split"], f["format"]) == ("train", "openai_dpo"))
        assert 10 <= pairs["lines"] < manifest["counts"]["train"]

        results = system.client.get(f"/v1/jobs/{job_id}/results").raise_for_status().json()
        assert [student["verdict"] for student in results["students"]] == ["better", "better"]
        assert all(row["complete"] for row in results["rows"]), "the judge was asked about everybody"


def _listed(system: System, path: str, **query: Any) -> list[dict[str, Any]]:
    page = system.client.get(path, params={"limit": 100, **query}).raise_for_status().json()
    found: list[dict[str, Any]] = page["data"]
    return found


def test_what_a_curating_decided_can_be_read_where_it_failed_the_job(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        system.start_worker()
        prompts = [{"key": f"t-{n}", "messages": [{"role": "user", "content": a_ticket(n % 6)}]} for n in range(20)]
        source = {"type": "inline", "prompts": prompts}
        path = f"/v1/jobs/{system.submit(source=source, curation={'min_accepted': 10})['id']}"
        job = system.finished(path.rpartition("/")[2])
        assert (job["status"], job["error"]["code"], job["error"]["stage"]) == (
            "failed",
            "too_few_accepted",
            "curating",
        )

        manifest = system.client.get(f"{path}/dataset/manifest").raise_for_status().json()
        assert manifest["counts"]["rejected"] == {"duplicate": 14}
        assert sum(manifest["counts"][split] for split in ("train", "validation", "holdout")) == 6
        for file in manifest["files"]:
            query = {"split": file["split"], "format": file["format"]}
            dataset = system.client.get(f"{path}/dataset", params=query).raise_for_status()
            assert int(dataset.headers["X-Line-Count"]) == file["lines"] == len(dataset.text.splitlines())
            head = system.client.head(f"{path}/dataset", params=query).raise_for_status()
            assert head.headers["X-Line-Count"] == dataset.headers["X-Line-Count"]
        assert {file["split"] for file in manifest["files"]} >= {"train", "holdout"}

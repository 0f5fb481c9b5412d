"""The catalogue in the running service: read as a worker starts, gone by at submit, by the provider's calendar."""

from __future__ import annotations

from pathlib import Path

from system import STUDENT, TEACHER, System, a_request


def test_models_are_known_at_submit_once_a_worker_has_started(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        assert system.client.get("/v1/models").json()["data"] == []
        refusals = {"gpt-4.1-nano-2025-04-14": "model_retired", "gpt-4.1-minny": "model_unknown"}
        early = {code: system.submit(students=_students(model))["id"] for model, code in refusals.items()}
        system.start_worker()
        page = "/v1/models?provider=sandbox&limit=100"
        system.until(lambda: system.client.get(page).json()["data"], "the models are listed")

        rows = {row["model"]: row for row in system.client.get(page).json()["data"]}
        assert rows[STUDENT]["shutdown_date"] == "2027-01-14"
        assert rows[STUDENT]["prices"]["training_usd"] == "5"
        assert rows[TEACHER]["prices"]["input_usd"] is not None

        for code, job_id in early.items():
            assert system.finished(job_id)["error"]["code"] == code, "the worker asks the provider itself"
        assert system.sandbox.ledger()["completions_billed"] == 0
        for model, code in refusals.items():
            refused = system.client.post("/v1/jobs", json=a_request(students=_students(model)))
            assert (refused.status_code, refused.json()["code"]) == (422, code), refused.text

        job = system.submit(prompts=40, retention_days=60)
        assert [row["code"] for row in job["warnings"]].count("model_retires_soon") == 1
        job = system.finished(job["id"])
        assert job["status"] == "succeeded", job["error"]
        [student] = job["students"]
        assert student["shutdown_date"] == "2027-01-14"
        rows = {row["model"]: row["fine_tuned"] for row in system.client.get(page).json()["data"]}
        assert rows[student["fine_tuned_model"]], "long before the provider's list is read again"
        assert [row["code"] for row in job["warnings"]].count("model_retires_soon") == 1
        [day] = system.client.get("/v1/usage").json()["data"]
        assert day["spent_usd"] == job["cost"]["spent_usd"]
        assert day["completions_bought"] > 40, "the evaluation's count too"
        assert system.client.get("/v1/limits").json()["spend"]["reserved_usd"] == "0"


def _students(model: str) -> list[dict[str, str]]:
    return [{"provider": "sandbox", "model": model}]

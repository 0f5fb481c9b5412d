"""A teacher at one provider, a student at another that its owner has to deploy before it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from system import STUDENT, System

from sandbox.testing import SandboxProcess


def test_a_student_trained_elsewhere_is_evaluated_where_its_owner_has_deployed_it(tmp_path: Path) -> None:
    with SandboxProcess(training_seconds=0.5, fresh_model_404_seconds=0, today="2026-11-22") as elsewhere:
        azure = {"BASE_URL": elsewhere.base_url, "API_KEY": "sk-azure", "TUNED_MODEL": "deployment"}
        settings = {f"PROVIDERS__AZURE__{name}": value for name, value in azure.items()}
        with System(tmp_path, settings=settings) as system:
            system.start_worker()
            job_id = system.submit(students=[{"provider": "azure", "model": STUDENT}])["id"]

            def awaiting() -> dict[str, Any] | None:
                student: dict[str, Any] = system.job(job_id)["students"][0]
                waits = student["status"] == "awaiting_deployment" and student["endpoint"] is None
                return student if waits else None

            student = system.until(awaiting, "the student awaits its deployment")
            path = f"/v1/jobs/{job_id}/students/0/endpoint"
            assert system.client.post(path, json={"model": "triage-tf"}).status_code == 200
            system.until(awaiting, "the student, of whom there is no such model, awaits its deployment again")
            events = system.client.get(f"/v1/jobs/{job_id}/events").json()["data"]
            said = next(event["data"] for event in events if event["data"].get("code") == "model_unknown")
            assert (said["model"], said["provider_status"], said["provider_code"]) == (
                "triage-tf",
                404,
                "model_not_found",
            )

            told = system.client.post(path, json={"model": student["fine_tuned_model"]})
            assert told.status_code == 200, told.text
            job = system.finished(job_id)

            assert job["status"] == "succeeded", job["error"]
            assert job["students"][0]["endpoint"]["provider"] == "azure"
            here, there = system.sandbox.ledger(), elsewhere.ledger()
            assert (here["fine_tuning_jobs_created"], there["fine_tuning_jobs_created"]) == (0, 1)
            assert set(here["per_model"]) == {"gpt-6.1-sol"}
            assert set(there["per_model"]) == {STUDENT, student["fine_tuned_model"]}
            verdicts = system.client.get(f"/v1/jobs/{job_id}/results").json()["students"]
            assert verdicts[0]["verdict"] == "better"

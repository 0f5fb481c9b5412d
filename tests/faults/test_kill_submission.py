"""kill -9 of real workers while the provider holds a call of the submission open, each already carried out: one file of
each split, one fine-tuning job."""

from __future__ import annotations

from pathlib import Path

import httpx2
from system import System

CALLS = ["/uploads/*/parts", "/uploads/*/complete", "/files", "/fine_tuning/jobs"]
IN_PARTS = {"PROVIDERS__SANDBOX__UPLOAD_MAX_BYTES": "8000", "PROVIDERS__SANDBOX__UPLOAD_PART_BYTES": "4000"}


def test_workers_killed_at_every_call_of_a_submission_leave_one_fine_tune(tmp_path: Path) -> None:
    with System(tmp_path, settings=IN_PARTS | {"LEASE_SECONDS": "1.5"}, training_seconds=0.2) as system:
        fault = {"kind": "hang_after_work", "seconds": 60}
        system.sandbox.faults([{"match": {"method": "POST", "path": path}, "fault": fault} for path in CALLS])
        job_id = system.submit(prompts=60)["id"]
        for struck, path in enumerate(CALLS):
            worker = system.start_worker()
            system.until(lambda n=struck: system.sandbox.admin("faults")["rules"][n]["hits"], f"{path} is called")
            system.kill(worker)
        system.start_worker()
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        assert system.sandbox.ledger()["fine_tuning_jobs_created"] == 1
        key = {"Authorization": "Bearer sk-sandbox"}
        files = httpx2.get(f"{system.sandbox.base_url}/files", params={"purpose": "fine-tune"}, headers=key).json()
        assert sorted(file["filename"].rpartition("-")[2] for file in files["data"]) == [
            "train.jsonl",
            "validation.jsonl",
        ]

"""The provider's own webhooks against the sandbox, with polling too slow to matter: a minute between two looks."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
from system import TEACHER, System

SECRET = "whsec_c2VjcmV0IG9mIHRoZSBzYW5kYm94"  # of the sandbox's webhooks, made up here
RARELY = {
    "POLL_MIN_SECONDS": "60",
    "POLL_MAX_SECONDS": "60",
    "PROVIDERS__SANDBOX__WEBHOOK_SECRET": SECRET,
    "PROVIDERS__SANDBOX__CAN_BATCH": "true",
}


def test_jobs_end_as_soon_as_the_provider_tells_of_it(tmp_path: Path) -> None:
    with System(tmp_path, settings=RARELY, training_seconds=3, batch_seconds=1) as system:
        hook = {"url": f"{system.url}/v1/provider_events/sandbox", "secret": SECRET, "duplicates": 2, "reorder": True}
        system.sandbox.admin("webhooks", hook)
        system.start_worker()
        batch = {"provider": "sandbox", "model": TEACHER, "params": {"max_completion_tokens": 100}, "mode": "batch"}
        live, batched = system.submit()["id"], system.submit(teacher=batch, first=100)["id"]

        ended, seen = _when_trained(system, live)
        jobs = [system.finished(job_id, seconds=40) for job_id in (live, batched)]

        assert [job["status"] for job in jobs] == ["succeeded", "succeeded"], [job["error"] for job in jobs]
        assert seen - ended < 2.5  # reordering holds an event back for half a second
        deliveries = system.sandbox.admin("webhooks")["deliveries"]
        assert len(deliveries) == 9  # one batch and two fine-tuning jobs, each three times
        system.until(lambda: all(d["done"] for d in system.sandbox.admin("webhooks")["deliveries"]), "all are taken")
        assert {tuple(row["attempts"]) for row in system.sandbox.admin("webhooks")["deliveries"]} == {(204,)}


def _when_trained(system: System, job_id: str) -> tuple[float, float]:
    """When the provider had ended the training, and when the job knew of it."""
    url, headers = f"{system.sandbox.base_url}/fine_tuning/jobs", {"Authorization": "Bearer sk-sandbox"}

    def at_provider() -> bool:
        student = system.job(job_id)["students"][0]["fine_tuning_job_id"]
        return student is not None and httpx2.get(f"{url}/{student}", headers=headers).json()["status"] == "succeeded"

    system.until(at_provider, "the training ends")
    ended = time.monotonic()
    system.until(lambda: system.job(job_id)["students"][0]["fine_tuned_model"], "the job knows")
    return ended, time.monotonic()

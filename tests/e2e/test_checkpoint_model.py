"""Where a provider's last checkpoint answers for the student, it is asked, told of, and deleted like any model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from system import PROVIDER_KEY, System


def at_provider(system: System, method: str, path: str, **body: Any) -> int:
    """The status of the sandbox's answer."""
    authorized = {"Authorization": f"Bearer {PROVIDER_KEY}"}
    answer = system.client.request(
        method, f"{system.sandbox.base_url}/{path}", headers=authorized, **({"json": body} if body else {})
    )
    return answer.status_code


def answers(system: System, model: str) -> bool:
    asked = at_provider(
        system, "POST", "chat/completions", model=model, messages=[{"role": "user", "content": "Hello?"}]
    )
    assert asked in {200, 404}
    return asked == 200


def test_a_checkpoint_that_answers_for_the_student_is_evaluated_and_goes_with_all_others_once_asked(
    tmp_path: Path,
) -> None:
    with System(tmp_path, settings={"PROVIDERS__SANDBOX__TUNED_MODEL": "checkpoint"}) as system:
        system.start_worker()
        student = {"provider": "sandbox", "model": "qwen3-8b", "hyperparameters": {"n_epochs": 3}}
        job_id = system.submit(students=[student], prompts=40)["id"]
        job = system.finished(job_id)
        assert job["status"] == "succeeded", job["error"]

        [shown] = job["students"]
        chosen, kept = shown["fine_tuned_model"], [checkpoint["model"] for checkpoint in shown["checkpoints"]]
        final = chosen.partition(":ckpt-step-")[0]
        assert chosen == kept[-1]
        assert len(kept) == 3
        rows = system.client.get(f"/v1/jobs/{job_id}/results").raise_for_status().json()["rows"]
        assert {row["model"] for row in rows if row["role"] == "student"} == {chosen}
        assert all(row["complete"] for row in rows if row["role"] == "student")

        path = f"/v1/jobs/{job_id}"

        def purged(**params: str) -> dict[str, Any]:
            system.client.delete(path, params=params).raise_for_status()
            done = system.until(
                lambda: (answer := system.client.delete(path)).status_code == 200 and answer.json(), "the job is purged"
            )
            receipt: dict[str, Any] = done["purged"]
            return receipt

        receipt = purged()
        assert receipt["deleted_at_provider"]["fine_tuned_models"] == 0
        assert sorted(receipt["left_at_provider"]["fine_tuned_models"]) == sorted([final, *kept])
        assert all(answers(system, model) for model in [final, *kept]), "nobody has asked to delete them"

        receipt = purged(delete_models="true")
        assert receipt["left_at_provider"]["fine_tuned_models"] == []
        assert receipt["deleted_at_provider"]["fine_tuned_models"] == len([final, *kept])
        assert [model for model in [final, *kept] if answers(system, model)] == []

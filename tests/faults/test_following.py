"""Training followed by list pages against the sandbox: odd statuses, jobs that vanish or show late, dead readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from system import STUDENT, System

LISTS = {"POLL_LIST_FROM": "1", "POLL_MAX_SECONDS": "0.3"}
CREATE = {"method": "POST", "path": "/fine_tuning/jobs"}
LIST = "GET /v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("follow"), settings=LISTS, training_seconds=2) as running:
        running.start_worker()
        yield running


@pytest.fixture
def system(shared_system: System) -> System:
    shared_system.sandbox.clear_faults()
    shared_system.sandbox.reset()
    return shared_system


def submit(system: System, *suffixes: str, first: int) -> str:
    """One student per suffix."""
    students = [{"provider": "sandbox", "model": STUDENT, "suffix": suffix} for suffix in suffixes]
    job_id: str = system.submit(students=students, first=first)["id"]
    return job_id


def fate(suffix: str, **fault: Any) -> dict[str, Any]:
    """What befalls the fine-tuning job of the student with this suffix."""
    return {"match": {**CREATE, "contains": f'"{suffix}"'}, "fault": fault}


def pages_read(system: System) -> int:
    return sum(system.sandbox.ledger()["requests"].get(LIST, {}).values())


def messages(system: System, job_id: str) -> list[str]:
    events = system.client.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).raise_for_status().json()["data"]
    return [event["message"] for event in events]


@pytest.mark.parametrize("value", [{}, None])
def test_only_the_known_ends_are_ends(system: System, value: Any) -> None:
    """`error` of a job that succeeded is {} or null, and says nothing."""
    statuses = ["paused", "pausing", "hovering"]
    system.sandbox.faults([fate(s, kind="training_status", status=s, seconds=0.8) for s in statuses])
    system.sandbox.faults([fate(s, kind="success_error_value", value=value) for s in statuses])
    job = system.finished(submit(system, *statuses, first=0 if value is None else 100))

    assert job["status"] == "succeeded", job["error"]
    assert [student["status"] for student in job["students"]] == ["succeeded"] * 3
    assert pages_read(system) > 3


def test_a_job_deleted_at_the_provider_ends_its_student_alone(system: System) -> None:
    system.sandbox.faults([fate("gone", kind="job_deleted", after_seconds=1)])
    job = system.finished(submit(system, "gone", "kept", first=200))

    assert job["status"] == "succeeded", job["error"]
    assert [student["status"] for student in job["students"]] == ["deleted", "succeeded"]
    assert job["students"][0]["error"]["code"] == "provider_rejected_training"


def test_a_job_that_the_list_never_shows_is_followed_all_the_same(system: System) -> None:
    system.sandbox.faults([fate("late", kind="list_lag", seconds=3600)])
    job = system.finished(submit(system, "late", "listed", first=300))

    assert [student["status"] for student in job["students"]] == ["succeeded", "succeeded"]


def test_a_worker_killed_while_it_reads_the_list_leaves_nobody_waiting(tmp_path: Path) -> None:
    with System(tmp_path, settings=LISTS | {"LEASE_SECONDS": "2"}, training_seconds=2) as system:
        first = system.start_worker()
        hang = {"kind": "hang_after_work", "seconds": 60}
        system.sandbox.faults([{"match": {"method": "GET", "path": "/fine_tuning/jobs"}, "fault": hang}])
        jobs = [submit(system, "a", first=400), submit(system, "b", first=500)]
        system.until(lambda: system.sandbox.admin("faults")["rules"][0]["hits"], "a page is being read")
        system.start_worker()
        system.kill(first)

        ended = [system.finished(job_id) for job_id in jobs]

        assert [job["status"] for job in ended] == ["succeeded", "succeeded"], [job["error"] for job in ended]
        assert system.sandbox.ledger()["fine_tuning_jobs_created"] == 2


def in_training(system: System, job_id: str) -> Any:
    return system.job(job_id)["students"][0]["fine_tuning_job_id"]


def at_provider(system: System, fine_tuning_job_id: str) -> str:
    url = f"{system.sandbox.base_url}/fine_tuning/jobs/{fine_tuning_job_id}"
    status: str = httpx2.get(url, headers={"Authorization": "Bearer sk-sandbox"}).raise_for_status().json()["status"]
    return status


def test_a_paused_job_stands_still_at_the_provider_until_it_is_resumed(system: System) -> None:
    job_id = submit(system, "still", first=600)
    student = system.until(lambda: in_training(system, job_id), "the job trains")
    system.client.post(f"/v1/jobs/{job_id}/pause").raise_for_status()
    system.until(lambda: at_provider(system, student) == "paused", "the provider pauses")
    system.until(lambda: system.job(job_id)["students"][0]["status"] == "paused", "the job shows it")
    system.sandbox.advance(3600)
    assert at_provider(system, student) == "paused"

    system.client.post(f"/v1/jobs/{job_id}/resume", json={}).raise_for_status()
    job = system.finished(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert "The training of student 0 goes on." in messages(system, job_id)


def test_a_provider_without_a_route_to_pause_trains_on(system: System) -> None:
    refusal = {"kind": "error", "status": 404}
    system.sandbox.faults([{"match": {"path": "/fine_tuning/jobs/*/pause"}, "fault": refusal}])
    job_id = submit(system, "on", first=700)
    system.until(lambda: in_training(system, job_id), "the job trains")
    system.client.post(f"/v1/jobs/{job_id}/pause").raise_for_status()
    ended = system.until(lambda: (job := system.job(job_id))["students"][0]["fine_tuned_model"] and job, "it trains on")

    assert ended["status"] == "paused"
    assert any("does not pause the training of student 0" in message for message in messages(system, job_id))
    system.client.post(f"/v1/jobs/{job_id}/resume", json={}).raise_for_status()
    assert system.finished(job_id)["status"] == "succeeded"


def curve(system: System, job_id: str) -> dict[str, Any]:
    answer = system.client.get(f"/v1/jobs/{job_id}/metrics").raise_for_status().json()
    student: dict[str, Any] = answer["students"][0]
    return student


def test_the_curve_and_the_checkpoints_of_a_training_are_kept(system: System) -> None:
    job = system.finished(submit(system, "curve", first=800))
    student = curve(system, job["id"])

    steps = [point["step"] for point in student["points"]]
    assert steps == sorted(set(steps))
    assert steps[-1] == student["step"] == student["total_steps"]
    assert student["points_total"] == len(steps)
    assert student["points"][0]["train_loss"] > student["points"][-1]["train_loss"] > 0
    checkpoints = job["students"][0]["checkpoints"]
    assert [c["step"] for c in checkpoints] == sorted({c["step"] for c in checkpoints})
    assert len(checkpoints) == 3
    assert checkpoints[-1]["model"].startswith(job["students"][0]["fine_tuned_model"])
    assert checkpoints[-1]["metrics"]["train_loss"] > 0


def test_a_provider_without_events_leaves_its_curve_in_a_result_file_in_base64(system: System) -> None:
    silent = {"kind": "error", "status": 404}
    system.sandbox.faults([{"match": {"path": "/fine_tuning/jobs/*/events"}, "times": 9999, "fault": silent}])
    system.sandbox.faults([fate("csv", kind="result_csv", encoding="base64")])
    job = system.finished(submit(system, "csv", first=900))
    student = curve(system, job["id"])

    assert job["status"] == "succeeded", job["error"]
    assert student["points_total"] > 3
    assert all(point["train_loss"] is not None for point in student["points"])
    assert not any("Step" in message for message in messages(system, job["id"]))

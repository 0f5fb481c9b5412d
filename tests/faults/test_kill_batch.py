"""`teacher.mode` batch against the sandbox: half the price, and every prompt paid for once, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from system import TEACHER, System, a_request, a_ticket

from shared.models import NANO, Usage
from shared.pricing import Prices

DAY = 86_400
CAN_BATCH = {"PROVIDERS__SANDBOX__CAN_BATCH": "true"}
CREATE = {"path": "/batches", "method": "POST"}
#: The provider's list of batches shows none.
UNLISTED = {
    "match": {"path": "/batches", "method": "GET"},
    "probability": 1,
    "fault": {"kind": "wrong_shape", "body": {"object": "list", "data": [], "has_more": False}},
}


@pytest.fixture(scope="module")
def shared_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    plain = {"PROVIDERS__PLAIN__BASE_URL": "http://127.0.0.1:9/v1"}
    with System(tmp_path_factory.mktemp("batch"), settings=CAN_BATCH | plain, batch_seconds=0.5) as running:
        running.start_worker()
        yield running


@pytest.fixture
def system(shared_system: System) -> System:
    shared_system.sandbox.clear_faults()
    shared_system.sandbox.reset()
    return shared_system


def submit(system: System, **changes: Any) -> str:
    teacher = {"provider": "sandbox", "model": TEACHER, "params": {"max_completion_tokens": 100}, "mode": "batch"}
    job_id: str = system.submit(**{"teacher": teacher} | changes)["id"]
    return job_id


def teachers_bill(system: System, model: str = TEACHER) -> int:
    billed: int = system.sandbox.ledger()["per_model"].get(model, {}).get("completions_billed", 0)
    return billed


def teachers_bill_usd(system: System) -> float:
    """What the sandbox would charge for the teacher's answers, all of them from batches."""
    billed = system.sandbox.ledger()["per_model"].get(TEACHER, {})
    tokens = {kind: billed.get(kind, 0) for kind in ("prompt_tokens", "completion_tokens")}
    return (Prices().cost_nano("openai", TEACHER, Usage(**tokens)) or 0) / 2 / NANO


def accounted_usd(job: dict[str, Any]) -> float:
    """Spent and unconfirmed; nothing may be reserved any more."""
    cost = job["cost"]
    assert cost["reserved_usd"] == "0"
    return float(cost["spent_usd"]) + float(cost["unconfirmed_usd"])


def batches(system: System) -> list[dict[str, Any]]:
    answer = httpx2.get(f"{system.sandbox.base_url}/batches", headers={"Authorization": "Bearer sk-sandbox"})
    found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return found


def messages(system: System, job_id: str) -> list[str]:
    events = system.client.get(f"/v1/jobs/{job_id}/events", params={"limit": 100}).raise_for_status().json()["data"]
    return [event["message"] for event in events]


def out_at_provider(system: System) -> bool:
    return any(batch["status"] == "in_progress" for batch in batches(system))


def price_of_each(system: System, job_id: str) -> dict[str, str]:
    """What each prompt's completion cost, by its key."""
    query = {"limit": 100, "role": "teacher"}
    page = system.client.get(f"/v1/jobs/{job_id}/completions", params=query).raise_for_status().json()
    assert not page["has_more"]
    return {found["prompt_key"]: found["cost_usd"] for found in page["data"]}


# --- the way it should go --------------------------------------------------------------------------------------------


def test_a_batch_job_gives_what_a_live_job_gives_at_half_the_price(system: System) -> None:
    prompts = [
        {"key": f"t-{number}", "messages": [{"role": "user", "content": a_ticket(number)}]} for number in range(60)
    ]
    source = {"type": "inline", "prompts": prompts}
    job_id = submit(system, source=source)
    job = system.finished(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert job["teacher"]["mode"] == "batch"
    assert job["progress"]["completions_settled"] == 60
    assert teachers_bill(system) == 60
    assert [batch["metadata"] for batch in batches(system)] == [{"distillation_job_id": job_id, "batch": "0"}]
    assert job["cost"]["reserved_usd"] == job["cost"]["unconfirmed_usd"] == "0"
    said = messages(system, job_id)
    assert "Batch 0 is submitted with 60 requests." in said
    assert "Batch 0 has completed: 60 answered, 0 failed, 0 to be asked again." in said

    system.sandbox.reset()
    live = {"provider": "sandbox", "model": TEACHER, "params": {"max_completion_tokens": 100, "user": "live"}}
    live_id = system.submit(teacher=live, source=source)["id"]
    system.until(lambda: system.job(live_id)["progress"]["completions_settled"] == 60, "all are answered live")
    system.client.post(f"/v1/jobs/{live_id}/cancel").raise_for_status()
    full = price_of_each(system, live_id)
    for key, half in price_of_each(system, job_id).items():
        assert float(half) == pytest.approx(float(full[key]) / 2, abs=1e-9)


def test_what_a_tenant_has_paid_for_is_in_no_batch(system: System) -> None:
    first = system.finished(submit(system, source=tickets(200, 240)))
    second = system.finished(submit(system, source=tickets(200, 250)))

    assert first["status"] == second["status"] == "succeeded"
    assert second["progress"]["reused"] == 40
    assert teachers_bill(system) == 50
    assert sorted(batch["request_counts"]["total"] for batch in batches(system)) == [10, 40]


def test_a_provider_without_batches_is_refused_before_anything_is_spent(system: System) -> None:
    teacher = {"provider": "plain", "model": TEACHER, "mode": "batch"}
    answer = system.client.post("/v1/jobs", json=a_request(teacher=teacher))

    assert answer.status_code == 422
    assert answer.json()["code"] == "unsupported_param"
    assert answer.json()["param"] == "teacher.mode"


def test_a_batch_is_given_three_days_unless_the_owner_says_otherwise(system: System) -> None:
    def deadline_of(**changes: Any) -> int:
        teacher = {"provider": "sandbox", "model": TEACHER, "mode": "batch"}
        answer = system.client.post("/v1/jobs?validate_only=true", json=a_request(teacher=teacher, **changes))
        deadline: int = answer.raise_for_status().json()["request"]["deadline_seconds"]
        return deadline

    assert deadline_of() == 3 * DAY
    assert deadline_of(deadline_seconds=DAY) == DAY


# --- lines that fail -------------------------------------------------------------------------------------------------


def test_a_line_the_provider_refuses_fails_alone(system: System) -> None:
    source = tickets(300, 340)
    source["prompts"] += [refused(number) for number in range(3)]
    job = system.finished(submit(system, source=source))

    assert job["status"] == "succeeded", job["error"]
    assert job["progress"]["failed"] == 3
    assert job["progress"]["completions_settled"] == 43
    assert len(batches(system)) == 1
    assert batches(system)[0]["error_file_id"] is not None


def test_a_batch_whose_lines_all_fail_has_no_output_and_ends_the_job_with_a_reason(system: System) -> None:
    source = {"type": "inline", "prompts": [refused(number) for number in range(40)]}
    job = system.finished(submit(system, source=source))

    assert batches(system)[0]["output_file_id"] is None
    assert job["status"] == "failed"
    assert job["error"]["code"] == "too_few_accepted"
    assert job["progress"]["failed"] == 40
    assert job["cost"]["spent_usd"] == "0"


# --- the window closes, the owner decides otherwise ------------------------------------------------------------------


def test_what_expired_is_finished_by_a_second_batch(system: System) -> None:
    system.sandbox.faults([{"match": CREATE, "fault": {"kind": "batch_stalls", "share": 0.5}}])
    job_id = submit(system, source=tickets(400, 460))
    system.until(lambda: out_at_provider(system), "the batch is out")
    system.sandbox.advance(DAY + 60)
    job = system.finished(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert job["progress"]["completions_settled"] == 60
    assert [batch["status"] for batch in batches(system)] == ["completed", "expired"]
    assert teachers_bill(system) == 60
    assert job["progress"]["possibly_billed"] == 0


def test_a_cancelled_job_cancels_its_batch_and_keeps_what_was_answered(system: System) -> None:
    system.sandbox.faults([{"match": CREATE, "fault": {"kind": "batch_stalls", "share": 0.5}}])
    job_id = submit(system, source=tickets(500, 560))
    system.until(lambda: teachers_bill(system) == 30, "half of the batch is answered")
    system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    job = system.finished(job_id)

    assert job["status"] == "cancelled"
    assert [batch["status"] for batch in batches(system)] == ["cancelled"]
    assert job["progress"]["completions_settled"] == 30
    assert job["cost"]["spent_usd"] != "0"
    assert job["cost"]["reserved_usd"] == job["cost"]["unconfirmed_usd"] == "0"


def test_a_paused_job_collects_on_resume_what_was_out(system: System) -> None:
    job_id = submit(system, source=tickets(600, 640))
    system.until(lambda: batches(system), "the batch is submitted")
    system.client.post(f"/v1/jobs/{job_id}/pause").raise_for_status()
    system.until(lambda: batches(system)[0]["status"] == "completed", "the batch is answered")
    assert system.job(job_id)["status"] == "paused"
    system.client.post(f"/v1/jobs/{job_id}/resume", json={}).raise_for_status()
    job = system.finished(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert len(batches(system)) == 1
    assert teachers_bill(system) == 40


def test_at_the_budget_only_what_it_allows_is_submitted_and_a_larger_one_goes_on(system: System) -> None:
    params = {"max_completion_tokens": 3000, "reasoning_effort": "high"}
    teacher = {"provider": "sandbox", "model": "gpt-5.4", "params": params, "mode": "batch"}
    job_id = submit(system, teacher=teacher, source=tickets(700, 760), budget={"max_cost_usd": "0.08"})
    paused = system.until(
        lambda: (job := system.job(job_id))["status"] in {"paused", "failed"} and job, "the job pauses"
    )

    assert paused["paused_reason"] == "budget", paused["error"]
    assert paused["stage"] == "generating"
    assert 0 < teachers_bill(system, "gpt-5.4") < 60
    assert float(paused["cost"]["spent_usd"]) <= 0.08
    assert paused["cost"]["reserved_usd"] == "0"
    system.client.post(f"/v1/jobs/{job_id}/resume", json={"budget": {"max_cost_usd": "50.00"}}).raise_for_status()
    job = system.finished(job_id)
    assert job["status"] == "succeeded", job["error"]
    assert teachers_bill(system, "gpt-5.4") == 60


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_a_submission_whose_answer_was_lost_is_found_and_adopted(system: System) -> None:
    system.sandbox.faults([{"match": CREATE, "fault": {"kind": "drop_after_work"}}])
    job_id = submit(system, source=tickets(800, 840))
    job = system.finished(job_id)

    assert job["status"] == "succeeded", job["error"]
    assert system.sandbox.ledger()["batches_created"] == 1
    assert "Batch 0 was found at the provider after a crash, and adopted." in messages(system, job_id)


def test_a_submission_that_shows_only_after_its_job_was_cancelled_is_in_the_books(system: System) -> None:
    system.sandbox.faults([{"match": CREATE, "fault": {"kind": "drop_after_work"}}, UNLISTED])
    job_id = submit(system, source=tickets(1000, 1040))
    system.until(lambda: system.sandbox.ledger()["batches_created"], "the batch is submitted")
    system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    job = system.finished(job_id)
    system.sandbox.clear_faults()
    system.until(lambda: batches(system)[0]["status"] == "completed", "the provider has worked on it all the same")

    assert job["status"] == "cancelled"
    assert job["progress"]["possibly_billed"] == teachers_bill(system) == 40
    assert job["cost"]["spent_usd"] == "0"
    assert accounted_usd(job) >= teachers_bill_usd(system) > 0
    assert any("does not show at the provider" in message for message in messages(system, job_id))


@pytest.mark.parametrize("end", ["succeeded", "cancelled"])
def test_a_batch_that_was_submitted_twice_is_paid_twice_and_told_of(system: System, end: str) -> None:
    system.sandbox.faults([{"match": CREATE, "fault": {"kind": "drop_after_work"}}, UNLISTED])
    if end == "cancelled":
        stalled = {"match": CREATE, "fault": {"kind": "batch_stalls", "share": 0.5}}
        system.sandbox.faults([stalled, stalled])
    first = 1100 if end == "succeeded" else 1200
    job_id = submit(system, source=tickets(first, first + 40))
    system.until(lambda: system.sandbox.ledger()["batches_created"] == 2, "it is submitted again")
    system.sandbox.clear_faults()
    if end == "cancelled":
        system.until(lambda: teachers_bill(system) == 40, "half of each is answered")
        system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    job = system.finished(job_id)

    assert job["status"] == end, job["error"]
    assert teachers_bill(system) == (80 if end == "succeeded" else 40)
    bill = teachers_bill_usd(system)
    if job["cost"]["unconfirmed_usd"] == "0":
        assert float(job["cost"]["by_stage"]["generating_usd"]) == pytest.approx(bill, abs=1e-7)
    assert accounted_usd(job) >= bill - 1e-9
    assert len([message for message in messages(system, job_id) if "was submitted twice" in message]) == 1


@pytest.mark.parametrize("struck", ["/batches", "/batches/*/cancel"], ids=["submission", "cancellation"])
def test_a_worker_killed_while_it_submits_or_cancels_a_batch_loses_none_of_its_bill(
    tmp_path: Path, struck: str
) -> None:
    with System(tmp_path, settings=CAN_BATCH | {"LEASE_SECONDS": "2"}, batch_seconds=0.5) as system:
        stalls = {"match": CREATE, "fault": {"kind": "batch_stalls", "share": 0.5}}
        hangs = {"match": {"path": struck, "method": "POST"}, "fault": {"kind": "hang_after_work", "seconds": 60}}
        system.sandbox.faults([stalls, hangs])
        worker = system.start_worker()
        job_id = submit(system, source=tickets(1300, 1340))
        system.until(lambda: teachers_bill(system) == 20 or batches(system), "half of the batch is answered")
        cancel = f"/v1/jobs/{job_id}/cancel"
        if struck != "/batches":
            system.until(lambda: teachers_bill(system) == 20, "half of the batch is answered")
            system.client.post(cancel).raise_for_status()
        system.until(lambda: system.sandbox.admin("faults")["rules"][1]["hits"], f"{struck} is called")
        system.kill(worker)
        if struck == "/batches":
            system.client.post(cancel).raise_for_status()
        system.start_worker()
        job = system.finished(job_id)

        assert job["status"] == "cancelled"
        assert system.sandbox.ledger()["batches_created"] == 1
        assert [batch["status"] for batch in batches(system)] == ["cancelled"]
        assert job["progress"]["completions_settled"] == teachers_bill(system)
        assert job["cost"]["unconfirmed_usd"] == "0"
        assert accounted_usd(job) == pytest.approx(teachers_bill_usd(system), abs=1e-7)


@pytest.mark.parametrize("why", ["away", "no longer configured"])
def test_a_cancelled_job_ends_cancelled_although_its_provider_cannot_stop_the_batch(tmp_path: Path, why: str) -> None:
    plain = {"PROVIDERS__PLAIN__BASE_URL": "http://127.0.0.1:9/v1", "STAGE_ATTEMPTS_MAX": "3"}
    with System(tmp_path, settings=CAN_BATCH | plain, batch_seconds=0.5) as system:
        system.sandbox.faults([{"match": CREATE, "fault": {"kind": "batch_stalls", "share": 0.5}}])
        worker = system.start_worker()
        job_id = submit(system, source=tickets(1400, 1440))
        system.until(lambda: teachers_bill(system) == 20, "half of the batch is answered")
        if why == "away":
            refusal = {"kind": "server_error"}
            cancellation = {"path": "/batches/*/cancel", "method": "POST"}
            system.sandbox.faults([{"match": cancellation, "probability": 1, "fault": refusal}])
        else:
            system.kill(worker)
            system.environment = {
                name: value for name, value in system.environment.items() if "PROVIDERS__SANDBOX" not in name
            }
            system.start_worker()
        system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        job = system.finished(job_id)

        assert (job["status"], job["error"]) == ("cancelled", None)
        assert job["progress"]["possibly_billed"] == 40
        if why == "away":
            assert accounted_usd(job) >= teachers_bill_usd(system) > 0
        assert any("may go on there" in message for message in messages(system, job_id))
        system.sandbox.clear_faults()
        system.client.delete(f"/v1/jobs/{job_id}").raise_for_status()
        if why == "away":
            system.until(lambda: batches(system)[0]["status"] == "cancelled", "the deletion stops it")


@pytest.mark.soak
def test_workers_killed_at_every_call_of_a_batch_leave_one_batch(tmp_path: Path) -> None:
    """Each is killed while it waits for the answer to a call that the provider has carried out."""
    calls = [("POST", "/files"), ("POST", "/batches"), ("GET", "/batches/*"), ("GET", "/files/*/content")]
    with System(tmp_path, settings=CAN_BATCH | {"LEASE_SECONDS": "2"}, batch_seconds=0.5) as system:
        fault = {"kind": "hang_after_work", "seconds": 60}
        system.sandbox.faults([{"match": {"method": method, "path": path}, "fault": fault} for method, path in calls])
        job_id = submit(system, source=tickets(900, 940))
        for struck, (_, path) in enumerate(calls):
            worker = system.start_worker()
            system.until(lambda n=struck: system.sandbox.admin("faults")["rules"][n]["hits"], f"{path} is called")
            system.kill(worker)
        system.start_worker()
        job = system.finished(job_id)

        assert job["status"] == "succeeded", job["error"]
        ledger = system.sandbox.ledger()
        assert ledger["batches_created"] == 1
        assert teachers_bill(system) == 40
        assert job["progress"]["completions_settled"] == 40
        assert job["progress"]["possibly_billed"] == 0
        assert job["cost"]["reserved_usd"] == "0"


# --- requests --------------------------------------------------------------------------------------------------------


def tickets(first: int, end: int) -> dict[str, Any]:
    return {"type": "inline", "prompts": [a_ticket(number) for number in range(first, end)]}


def refused(number: int) -> dict[str, Any]:
    """A prompt that only the provider finds wrong: it asks for an object without a word of it."""
    return {
        "messages": [{"role": "system", "content": "Triage."}, {"role": "user", "content": a_ticket(1000 + number)}],
        "response_format": {"type": "json_object"},
    }

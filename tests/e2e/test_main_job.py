"""The product's main job over HTTP, by real processes."""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from openai import OpenAI
from system import STUDENT, TEACHER, System, a_request

from shared.webhooks import signing_secret


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with System(tmp_path_factory.mktemp("main-job")) as running:
        running.start_worker()
        yield running


class Receiver:
    """A webhook receiver that answers 500 to the first request and 200 from then on."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.received.append((dict(self.headers.items()), body))
                self.send_response(500 if len(outer.received) == 1 else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                return

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hooks/distill"
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def test_a_job_goes_from_prompts_to_a_measured_student(system: System) -> None:
    receiver = Receiver()
    job = system.submit(
        prompts=120, store=True, webhook={"url": receiver.url, "events": ["job.succeeded", "job.failed"]}
    )
    assert job["status"] == "queued"

    ended = system.finished(job["id"])

    assert ended["status"] == "succeeded", ended["error"]
    assert ended["progress"]["completions_settled"] == 120
    stages = ended["cost"]["by_stage"]
    assert sum(map(Decimal, stages.values())) == Decimal(ended["cost"]["spent_usd"])
    assert [stage for stage, spent in stages.items() if spent == "0"] == ["curating_usd"], "nobody judged"
    assert ended["usage"]["prompt_tokens"] > ended["usage"]["completion_tokens"] > 0
    assert ended["students"][0]["fine_tuned_model"].startswith(f"ft:{STUDENT}")
    results = system.client.get(f"/v1/jobs/{job['id']}/results").json()
    assert results["students"][0]["verdict"] == "better"
    assert {row["role"] for row in results["rows"]} == {"teacher", "base", "student"}
    assert len(results["samples"]) == 3

    dataset = system.client.get(f"/v1/jobs/{job['id']}/dataset", params={"split": "train"})
    lines = [json.loads(line) for line in dataset.text.splitlines()]
    assert all(line["messages"][-1]["role"] == "assistant" for line in lines)
    again = system.client.get(f"/v1/jobs/{job['id']}/dataset", params={"split": "train"})
    assert hashlib.sha256(dataset.content).digest() == hashlib.sha256(again.content).digest()

    events = system.client.get(f"/v1/jobs/{job['id']}/events", params={"limit": 100}).json()["data"]
    assert sorted(event["sequence"] for event in events) == list(range(1, len(events) + 1))

    system.until(lambda: len(receiver.received) == 2, "the webhook is delivered at the second attempt")
    receiver.close()
    headers, body = receiver.received[1]
    secret = signing_secret(b"a secret key of the test suite, 40 chars", "local")
    event = OpenAI(api_key="none", webhook_secret=secret).webhooks.unwrap(body, headers)
    assert event.type == "job.succeeded"  # type: ignore[comparison-overlap]
    assert json.loads(body)["data"]["id"] == job["id"]
    assert receiver.received[0][0]["webhook-id"] == headers["webhook-id"], "every attempt carries the same id"


def test_the_provider_keeps_what_was_asked_to_be_stored(system: System) -> None:
    job = system.submit(prompts=30, first=5000, store=True, metadata={"distillation": "kept_dataset"})
    system.finished(job["id"])

    provider = OpenAI(base_url=system.sandbox.base_url, api_key="sk-sandbox", max_retries=0)
    stored = list(provider.chat.completions.list(metadata={"distillation": "kept_dataset"}, limit=100))

    assert len(stored) == 30
    assert {completion.model for completion in stored} == {TEACHER}
    assert {completion.metadata["distillation_job"] for completion in stored} == {job["id"]}  # type: ignore[index]
    provider.close()


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ({"kind": "training_failed", "code": "invalid_training_file", "message": "no"}, "provider_rejected_training"),
        ({"kind": "training_cancelled"}, "provider_rejected_training"),
        ({"kind": "training_closed"}, "provider_training_closed"),
    ],
)
def test_a_fine_tune_that_ends_badly_leaves_a_coded_error_and_the_dataset(
    system: System, fault: dict[str, Any], code: str
) -> None:
    system.sandbox.faults([{"match": {"path": "/fine_tuning/jobs", "method": "POST"}, "times": 1, "fault": fault}])
    job = system.finished(system.submit(prompts=40)["id"])
    system.sandbox.clear_faults()

    assert job["status"] == "failed"
    assert job["error"]["code"] == code
    assert job["error"]["stage"] == "training"
    dataset = system.client.get(f"/v1/jobs/{job['id']}/dataset", params={"split": "train"})
    assert len(dataset.text.splitlines()) >= 10


@pytest.mark.parametrize("side", ["teacher", "students"])
def test_a_model_that_is_not_there_is_refused_before_anything_is_spent(system: System, side: str) -> None:
    request = a_request(prompts=20)
    if side == "teacher":
        request["teacher"]["model"] = "gpt-of-nowhere"
    else:
        request["students"][0]["model"] = "gpt-of-nowhere"
    billed_before = system.sandbox.ledger()["completions_billed"]

    system.until(lambda: system.client.get("/v1/models").json()["data"], "the models are listed")
    refused = system.client.post("/v1/jobs", json=request)

    assert (refused.status_code, refused.json()["code"]) == (422, "model_unknown")
    assert refused.json()["param"] == ("teacher.model" if side == "teacher" else "students.0.model")
    assert system.sandbox.ledger()["completions_billed"] == billed_before


def test_a_cancelled_job_stops_and_keeps_what_was_paid(system: System) -> None:
    system.sandbox.faults([{"match": {"path": "/chat/completions"}, "fault": {"kind": "delay", "seconds": 0.3}}])
    job_id = system.submit(prompts=400, first=9000)["id"]
    system.until(lambda: system.job(job_id)["progress"]["completions_settled"] >= 8, "some completions are there")

    answer = system.client.post(f"/v1/jobs/{job_id}/cancel")
    job = system.finished(job_id)
    system.sandbox.clear_faults()

    assert answer.status_code in {200, 202}
    assert job["status"] == "cancelled"
    kept = system.client.get(f"/v1/jobs/{job_id}/completions", params={"limit": 5}).json()
    assert len(kept["data"]) == 5
    assert system.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200


def test_a_refused_key_ends_the_job_with_what_to_do(tmp_path: Path) -> None:
    with System(tmp_path, settings={"PROVIDERS__SANDBOX__API_KEY": "sk-invalid-key"}) as system:
        system.start_worker()
        job = system.finished(system.submit(prompts=20)["id"])

        assert job["error"]["code"] == "provider_auth_failed"
        assert "sk-invalid" not in system.logs()


def test_what_a_tenant_has_paid_for_is_not_bought_again(system: System) -> None:
    first = system.finished(system.submit(prompts=60, first=20_000)["id"])
    billed = system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"]

    second = system.finished(system.submit(prompts=60, first=20_000, split={"seed": 3})["id"])

    assert first["progress"]["reused"] == 0
    assert second["progress"]["reused"] == 60
    assert system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"] == billed
    assert second["dataset"]["sha256"] != "", "another split of the same answers is another dataset"


def test_the_same_prompt_twice_in_one_job_is_bought_once(system: System) -> None:
    request = a_request(prompts=40, first=30_000)
    prompts = request["source"]["prompts"]
    request["source"]["prompts"] = [*prompts, *({**prompt, "key": f"again-{prompt['key']}"} for prompt in prompts)]
    billed = system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"]

    job = system.finished(system.submit(**request)["id"])

    assert job["status"] == "succeeded", job["error"]
    assert system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"] == billed + 40
    assert job["dataset"]["rejected"]["duplicate"] == 40


def test_a_job_that_is_held_at_once_buys_nothing_until_it_is_resumed(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        job = system.submit(prompts=40)
        system.client.post(f"/v1/jobs/{job['id']}/pause").raise_for_status()
        system.start_worker()
        system.until(lambda: system.client.get("/readyz").status_code == 200, "a worker lives")
        system.finished(system.submit(prompts=40, first=40)["id"])  # long enough to have begun the other too
        held = system.job(job["id"])
        assert (held["status"], held["progress"]["completions_settled"], held["started_at"]) == ("paused", 0, None)
        assert system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"] == 40, "the other job's alone"

        system.client.post(f"/v1/jobs/{job['id']}/resume").raise_for_status()
        ended = system.finished(job["id"])
        assert (ended["status"], ended["error"]) == ("succeeded", None)


def test_a_job_that_can_only_fail_ends_before_it_costs_much(tmp_path: Path) -> None:
    with System(tmp_path, settings={"PROVIDERS__SANDBOX__EXAMPLES_MIN": "10"}) as system:
        system.start_worker()

        def billed() -> int:
            bought: int = system.sandbox.ledger()["per_model"].get(TEACHER, {}).get("completions_billed", 0)
            return bought

        missed = {"min_accepted": 5, "response_schema": {"type": "object", "required": ["foo"]}}
        failed = system.finished(system.submit(prompts=60, curation=missed)["id"])
        assert (failed["error"]["code"], billed()) == ("smoke_test_failed", 8)
        assert "(invalid_schema: 8)" in failed["error"]["message"]

        again = system.client.post(f"/v1/jobs/{failed['id']}/retry").raise_for_status().json()
        retried = system.finished(again["id"])
        ledger = system.sandbox.ledger()
        assert (retried["error"]["code"], retried["progress"]["reused"]) == ("smoke_test_failed", 8)
        assert ledger["completions_billed"] == ledger["distinct_prompts_billed"] <= 16

        few = system.submit(prompts=13, first=1_000, curation={"min_accepted": 5}, split={"validation": 0.3})
        assert "examples_few" in [warning["code"] for warning in few["warnings"]]
        short = system.finished(few["id"])
        assert (short["error"]["code"], short["error"]["param"]) == ("too_few_accepted", "students.0.provider")
        assert system.sandbox.ledger()["files_created"] == 0

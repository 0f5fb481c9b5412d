"""With a data directory, nothing a client has been told is lost to kill -9."""

from __future__ import annotations

import json

import httpx2
import openai
import pytest
from sandbox_kit import ask, client_of, some_pairs, train, until, upload

from sandbox.testing import SandboxProcess


def test_all_state_outlives_a_kill(tmp_path):
    with (
        SandboxProcess(
            tmp_path, latency_seconds=0, batch_seconds=0.1, training_seconds=0.1, fresh_model_404_seconds=0
        ) as sandbox,
        client_of(sandbox) as client,
    ):
        job = train(client, some_pairs(), metadata={"job": "j"})
        stored = ask(client, "Invoice", store=True, metadata={"a": "b"})
        question = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "x"}]}
        lines = [{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": question}]
        file = client.files.create(file=("b.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        until(lambda: client.batches.retrieve(batch.id), lambda it: it.status == "completed")
        sandbox.faults([{"match": {"path": "/models"}, "fault": {"kind": "server_error"}}])
        sandbox.advance(100)
        before = sandbox.ledger()

        sandbox.restart()

        after = sandbox.ledger()
        assert {**after, "in_flight": None} == {**before, "in_flight": None}
        assert [it.id for it in client.fine_tuning.jobs.list(metadata={"job": "j"})] == [job.id]
        assert client.chat.completions.retrieve(stored.id).metadata == {"a": "b"}
        assert client.files.content(file.id).read() == json.dumps(lines[0]).encode()
        assert client.batches.retrieve(batch.id).output_file_id is not None
        assert ask(client, "parcel?", model=job.fine_tuned_model).choices[0].message.content == "shipping"
        assert sandbox.admin("clock", {"advance_seconds": 0})["advanced_seconds"] == 100
        with pytest.raises(openai.InternalServerError):
            client.models.list()


def test_a_job_goes_on_training_after_a_kill(tmp_path):
    with SandboxProcess(tmp_path, training_seconds=0.8) as sandbox, client_of(sandbox) as client:
        job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=upload(client, some_pairs()))
        sandbox.restart()
        assert until(
            lambda: client.fine_tuning.jobs.retrieve(job.id), lambda it: it.status == "succeeded"
        ).fine_tuned_model


def test_a_fresh_model_and_a_fresh_completion_are_found_a_little_later():
    options = {
        "training_seconds": 0.1,
        "fresh_model_404_seconds": 30,
        "visibility_delay_seconds": 30,
        "latency_seconds": 0,
    }
    with SandboxProcess(**options) as sandbox, client_of(sandbox) as client:
        model = train(client, some_pairs()).fine_tuned_model
        stored = ask(client, "Invoice", store=True)
        assert list(client.chat.completions.list()) == []
        for look in (lambda: client.chat.completions.retrieve(stored.id), lambda: ask(client, "x", model=model)):
            with pytest.raises(openai.NotFoundError):
                look()
        sandbox.advance(31)
        assert client.chat.completions.retrieve(stored.id).id == stored.id
        assert ask(client, "parcel", model=model)


def test_limits_can_be_enforced():
    with SandboxProcess(requests_per_minute=2, enforce_limits=True, api_key="sk-1", latency_seconds=0) as sandbox:
        with client_of(sandbox, api_key="sk-1") as client:
            ask(client, "1")
            ask(client, "2")
            with pytest.raises(openai.RateLimitError) as refused:
                ask(client, "3")
        assert (refused.value.code, refused.value.response.headers["x-ratelimit-remaining-requests"]) == (
            "rate_limit_exceeded",
            "0",
        )
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert httpx2.get(sandbox.base_url + "/models", headers={"authorization": "Bearer sk-2"}).status_code == 401

"""Batches: what is wrong with the input, in which order answers come, and what the end looks like."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from sandbox_kit import ended, until


def line(custom_id: str, text: str = "Invoice", **body: Any) -> dict[str, Any]:
    asked = {"model": "gpt-4.1", "messages": [{"role": "user", "content": text}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": asked}


def start(client, lines, **params: Any):
    content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in lines).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", **params
    )


def run(client, lines, **params: Any):
    batch = start(client, lines, **params)
    return ended(lambda: client.batches.retrieve(batch.id))


def rows(client, file_id) -> list[dict[str, Any]]:
    return [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


def test_answers_come_in_another_order_with_counts_and_usage(client, sandbox):
    batch = run(client, [line(f"c{n}", f"Say {n}") for n in range(20)], metadata={"k": "v"})
    assert (batch.status, batch.error_file_id, batch.metadata) == ("completed", None, {"k": "v"})
    assert batch.request_counts.model_dump() == {"total": 20, "completed": 20, "failed": 0}
    output = rows(client, batch.output_file_id)
    assert [row["custom_id"] for row in output] != [f"c{n}" for n in range(20)]
    assert {row["custom_id"] for row in output} == {f"c{n}" for n in range(20)}
    assert {row["response"]["status_code"] for row in output} == {200}
    assert batch.usage.total_tokens == sum(row["response"]["body"]["usage"]["total_tokens"] for row in output)
    assert sandbox.ledger()["completions_billed"] == 20
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"


def test_failed_lines_go_to_the_error_file(client):
    batch = run(client, [line("good"), line("bad", temperature=9)])
    assert [row["custom_id"] for row in rows(client, batch.output_file_id)] == ["good"]
    (bad,) = rows(client, batch.error_file_id)
    assert (bad["custom_id"], bad["response"]["status_code"], bad["error"]) == ("bad", 400, None)
    assert bad["response"]["body"]["error"]["param"] == "temperature"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (1, 1)


def test_completed_does_not_mean_that_anything_succeeded(client):
    batch = run(client, [line("a", temperature=9), line("b", top_p=7)])
    assert (batch.status, batch.output_file_id) == ("completed", None)
    assert len(rows(client, batch.error_file_id)) == 2


@pytest.mark.parametrize(
    ("lines", "number", "code"),
    [
        ([line("a"), "nonsense"], 2, "invalid_json_line"),
        ([line("a"), line("b"), line("a")], 3, "duplicate_custom_id"),
        ([line("a"), line("b", model="gpt-5.4")], 2, "mismatched_model"),
        ([line("a", model="gpt-9")], 1, "model_not_found"),
        ([line("a") | {"url": "/v1/embeddings"}], 1, "invalid_url"),
        ([line("a") | {"method": "GET"}], 1, "invalid_method"),
        ([line("a", stream=True)], 1, "invalid_request"),
    ],
)
def test_a_bad_input_file_fails_the_batch_and_names_the_line(client, lines, number, code):
    batch = run(client, lines)
    assert (batch.status, batch.output_file_id) == ("failed", None)
    assert [(error.line, error.code) for error in batch.errors.data] == [(number, code)]


def test_an_expired_batch_delivers_what_was_done(client, sandbox):
    sandbox.faults([{"fault": {"kind": "batch_stalls", "share": 0.5}}])
    batch = start(client, [line(f"c{n}") for n in range(10)])
    until(lambda: client.batches.retrieve(batch.id), lambda it: it.request_counts.completed == 5)
    sandbox.advance(86_400)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "expired"
    assert len(rows(client, batch.output_file_id)) == 5
    lost = rows(client, batch.error_file_id)
    assert {(row["response"], row["error"]["code"]) for row in lost} == {(None, "batch_expired")}
    assert len(lost) == 5


def test_a_cancelled_batch_delivers_what_was_done(client, sandbox):
    sandbox.faults([{"fault": {"kind": "batch_stalls", "share": 0.5}}])
    batch = start(client, [line(f"c{n}") for n in range(4)])
    until(lambda: client.batches.retrieve(batch.id), lambda it: it.request_counts.completed == 2)
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(lambda: client.batches.retrieve(batch.id))
    assert batch.status == "cancelled"
    assert len(rows(client, batch.output_file_id)) == 2
    with pytest.raises(openai.ConflictError):
        client.batches.cancel(batch.id)


def test_batches_are_listed_newest_first_and_refused_when_they_make_no_sense(client):
    made = [start(client, [line("a")]).id for _ in range(3)]
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]
    file = client.files.create(file=("x.txt", b"x"), purpose="user_data").id
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError):
        client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="1h")

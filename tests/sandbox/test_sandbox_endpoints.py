"""Every endpoint, driven by the official SDK against a real process."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import httpx2
import openai
import pytest
from sandbox_kit import ask, client_of, ended, sft_file, some_pairs, train, upload

# Chat completions


def test_a_teacher_triages_a_ticket_by_rules(client):
    completion = ask(client, "My invoice is wrong and it is urgent")
    assert json.loads(completion.choices[0].message.content) == {
        "category": "billing",
        "priority": "urgent",
        "team": "finance",
    }
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens


def test_the_same_question_gets_the_same_answer(client):
    said = {ask(client, "Tell me about tides.", system="Be brief.").choices[0].message.content for _ in range(3)}
    assert len(said) == 1


def test_n_choices_are_given_when_n_are_asked_for(client):
    assert [choice.index for choice in ask(client, "Invoice", n=3).choices] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("[sandbox:refuse]", ("stop", None, "I'm sorry, but I can't help with that.")),
        ("[sandbox:filter]", ("content_filter", "", None)),
        ("??", ("stop", "", None)),
    ],
)
def test_some_questions_make_a_teacher_refuse_stop_or_fall_silent(client, text, seen):
    choice = ask(client, text).choices[0]
    assert (choice.finish_reason, choice.message.content, choice.message.refusal) == seen


def test_an_answer_above_the_cap_is_cut_and_says_so(client):
    choice = ask(client, "Invoice", max_completion_tokens=3).choices[0]
    assert (choice.finish_reason, len(choice.message.content)) == ("length", 12)


def test_hidden_reasoning_can_use_up_the_cap(client):
    completion = ask(client, "Invoice", model="gpt-6-sol", max_completion_tokens=20)
    assert (completion.choices[0].finish_reason, completion.choices[0].message.content) == ("length", "")
    assert completion.usage.completion_tokens_details.reasoning_tokens == 20


def test_a_json_schema_is_satisfied(client):
    schema = {
        "type": "object",
        "properties": {
            "category": {"type": "string"},
            "priority": {"enum": ["low", "urgent"]},
            "steps": {"type": "array", "items": {"$ref": "#/$defs/step"}},
        },
        "$defs": {"step": {"type": "object", "properties": {"minutes": {"type": "integer", "minimum": 1}}}},
    }
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "triage", "schema": schema}}
    said = json.loads(ask(client, "My invoice, urgent", response_format=wanted).choices[0].message.content)
    assert said == {"category": "billing", "priority": "urgent", "steps": [{"minutes": 1}]}
    said = json.loads(ask(client, "x", model="qwen3-8b", response_format=wanted).choices[0].message.content)
    assert set(said) == {"category", "priority", "steps"}


def test_a_required_tool_is_called(client):
    tools: Any = [
        {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    ]
    choice = ask(client, "x", tools=tools, tool_choice="required").choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    assert choice.message.tool_calls[0].function.name == "look_up"


def test_a_judge_scores_by_likeness(client):
    def score(reference: str, answer: str) -> float:
        prompt = f"Question: what?\n\nReference answer:\n{reference}\n\nCandidate answer:\n{answer}"
        said = (
            ask(client, prompt, system="You are a strict judge. Grade the answer with JSON.").choices[0].message.content
        )
        return json.loads(said)["score"]

    assert score("the sky is blue", "the sky is blue") == 1
    assert score("the sky is blue", "cheese") < 0.5
    pair = {"conversation": [], "answer_1": '{"a": 1, "b": 2}', "answer_2": '{"a": 1, "b": 3}'}
    said = ask(client, json.dumps(pair), system="Material to judge.").choices[0].message.content
    assert json.loads(said)["score"] == 0.5, "answers in JSON are compared by field"


@pytest.mark.parametrize(
    ("model", "params", "code", "param"),
    [
        ("gpt-5.4", {"max_tokens": 9}, "unsupported_parameter", "max_tokens"),
        ("o3", {"temperature": 0.2}, "unsupported_value", "temperature"),
        ("gpt-5.4", {"temperature": 0.2, "reasoning_effort": "low"}, "unsupported_value", "temperature"),
        ("gpt-6-astra", {"reasoning_effort": "none"}, "unsupported_value", "reasoning_effort"),
        ("gpt-6-astra", {"stop": "x"}, "unsupported_parameter", "stop"),
        ("gpt-6-sol", {"tools": [{"type": "function", "function": {"name": "f"}}]}, None, "reasoning_effort"),
        ("gpt-4.1", {"temperature": 3}, "invalid_value", "temperature"),
        ("gpt-4.1", {"extra_body": {"temprature": 1}}, "unknown_parameter", "temprature"),
        ("gpt-4.1", {"response_format": {"type": "xml"}}, "invalid_value", "response_format.type"),
        ("gpt-4.1", {"metadata": {str(n): "" for n in range(17)}}, "object_too_large", "metadata"),
        ("gpt-4.1", {"metadata": {"k": "v" * 513}}, "string_above_max_length", "metadata.k"),
        ("gpt-4.1", {"metadata": {"k" * 65: "v"}}, "string_above_max_length", "metadata." + "k" * 64),
        ("gpt-4.1", {"metadata": {"k": 1}}, "invalid_type", "metadata.k"),
    ],
)
def test_a_model_refuses_what_it_does_not_support(client, model, params, code, param):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, "x", model=model, **params)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_sampling_is_allowed_where_the_model_does_not_reason(client):
    assert ask(client, "Invoice", model="gpt-5.4", temperature=0.01, top_p=0.9).choices
    assert ask(client, "Invoice", model="gpt-6-sol", temperature=0.01, reasoning_effort="none").choices


@pytest.mark.parametrize("model", ["gpt-9", "o4-mini", "ft:qwen3-8b:sandbox::nope"])
def test_unknown_and_retired_models_are_not_found(client, model):
    with pytest.raises(openai.NotFoundError) as refused:
        ask(client, "x", model=model)
    assert refused.value.code == "model_not_found"


# What every answer has


def test_every_answer_has_an_id_and_a_completion_tells_the_limits(client):
    raw = client.chat.completions.with_raw_response.create(model="gpt-4.1", messages=[{"role": "user", "content": "x"}])
    assert raw.headers["x-request-id"].startswith("req_")
    assert raw.headers["x-ratelimit-limit-requests"] == "30000"
    assert re.fullmatch(r"\d+ms|(\d+h)?(\d+m)?[\d.]+s", raw.headers["x-ratelimit-reset-tokens"])
    assert int(raw.headers["x-ratelimit-remaining-tokens"]) <= int(raw.headers["x-ratelimit-limit-tokens"])


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/v1/files/", None, 404),
        ("PUT", "/v1/files", None, 405),
        ("POST", "/v1/chat/completions", b"{nonsense", 400),
        ("POST", "/v1/chat/completions", b'"\xff"', 400),
        ("POST", "/v1/chat/completions", b"[]", 400),
        ("POST", "/v1/chat/completions", b"", 400),
        ("POST", "/v1/chat/completions", b'{"model": "gpt-4.1", "messages": []}', 400),
        ("POST", "/v1/chat/completions", b'{"model": "gpt-4.1", "messages": [{"role": "user"}]}', 400),
        ("POST", "/v1/files", b"", 400),
        ("GET", "/v1/files/file-none", None, 404),
        ("GET", "/v1/models/none", None, 404),
        ("GET", "/v1/batches/none", None, 404),
        ("GET", "/v1/fine_tuning/jobs/none", None, 404),
        ("GET", "/v1/chat/completions?limit=0", None, 400),
        ("GET", "/v1/chat/completions?order=up", None, 400),
        ("GET", "/v1/chat/completions?after=nobody", None, 400),
    ],
)
def test_every_error_comes_in_the_same_envelope(sandbox, method, path, body, status):
    answer = httpx2.request(method, sandbox.root_url + path, content=body, headers={"authorization": "Bearer k"})
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_a_key_is_needed_and_a_bad_one_is_refused(sandbox):
    assert httpx2.get(sandbox.base_url + "/models").status_code == 401
    with client_of(sandbox, api_key="sk-invalid-1") as client, pytest.raises(openai.AuthenticationError) as refused:
        client.models.list()
    assert refused.value.code == "invalid_api_key"


# Stored completions


def test_stored_completions_are_listed_by_metadata_and_page_by_page(client):
    for n in range(5):
        made = ask(client, f"Invoice {n}", store=True, metadata={"job": "a", "n": str(n % 2)})
        assert not (made.model_extra or {}).get("metadata")
    ask(client, "other job", store=True, metadata={"job": "b"})
    ask(client, "not stored", metadata={"job": "a"})
    listed = list(client.chat.completions.list(metadata={"job": "a"}, limit=2))
    assert [row.metadata["n"] for row in listed] == ["0", "1", "0", "1", "0"]
    assert len(list(client.chat.completions.list(metadata={"job": "a", "n": "1"}))) == 2
    newest = client.chat.completions.list(metadata={"job": "a"}, order="desc", limit=1)
    assert (newest.data[0].id, newest.has_more) == (listed[-1].id, True)
    assert list(client.chat.completions.list(model="gpt-4.1")) == []


def test_a_stored_completion_is_read_relabelled_and_deleted(client):
    made = ask(client, "Invoice", store=True, metadata={"a": "1"}, seed=3, temperature=0.5)
    kept = client.chat.completions.retrieve(made.id)
    assert kept.choices[0].message.content == made.choices[0].message.content
    assert (kept.model_extra["seed"], kept.model_extra["temperature"]) == (3, 0.5)
    inputs = list(client.chat.completions.messages.list(made.id))
    assert [(row.id, row.role) for row in inputs] == [(f"{made.id}-0", "system"), (f"{made.id}-1", "user")]
    assert client.chat.completions.update(made.id, metadata={"b": "2"}).metadata == {"b": "2"}
    assert client.chat.completions.delete(made.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)


def test_stored_completions_expire_after_thirty_days(client, sandbox):
    made = ask(client, "Invoice", store=True)
    sandbox.advance(31 * 86_400)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.retrieve(made.id)


# Files and uploads


def test_a_file_comes_back_byte_for_byte_until_it_is_deleted(client):
    content = b'{"a": "\xc3\xa9"}\r\n\n \xff'
    file = client.files.create(
        file=("odd.jsonl", content), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.bytes, file.purpose, file.expires_at - file.created_at) == (len(content), "fine-tune", 3600)
    assert client.files.content(file.id).read() == content
    assert client.files.retrieve(file.id).id == file.id
    assert [row.id for row in client.files.list(purpose="fine-tune")] == [file.id]
    assert list(client.files.list(purpose="batch")) == []
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_files_are_listed_newest_first(client):
    made = [client.files.create(file=(f"{n}.txt", b"x"), purpose="user_data").id for n in range(3)]
    assert [row.id for row in client.files.list(limit=2)] == made[::-1]
    assert [row.id for row in client.files.list(order="asc")] == made


@pytest.mark.parametrize(
    ("name", "content", "purpose", "error"),
    [
        ("x.jsonl", b"{}", "party", openai.BadRequestError),
        ("x.csv", b"{}", "fine-tune", openai.BadRequestError),
        ("x.jsonl", b"", "batch", openai.BadRequestError),
        ("x.jsonl", b"x" * 1_000_001, "batch", openai.APIStatusError),
    ],
)
def test_a_file_of_the_wrong_kind_is_refused(client, name, content, purpose, error):
    with pytest.raises(error):
        client.files.create(file=(name, content), purpose=purpose)


def test_a_file_can_be_uploaded_in_parts(client):
    content = b'{"n": 1}\n' * 1000
    done = client.uploads.upload_file_chunked(
        file=content, filename="big.jsonl", bytes=len(content), mime_type="text/jsonl", purpose="batch", part_size=4096
    )
    assert done.status == "completed"
    assert client.files.content(done.file.id).read() == content


def test_an_upload_is_cancelled_or_refused_when_bytes_are_missing(client):
    def begin() -> str:
        return client.uploads.create(bytes=10, filename="x.jsonl", mime_type="text/jsonl", purpose="batch").id

    first, second = begin(), begin()
    assert client.uploads.cancel(first).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.uploads.parts.create(first, data=b"late")
    part = client.uploads.parts.create(second, data=b"12345")
    with pytest.raises(openai.BadRequestError):
        client.uploads.complete(second, part_ids=[part.id])


# Fine-tuning


def test_a_job_trains_a_model_with_events_checkpoints_and_results(client):
    job = train(
        client, some_pairs(), suffix="triage", metadata={"job": "j1"}, validation_file=upload(client, some_pairs(2))
    )
    assert job.status == "succeeded"
    assert re.fullmatch(r"ft:qwen3-8b:sandbox:triage:\w+", job.fine_tuned_model)
    assert job.method.supervised.hyperparameters.n_epochs == 5
    assert job.trained_tokens > 0
    assert job.error.code is None, "a job that succeeded carries an empty error object"
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=10))
    assert events[0].message == "The job has successfully completed"
    assert events[-1].message.startswith("Created fine-tuning job")
    assert any(event.type == "metrics" and event.data["step"] == 1 for event in events)
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    assert [row.step_number for row in checkpoints] == [60, 48, 36], "of five epochs the last three, newest first"
    assert checkpoints[0].metrics.full_valid_loss is not None
    csv = client.files.content(job.result_files[0]).text.splitlines()
    assert csv[0] == "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"
    assert ask(client, "Where is my parcel?", model=job.fine_tuned_model).choices[0].message.content == "shipping"
    assert ask(client, "My parcel?", model=checkpoints[-1].fine_tuned_model_checkpoint).choices


def test_a_job_passes_through_its_statuses(client):
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=upload(client, some_pairs()))
    assert (job.status, job.hyperparameters.n_epochs) == ("validating_files", "auto")
    seen = [job.status]
    while seen[-1] != "succeeded":
        status = client.fine_tuning.jobs.retrieve(job.id).status
        seen += [status] if status != seen[-1] else []
        time.sleep(0.005)
    assert seen == ["validating_files", "queued", "running", "succeeded"]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (sft_file(some_pairs(3))[1], "invalid_n_examples"),
        (sft_file(some_pairs())[1] + b"nonsense\n", "invalid_training_file"),
        (b'{"prompt": "a", "completion": "b"}\n' * 12, "invalid_training_file"),
    ],
)
def test_a_bad_training_file_fails_the_job_later(client, content, code):
    file = client.files.create(file=("bad.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file.id)
    job = ended(lambda: client.fine_tuning.jobs.retrieve(job.id))
    assert (job.status, job.error.code, job.error.param) == ("failed", code, "training_file")


def test_a_file_unknown_or_of_another_purpose_is_refused_at_once(client):
    other = client.files.create(file=("x.jsonl", b"{}"), purpose="batch").id
    for file in ("file-none", other):
        with pytest.raises(openai.BadRequestError) as refused:
            client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file)
        assert refused.value.param == "training_file"


@pytest.mark.parametrize(
    "params",
    [
        {"model": "gpt-6.1-sol"},
        {"suffix": "s" * 65},
        {"seed": -1},
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 51}}}},
        {"method": {"type": "dpo", "dpo": {"hyperparameters": {"beta": 3}}}},
        {"method": {"type": "reinforcement"}},
    ],
)
def test_a_job_nobody_could_run_is_refused(client, params):
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.create(**{"model": "qwen3-8b", "training_file": upload(client, some_pairs()), **params})


def test_jobs_are_listed_newest_first_and_by_metadata(client):
    file = upload(client, some_pairs())
    made = [
        client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file, metadata={"job": str(n % 2)}).id
        for n in range(4)
    ]
    assert [job.id for job in client.fine_tuning.jobs.list(limit=3)] == made[::-1]
    assert [job.id for job in client.fine_tuning.jobs.list(metadata={"job": "1"})] == [made[3], made[1]]


def test_a_job_is_paused_resumed_and_cancelled(client, sandbox):
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=upload(client, some_pairs()))
    assert client.fine_tuning.jobs.pause(job.id).status == "paused"
    sandbox.advance(60)
    assert client.fine_tuning.jobs.retrieve(job.id).status == "paused"
    assert client.fine_tuning.jobs.resume(job.id).status in {"queued", "running"}
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)


def test_the_limits_of_training_are_told_per_model(client):
    answer: Any = client.get("/fine_tuning/model_limits", cast_to=object)
    assert {"model", "max_total_jobs", "max_concurrent_jobs", "active_jobs"} == set(answer["data"][0])


# Models


def test_models_tell_when_they_retire(client):
    listed = {model.id: model.shutdown_date for model in client.models.list()}
    assert listed["o4-mini"] == "2026-10-23"
    assert listed["gpt-4.1-mini-2025-04-14"] == "2027-01-14"
    assert listed["qwen3-8b"] is None


def test_a_model_retires_with_the_calendar(client, sandbox):
    assert ask(client, "x", model="gpt-5")
    sandbox.advance(20 * 86_400)
    with pytest.raises(openai.NotFoundError):
        ask(client, "x", model="gpt-5")


def test_a_trained_model_is_listed_and_can_be_deleted(client):
    name = train(client, some_pairs()).fine_tuned_model
    assert name in {model.id for model in client.models.list()}
    assert client.models.retrieve(name).owned_by == "sandbox"
    assert client.models.delete(name).deleted
    with pytest.raises(openai.NotFoundError):
        ask(client, "x", model=name)
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("gpt-4.1")

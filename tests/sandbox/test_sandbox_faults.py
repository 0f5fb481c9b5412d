"""Trouble on request, and the ledger that tells what it cost."""

from __future__ import annotations

import base64
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest
from sandbox_kit import ask, client_of, ended, some_pairs, train, until, upload

CHAT = {"path": "/chat/completions"}


@pytest.mark.parametrize(
    ("fault", "status", "code", "headers"),
    [
        ({"kind": "rate_limited", "retry_after": 2}, 429, "rate_limit_exceeded", {"retry-after": "2"}),
        ({"kind": "rate_limited", "retry_after": 121}, 429, "rate_limit_exceeded", {"retry-after": "121"}),
        ({"kind": "slow_down"}, 429, "slow_down", {"retry-after": "1"}),
        ({"kind": "insufficient_quota"}, 429, "credit_balance_exhausted", {"retry-after": None}),
        ({"kind": "insufficient_quota", "code": "billing_hard_limit_reached"}, 429, "billing_hard_limit_reached", {}),
        ({"kind": "resource_unavailable"}, 429, "resource_unavailable", {}),
        ({"kind": "overloaded"}, 503, "server_is_overloaded", {"retry-after": "1"}),
        ({"kind": "server_error", "should_retry": False}, 500, None, {"x-should-retry": "false"}),
        ({"kind": "error", "status": 400, "code": "context_length_exceeded"}, 400, "context_length_exceeded", {}),
    ],
)
def test_a_refusal_is_made_to_measure_and_costs_nothing(client, sandbox, fault, status, code, headers):
    sandbox.faults([{"match": CHAT, "fault": fault}])
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, "Invoice")
    assert (refused.value.status_code, refused.value.code) == (status, code)
    assert {name: refused.value.response.headers.get(name) for name in headers} == headers
    assert refused.value.request_id
    assert sandbox.ledger()["completions_billed"] == 0
    assert ask(client, "Invoice").choices, "the rule struck once and is used up"


@pytest.mark.parametrize(("kind", "billed"), [("drop", 0), ("drop_after_work", 1), ("drop_mid_body", 1)])
def test_a_connection_is_really_dropped_before_or_after_the_work(client, sandbox, kind, billed):
    sandbox.faults([{"match": CHAT, "fault": {"kind": kind}}])
    with pytest.raises(openai.APIConnectionError) as lost:
        ask(client, "Invoice")
    assert isinstance(lost.value.__cause__, httpx2.RemoteProtocolError)
    assert sandbox.ledger()["completions_billed"] == billed


def test_an_answer_lost_after_the_work_is_found_among_the_stored_ones(client, sandbox):
    sandbox.faults([{"match": CHAT, "fault": {"kind": "drop_after_work"}}])
    with pytest.raises(openai.APIConnectionError):
        ask(client, "Invoice", store=True, metadata={"distillation_job": "j", "prompt": "p"})
    assert len(list(client.chat.completions.list(metadata={"prompt": "p"}))) == 1


@pytest.mark.parametrize(("kind", "billed"), [("hang", 0), ("hang_after_work", 1)])
def test_a_request_hangs_until_its_client_gives_up(client, sandbox, kind, billed):
    sandbox.faults([{"match": CHAT, "fault": {"kind": kind}}])
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.2), "Invoice")
    assert until(sandbox.ledger, lambda ledger: ledger["in_flight"]["now"] == 0)["completions_billed"] == billed


def test_an_answer_drips_slowly_but_whole(client, sandbox):
    sandbox.faults([{"match": CHAT, "fault": {"kind": "slow_drip", "seconds": 0.3, "pieces": 10}}])
    began = time.monotonic()
    assert ask(client, "Invoice").choices[0].message.content
    assert time.monotonic() - began > 0.25


def test_a_body_can_be_huge(sandbox):
    sandbox.faults([{"match": CHAT, "fault": {"kind": "huge_body", "bytes": 3_000_000}}])
    assert len(_raw(sandbox).content) >= 3_000_000


def test_a_body_can_be_html_or_broken_or_of_another_shape(sandbox):
    sandbox.faults([{"fault": {"kind": kind}} for kind in ("html", "truncated_json", "wrong_shape")])
    assert _raw(sandbox).headers["content-type"].startswith("text/html")
    with pytest.raises(json.JSONDecodeError):
        _raw(sandbox).json()
    assert "message" not in json.dumps(_raw(sandbox).json())


def _raw(sandbox):
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}
    return httpx2.post(
        sandbox.base_url + "/chat/completions", json=body, headers={"authorization": "Bearer k"}, timeout=10
    )


def test_a_rule_strikes_only_what_it_matches(client, sandbox):
    rule = {
        "match": {**CHAT, "method": "POST", "model": "gpt-4.1", "contains": "parcel"},
        "fault": {"kind": "server_error"},
    }
    sandbox.faults([rule])
    assert ask(client, "My parcel", model="gpt-5.4")
    assert ask(client, "My invoice", model="gpt-4.1")
    with pytest.raises(openai.InternalServerError):
        ask(client, "My parcel", model="gpt-4.1")


def test_a_rule_can_wait_repeat_and_leave_it_to_chance(client, sandbox):
    sandbox.faults([{"match": CHAT, "skip": 1, "times": 2, "fault": {"kind": "server_error"}}])
    assert [_ok(client) for _ in range(4)] == [True, False, False, True]
    sandbox.clear_faults()
    sandbox.faults([{"match": CHAT, "probability": 0.5, "fault": {"kind": "server_error"}}])
    assert 5 < sum(_ok(client) for _ in range(40)) < 35


def _ok(client) -> bool:
    try:
        ask(client, "Invoice")
    except openai.InternalServerError:
        return False
    return True


def test_an_unknown_fault_is_refused_rather_than_ignored(sandbox):
    with pytest.raises(RuntimeError, match="known kind"):
        sandbox.faults([{"fault": {"kind": "meteor"}}])
    with pytest.raises(RuntimeError, match="has no second"):
        sandbox.faults([{"fault": {"kind": "hang", "second": 1}}])


# Faults of training


def test_a_create_whose_answer_is_lost_has_created_the_job(client, sandbox):
    file = upload(client, some_pairs())
    sandbox.faults([{"match": {"path": "/fine_tuning/jobs", "method": "POST"}, "fault": {"kind": "drop_after_work"}}])
    with pytest.raises(openai.APIConnectionError):
        client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file, metadata={"job": "j"})
    assert [job.training_file for job in client.fine_tuning.jobs.list(metadata={"job": "j"})] == [file]
    assert sandbox.ledger()["fine_tuning_jobs_created"] == 1


def test_training_fails_with_the_code_asked_for(client, sandbox):
    sandbox.faults([{"fault": {"kind": "training_failed", "code": "exceeded_quota", "message": "No more."}}])
    job = train(client, some_pairs())
    assert (job.status, job.error.code, job.error.message) == ("failed", "exceeded_quota", "No more.")


def test_the_provider_cancels_a_job_of_its_own_accord(client, sandbox):
    sandbox.faults([{"fault": {"kind": "training_cancelled"}}])
    assert train(client, some_pairs()).status == "cancelled"


def test_a_provider_that_no_longer_trains_says_403(client, sandbox):
    sandbox.faults([{"fault": {"kind": "training_closed"}}])
    file = upload(client, some_pairs())
    with pytest.raises(openai.PermissionDeniedError):
        client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file)
    assert sandbox.ledger()["fine_tuning_jobs_created"] == 0


@pytest.mark.parametrize("status", ["paused", "pausing", "meditating"])
def test_a_job_dwells_in_a_status_for_a_while(client, sandbox, status):
    sandbox.faults([{"fault": {"kind": "training_status", "status": status, "seconds": 50}}])
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=upload(client, some_pairs()))
    until(lambda: client.fine_tuning.jobs.retrieve(job.id), lambda it: it.status == status)
    sandbox.advance(60)
    assert ended(lambda: client.fine_tuning.jobs.retrieve(job.id)).status == "succeeded"


def test_a_new_job_appears_late_in_the_list_and_the_filter_may_be_ignored(client, sandbox):
    sandbox.faults([{"fault": {"kind": "list_lag", "seconds": 30}}])
    file = upload(client, some_pairs())
    job = client.fine_tuning.jobs.create(model="qwen3-8b", training_file=file, metadata={"job": "j"})
    assert client.fine_tuning.jobs.retrieve(job.id).id == job.id
    assert list(client.fine_tuning.jobs.list(metadata={"job": "j"})) == []
    sandbox.advance(31)
    assert len(list(client.fine_tuning.jobs.list(metadata={"job": "j"}))) == 1
    assert list(client.fine_tuning.jobs.list(metadata={"job": "other"})) == []
    sandbox.faults([{"fault": {"kind": "ignore_metadata_filter"}}])
    assert len(client.fine_tuning.jobs.list(metadata={"job": "other"}).data) == 1


def test_a_job_can_vanish_at_the_provider(client, sandbox):
    sandbox.faults([{"fault": {"kind": "job_deleted", "after_seconds": 20}}])
    job = train(client, some_pairs())
    sandbox.advance(20)
    with pytest.raises(openai.NotFoundError):
        client.fine_tuning.jobs.retrieve(job.id)


def test_results_may_come_in_base64_and_success_without_an_error_object(client, sandbox):
    sandbox.faults([{"fault": {"kind": "result_csv"}}, {"fault": {"kind": "success_error_value", "value": None}}])
    job = train(client, some_pairs())
    assert job.error is None
    assert base64.b64decode(client.files.content(job.result_files[0]).read()).startswith(b"step,train_loss")


# The ledger


def test_the_ledger_tells_what_was_paid_twice(client, sandbox):
    for metadata in ({"prompt": "1"}, {"prompt": "2"}, {"prompt": "2", "user": "x"}):
        ask(client, "Invoice", store=True, metadata=metadata)
    ledger = sandbox.ledger()
    assert (ledger["completions_billed"], ledger["distinct_prompts_billed"]) == (3, 2)
    assert list(ledger["billed_more_than_once"]["fingerprints"].values()) == [2]
    assert ledger["per_model"]["gpt-6.1-sol"]["completions_billed"] == 3
    assert ledger["requests"]["POST /v1/chat/completions"] == {"200": 3}


def test_many_calls_are_in_flight_at_once(sandbox):
    with client_of(sandbox) as client, ThreadPoolExecutor(20) as pool:
        sandbox.faults([{"match": CHAT, "times": 20, "fault": {"kind": "delay", "seconds": 0.5}}])
        began = time.monotonic()
        list(pool.map(lambda n: ask(client, f"Invoice {n}"), range(20)))
    assert time.monotonic() - began < 5
    assert sandbox.ledger()["in_flight"] == {"now": 0, "max": 20}

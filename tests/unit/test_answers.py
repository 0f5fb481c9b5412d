"""What a provider's answer means: the error table of OpenAI's guide, row by row, and answers that are none."""

from datetime import UTC, datetime

import msgspec
import pytest

from shared.errors import (
    ProviderAuthFailed,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from shared.retries import RetryPolicy, Stop, after_failure
from worker.providers.answers import error_of, parse_completion, retry_after_seconds

QUOTA = (
    "credit_balance_exhausted",
    "organization_spend_limit_exceeded",
    "project_spend_limit_exceeded",
    "organization_usage_limit_exceeded",
    "insufficient_quota",
    "billing_hard_limit_reached",
)


def the_error(status, *, type=None, code=None, body=None, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        body = msgspec.json.encode({"error": {"message": "my prompt and sk-key", "type": type, "code": code}})
    return error_of(status, body, names.get)


@pytest.mark.parametrize(
    ("status", "type", "code", "wanted"),
    [
        (429, "requests", "rate_limit_exceeded", ProviderRateLimited),
        (429, "tokens", "rate_limit_exceeded", ProviderRateLimited),
        (429, "rate_limit_error", "slow_down", ProviderRateLimited),
        *[(429, "insufficient_quota", code, ProviderQuotaExhausted) for code in QUOTA],
        *[(429, None, code, ProviderQuotaExhausted) for code in QUOTA],
        (429, "insufficient_quota", None, ProviderQuotaExhausted),
        (429, None, "resource_unavailable", ProviderRateLimited),
        (503, "service_unavailable_error", "server_is_overloaded", ProviderRateLimited),
        *[(status, "server_error", None, ProviderUnavailable) for status in (500, 502, 504)],
        *[(status, None, None, ProviderUnavailable) for status in (408, 409)],
        (400, "invalid_request_error", "context_length_exceeded", ProviderRejected),
        (400, "invalid_request_error", "unsupported_parameter", ProviderRejected),
        (400, "invalid_request_error", "unsupported_value", ProviderRejected),
        (400, "invalid_request_error", "invalid_prompt", ProviderRejected),
        (401, "invalid_request_error", "invalid_api_key", ProviderAuthFailed),
        (401, None, None, ProviderAuthFailed),
        (403, None, None, ProviderAuthFailed),
        (404, "invalid_request_error", "model_not_found", ProviderModelMissing),
        (400, "invalid_request_error", "model_not_found", ProviderModelMissing),
        (422, None, None, ProviderRejected),
    ],
)
def test_the_error_table(status, type, code, wanted):
    assert isinstance(the_error(status, type=type, code=code), wanted)


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
@pytest.mark.parametrize(
    "body", [b"", b"<html>", b'{"error": "text"}', b"[]", b'{"detail": 1}', b"\xff", b"[" * 200_000, b'{"error": null}']
)
def test_an_error_without_a_readable_body_is_judged_by_its_status(status, body):
    wanted = {
        401: ProviderAuthFailed,
        404: ProviderModelMissing,
        429: ProviderRateLimited,
        500: ProviderUnavailable,
        503: ProviderRateLimited,
    }

    assert isinstance(the_error(status, body=body), wanted[status])


CIRCUMSTANCES = {
    "failures": 1,
    "fresh_for_seconds": None,
    "policy": RetryPolicy(attempts_max=3, base_seconds=1.0, cap_seconds=9.0),
    "jitter": 0.0,
}
SURELY_UNBILLED = (400, 401, 402, 403, 404, 405, 409, 410, 413, 415, 422, 429, 503)
MAYBE_BILLED = (201, 204, 408, 424, 500, 501, 502, 504, 505, 507, 508, 520, 522, 524, 529, 599)


@pytest.mark.parametrize("status", SURELY_UNBILLED)
@pytest.mark.parametrize("headers", [{}, {"x_should_retry": "true"}, {"x_should_retry": "false"}])
def test_a_refusal_and_an_overload_are_surely_not_billed(status, headers):
    decision = after_failure(the_error(status, **headers), attempts=1, **CIRCUMSTANCES)

    assert isinstance(decision, Stop) or not decision.lost


@pytest.mark.parametrize("status", MAYBE_BILLED)
@pytest.mark.parametrize("headers", [{}, {"x_should_retry": "true"}, {"x_should_retry": "false"}])
@pytest.mark.parametrize("attempts", [1, 3])
def test_whatever_broke_may_have_broken_after_the_work_was_done_and_billed(status, headers, attempts):
    decision = after_failure(the_error(status, **headers), attempts=attempts, **CIRCUMSTANCES)

    assert decision.lost, decision


def test_an_error_keeps_the_providers_codes_and_none_of_its_words():
    error = the_error(400, code="invalid_prompt", x_request_id="req_9")

    assert (error.status, error.provider_code, error.request_id) == (400, "invalid_prompt", "req_9")
    assert "sk-key" not in repr(error.args) + str(vars(error))


@pytest.mark.parametrize(
    ("headers", "wanted"),
    [
        ({}, None),
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sun, 22 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"retry-after": "Sun, 22 Nov 2026 11:00:00 GMT"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "1000000"}, 3600.0),
        ({"retry-after": "tomorrow"}, None),
    ],
)
def test_how_long_an_answer_asks_to_wait(headers, wanted):
    now = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)

    assert retry_after_seconds(headers.get, now=now) == wanted


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": "text"}]}',
        b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": "ten"}}',
        b'{"choices": ' + b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_what_is_no_completion_is_no_answer(body):
    with pytest.raises(ProviderUnavailable) as caught:
        parse_completion(body, {}.get, latency_ms=1)

    assert caught.value.provider_code == "malformed_answer"


def test_an_answer_is_kept_byte_for_byte():
    body = b'{ "choices":[{"message":{"role":"assistant","content":"\\u00e9"}, "x":1}],"usage":null}\n'

    completion = parse_completion(body, {"x-request-id": "req_1"}.get, latency_ms=3)

    assert completion.raw == body
    assert (completion.message["content"], completion.usage.prompt_tokens) == ("é", 0)

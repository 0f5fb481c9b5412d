"""What a provider's HTTP answer means, decided once for every client: by `error.code`, then `error.type`, then status.

Source: https://developers.openai.com/api/docs/guides/error-codes.  Nothing here keeps the provider's message: it may
quote the prompt or the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from shared.models import JsonObject, Usage
from shared.ports import Completion, RateLimits

Header = Callable[[str], str | None]

QUOTA_CODES: Final = frozenset(
    {
        "credit_balance_exhausted",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded",
        "insufficient_quota",
        "billing_hard_limit_reached",
    }
)
_WORD: Final = re.compile(r"[A-Za-z0-9_.:/\[\]-]{1,128}")
#: 408: the server gave up on a request it had; 424: a model server's own failure while it generates (TGI).
_WORK_MAY_BE_DONE: Final = frozenset({408, 424})
_RETRY_AFTER_MAX_SECONDS: Final = 3600.0


class _ErrorBody(msgspec.Struct):
    code: str | int | None = None
    type: str | None = None
    param: str | None = None


class _ErrorEnvelope(msgspec.Struct):
    error: _ErrorBody | None = None


class _Choice(msgspec.Struct):
    message: JsonObject
    finish_reason: str | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    usage: _Usage | None = None
    service_tier: str | None = None


_answers: Final = msgspec.json.Decoder(_Answer)
_errors: Final = msgspec.json.Decoder(_ErrorEnvelope)


def parse_completion(body: bytes, header: Header, *, latency_ms: int | None) -> Completion:
    """A chat completion, only what we read of it checked.  Raises ProviderUnavailable for anything else."""
    request_id = header("x-request-id")
    try:
        answer = _answers.decode(body)
        choice = answer.choices[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, IndexError, RecursionError) as error:
        raise ProviderUnavailable(
            "The provider's answer is not a chat completion.",
            status=200,
            provider_code="malformed_answer",
            request_id=request_id,
        ) from error
    usage = answer.usage or _Usage()
    prompt, output = usage.prompt_tokens_details, usage.completion_tokens_details
    return Completion(
        raw=body,
        message=choice.message,
        finish_reason=choice.finish_reason,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=(prompt and prompt.cached_tokens) or 0,
            cache_write_tokens=(prompt and prompt.cache_write_tokens) or 0,
            reasoning_tokens=(output and output.reasoning_tokens) or 0,
        ),
        provider_request_id=request_id,
        latency_ms=latency_ms,
        service_tier=answer.service_tier,
        limits=RateLimits(
            _whole(header("x-ratelimit-limit-requests")),
            _whole(header("x-ratelimit-limit-tokens")),
        ),
    )


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and 0 < len(text) < 16 else None


def error_of(status: int, body: bytes, header: Header) -> ProviderError:
    """The error that an answer with this status stands for.  header: looks one up by lower-case name."""
    try:
        envelope = _errors.decode(body[:100_000]).error or _ErrorBody()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        envelope = _ErrorBody()
    code = word(str(envelope.code)) if envelope.code is not None else None
    known: dict[str, Any] = {
        "status": status,
        "provider_code": code or word(envelope.type),
        "request_id": word(header("x-request-id")),
    }
    wait = retry_after_seconds(header)
    if code in QUOTA_CODES or envelope.type == "insufficient_quota":
        return ProviderQuotaExhausted("The provider's credit or spend limit is exhausted.", **known)
    if code in {"rate_limit_exceeded", "slow_down", "server_is_overloaded"} or status in {429, 503}:
        return ProviderRateLimited("The provider asks for fewer requests.", retry_after_seconds=wait, **known)
    maybe = may_be_billed(status)
    if header("x-should-retry") == "true" or maybe or status == 409:
        return ProviderUnavailable(
            f"The provider answered {status}.", billed_maybe=maybe, retry_after_seconds=wait, **known
        )
    if code == "invalid_api_key" or status in {401, 403}:
        return ProviderAuthFailed("The provider refused the operator's key, or what it may do.", **known)
    if code == "model_not_found" or status == 404:
        return ProviderModelMissing("The provider has no such model.", **known)
    return ProviderRejected("The provider refused the request.", param=word(envelope.param), **known)


def may_be_billed(status: int) -> bool:
    """Whether the work may have been done, and be charged, although this status came instead of the answer.

    A refusal (4xx) and an overload (503) come before the work, a redirection instead of it; what breaks (5xx) may break
    after it."""
    return status in _WORK_MAY_BE_DONE or status < 300 or (status >= 500 and status != 503)


def word(text: str | None) -> str | None:
    """What a provider means as a word, such as an error code, if it is one: it goes into logs, and a server that puts
    a sentence there may quote the prompt in it."""
    return text if text is not None and _WORD.fullmatch(text) else None


def retry_after_seconds(header: Header, *, now: datetime | None = None) -> float | None:
    """How long the answer asks to wait: retry-after-ms, or Retry-After as seconds or HTTP date; at most an hour."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = header(name)
        if text is None:
            continue
        try:
            seconds = float(text) / unit
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(text) - (now or datetime.now(UTC))).total_seconds()
            except (ValueError, TypeError):
                continue
        if 0 <= seconds < float("inf"):
            return min(seconds, _RETRY_AFTER_MAX_SECONDS)
    return None

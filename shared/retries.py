"""What to do after a provider did not answer as hoped: one pure function over the error, for every call we make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderUnavailable,
)


@dataclass(frozen=True)
class RetryPolicy:
    """attempts_max: calls for one completion, not counting refusals for rate.  Waits in seconds."""

    attempts_max: int
    base_seconds: float
    cap_seconds: float
    fresh_model_seconds: float = 0.0


@dataclass(frozen=True)
class Retry:
    """lost: the failed call may have been billed.  counted: it used up one of the attempts."""

    after_seconds: float
    lost: bool
    counted: bool


@dataclass(frozen=True)
class GiveUp:
    """This prompt gets no completion; the others go on."""

    code: str
    lost: bool


@dataclass(frozen=True)
class Stop:
    """No call of this pass can succeed now: the job pauses for its owner, or fails."""

    kind: Literal["pause", "fail"]
    code: str


def after_failure(
    error: ProviderError,
    *,
    attempts: int,
    failures: int,
    fresh_for_seconds: float | None,
    policy: RetryPolicy,
    jitter: float,
) -> Retry | GiveUp | Stop:
    """attempts: calls so far that count against the policy, this one included, >= 1.  failures: all calls so far.
    jitter: in [0, 1), drawn by the caller.  fresh_for_seconds: how long a just-trained model has been asked for
    already; None for any other model."""
    backoff = min(policy.cap_seconds, policy.base_seconds * 2 ** min(failures - 1, 16)) * (1 + jitter) / 2
    match error:
        case ProviderQuotaExhausted():
            return Stop("pause", error.code)
        case ProviderAuthFailed():
            return Stop("fail", error.code)
        case ProviderModelMissing():
            if fresh_for_seconds is not None and fresh_for_seconds < policy.fresh_model_seconds:
                return Retry(backoff, lost=False, counted=False)
            return Stop("fail", error.code)
        case ProviderRateLimited():
            wait = error.retry_after_seconds
            return Retry(wait * (1 + jitter / 10) if wait else backoff, lost=False, counted=False)
        case ProviderUnavailable(provider_code="answer_too_large"):
            return GiveUp(error.code, lost=True)  # it would be as large again, and billed again
        case ProviderUnavailable():
            if attempts >= policy.attempts_max:
                return GiveUp(error.code, lost=error.billed_maybe)
            return Retry(max(backoff, error.retry_after_seconds or 0.0), lost=error.billed_maybe, counted=True)
        case _:
            return GiveUp(error.code, lost=False)

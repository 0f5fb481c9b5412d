"""Every error the product raises on purpose, as one tree.

DistillError                      code, retryable; `str()` is the sentence the caller reads
├── RequestError                  the caller can mend it; answered at once
│   ├── ValidationFailed          validation_failed (with pointers)
│   │   ├── too_many_prompts, too_few_prompts, prompt_too_long, duplicate_prompt_key, unsupported_param,
│   │   └── model_unknown, model_retired, model_unpriced, cost_above_limit, url_not_allowed, holdout_too_small, …
│   ├── Unauthenticated           missing_api_key, invalid_api_key
│   ├── Forbidden                 insufficient_scope, provider_not_allowed
│   ├── NotFound                  not_found (the same for another tenant's object)
│   ├── JobDeleted                job_deleted
│   ├── TooMany                   rate_limited, too_many_active_jobs (worth a retry, after the time it names)
│   ├── DailySpendExhausted       daily_spend_exhausted (until the next day, UTC)
│   ├── IdempotencyKeyReused      idempotency_key_reused
│   ├── Conflict                  idempotency_in_progress, job_not_finished, student_not_awaiting, …
│   └── BadRequest                malformed_json, malformed_form, invalid_cursor, invalid_idempotency_key,
│                                 idempotency_key_unsupported, invalid_signature
├── StoreError                    store_unavailable, store_full, newer_version (all worth a retry)
├── ProviderError                 what a teacher or trainer answered; worker-side, decides retry or pause
│   ├── ProviderUnavailable       no usable answer: time-out, dropped connection, 5xx, garbage (may have been billed)
│   ├── ProviderRateLimited       429/503 with a time to wait
│   ├── ProviderQuotaExhausted    credit or spend limit: pause the job
│   ├── ProviderAuthFailed        key refused: fail the job
│   ├── ProviderModelMissing      no such model, or retired
│   ├── ProviderTrainingClosed    the provider takes no new fine-tuning jobs
│   └── ProviderRejected          a definite no to this one request
└── JobFailed                     ends a job; carries what `job.error` shows

HTTP meets this tree in one file, api/problems.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Fault:
    """One place in a request that is wrong.  pointer: RFC 6901, into the body.  Never carries the caller's value."""

    pointer: str
    code: str
    detail: str


class DistillError(Exception):
    """Something went wrong"""

    code: str = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        if code is not None:
            self.code = code


class RequestError(DistillError):
    """The request cannot be served as it stands"""

    def __init__(self, detail: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(detail, code=code)
        self.param = param


class BadRequest(RequestError):
    """The request could not be read"""

    code = "malformed_json"


class ValidationFailed(RequestError):
    """The request is not valid"""

    code = "validation_failed"

    def __init__(
        self, detail: str, *, code: str | None = None, param: str | None = None, faults: Sequence[Fault] = ()
    ) -> None:
        super().__init__(detail, code=code, param=param)
        self.faults = tuple(faults)


class Unauthenticated(RequestError):
    """The API key is missing or not known"""

    code = "invalid_api_key"


class Forbidden(RequestError):
    """The API key does not allow this"""

    code = "insufficient_scope"


class NotFound(RequestError):
    """There is no such object"""

    code = "not_found"


class JobDeleted(RequestError):
    """The job was deleted"""

    code = "job_deleted"


class TooMany(RequestError):
    """The tenant asks for more than it may"""

    code = "rate_limited"
    retryable = True

    def __init__(self, detail: str, *, code: str | None = None, retry_after_seconds: int | None = None) -> None:
        super().__init__(detail, code=code)
        self.retry_after_seconds = retry_after_seconds


class DailySpendExhausted(RequestError):
    """The tenant's jobs have spent what they may today"""

    code = "daily_spend_exhausted"

    def __init__(self, detail: str, *, retry_after_seconds: int) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class IdempotencyKeyReused(RequestError):
    """The idempotency key was used for another request"""

    code = "idempotency_key_reused"


class Conflict(RequestError):
    """The object is not in a state that allows this"""

    code = "job_not_cancellable"


class IdempotencyInProgress(Conflict):
    """The first request with this idempotency key is still being served"""

    code = "idempotency_in_progress"
    retryable = True


class JobNotFinished(Conflict):
    """The job has not finished"""

    code = "job_not_finished"
    retryable = True


class StoreError(DistillError):
    """The store cannot take this now"""

    code = "store_unavailable"
    retryable = True


class StoreFull(StoreError):
    """The store has no room for new jobs"""

    code = "store_full"


class NewerVersion(StoreError):
    """The job was written by a newer version of the service"""

    code = "newer_version"
    retry_after_seconds: ClassVar[int] = 30


class ProviderError(DistillError):
    """The provider did not do what was asked

    status, provider_code, request_id: as the provider sent them, for `job.error.provider`.
    The sentence is ours: a provider's own message may carry prompt text or a key."""

    code = "provider_unavailable"

    def __init__(
        self,
        detail: str,
        *,
        status: int | None = None,
        provider_code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.provider_code = provider_code
        self.param = param
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds


class ProviderUnavailable(ProviderError):
    """The provider gave no usable answer

    billed_maybe: the request may have been carried out, and billed, all the same."""

    retryable = True

    def __init__(
        self,
        detail: str,
        *,
        billed_maybe: bool = True,
        status: int | None = None,
        request_id: str | None = None,
        provider_code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(
            detail,
            status=status,
            request_id=request_id,
            provider_code=provider_code,
            retry_after_seconds=retry_after_seconds,
        )
        self.billed_maybe = billed_maybe


class ProviderRateLimited(ProviderError):
    """The provider asks for fewer requests"""

    retryable = True


class ProviderQuotaExhausted(ProviderError):
    """The provider's credit or spend limit is exhausted"""

    code = "provider_quota_exhausted"


class ProviderAuthFailed(ProviderError):
    """The provider refused the operator's key"""

    code = "provider_auth_failed"


class ProviderModelMissing(ProviderError):
    """The provider does not have this model"""

    code = "model_unknown"


class ProviderTrainingClosed(ProviderError):
    """The provider takes no new fine-tuning jobs"""

    code = "provider_training_closed"


class ProviderRejected(ProviderError):
    """The provider refused this request for good"""

    code = "provider_rejected"


class JobFailed(DistillError):
    """The job ends with this error"""

    code = "attempts_exhausted"

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        param: str | None = None,
        provider: ProviderError | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(detail, code=code)
        self.param = param
        self.provider = provider
        self.worth_a_retry = retryable


def sentence(text: str) -> str:
    """With a full stop, unless it ends in a question: "… is not known; did you mean x?"."""
    return text if text.endswith("?") else f"{text}."

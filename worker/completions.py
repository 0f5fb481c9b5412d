"""From a provider's answer to what the store keeps: one prompt's request, its price, its judgement on arrival."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping

import msgspec

from shared.completions import StoredCompletion
from shared.curation import assistant_message, reason_against
from shared.errors import JobFailed, ProviderError
from shared.ids import completion_id
from shared.judge import reason_against_reply
from shared.lifecycle import Stage
from shared.models import Job, JobError, JsonObject, Prompt, ProviderAnswer, Usage, usd
from shared.plan import PassPlan, request_body
from shared.ports import Completion
from shared.pricing import Prices, batch_nano, request_size
from shared.store.content import pack_completion
from shared.store.passes import Outcome, Settlement

_MESSAGES = {
    "provider_auth_failed": "The provider refused the operator's key.  Ask the operator to renew it, then retry.",
    "model_unknown": "The provider has no such model, or has retired it.  Choose another model and submit a new job.",
    "provider_unavailable": "The provider gave no usable answer.  Retry the job when the provider is well again.",
}


def job_error(error: ProviderError | JobFailed, stage: Stage | None, *, param: str | None = None) -> JobError:
    """What `job.error` shows: our sentence and the provider's codes, never its text."""
    if isinstance(error, JobFailed):
        cause = error.provider
        return JobError(
            code=error.code,
            message=str(error),
            param=error.param,
            stage=stage,
            retryable=error.worth_a_retry,
            provider=_answer(cause) if cause else None,
        )
    return JobError(
        code=error.code,
        message=_MESSAGES.get(error.code, str(error)),
        param=param or error.param,
        stage=stage,
        retryable=error.retryable,
        provider=_answer(error),
    )


def _answer(error: ProviderError) -> ProviderAnswer:
    return ProviderAnswer(status=error.status, code=error.provider_code, request_id=error.request_id)


class Scribe:
    """Writes the completions of one pass of one job."""

    def __init__(
        self,
        job: Job,
        plan: PassPlan,
        prices: Prices,
        price_list: str | None,
        *,
        secret: bytes,
        day_limited: bool = False,
    ) -> None:
        """day_limited: what the tenant may spend a day is limited, so that every call reserves its price."""
        self._job = job
        self._reserves = day_limited or job.money.limit_nano is not None
        self._plan = plan
        self._prices = prices
        self._price_list = price_list
        self._priced_as = plan.priced_as or plan.model
        self._secret = secret
        self._batched = plan.role == "teacher" and job.spec.teacher.mode == "batch"
        self._output_cap = plan.params.get("max_completion_tokens") or plan.params.get("max_tokens")
        self._reasons: dict[str, int] = {}
        # Samples are bought again on purpose; the first is what a job without samples would buy.
        context = (job.tenant, plan.params, plan.sample) if plan.sample else (job.tenant, plan.params)
        self._ledger_context = msgspec.json.encode(context, order="sorted")

    def body(self, prompt: Prompt, index: int) -> JsonObject:
        return request_body(self._job, self._plan, prompt, index)

    def reserve_nano(self, prompt: Prompt, index: int) -> int | None:
        """What the call reserves: None where nothing is limited, which spares most calls of most jobs the count."""
        return self.ceiling_nano(prompt, index) if self._reserves else None

    def ceiling_nano(self, prompt: Prompt, index: int) -> int:
        """The most the call can cost; 0 when the model is unpriced."""
        prompt_bytes, media_parts = request_size(self.body(prompt, index))
        ceiling = self._prices.ceiling_nano(
            self._price_list,
            self._priced_as,
            prompt_bytes=prompt_bytes,
            max_completion_tokens=self._output_cap,
            media_parts=media_parts,
            service_tier=self._plan.params.get("service_tier"),
        )
        return self._billed(ceiling) or 0

    def fingerprint(self, prompt: Prompt) -> str:
        """What is asked, and of whom: equal for two calls exactly when one answer would do for both.

        Keyed, so that nobody who reads the store's keys can try prompts against it."""
        asked = (self._plan.provider, self._plan.model, prompt.messages, prompt.tools, prompt.response_format)
        digest = hashlib.blake2b(self._ledger_context, digest_size=16, key=self._secret[:64])
        digest.update(msgspec.json.encode(asked))
        return digest.hexdigest()

    def reused(self, chunk: int, index: int, paid: StoredCompletion) -> Settlement:
        """A completion this tenant has paid for before: kept here too, at no cost.  Its price and latency stay."""
        reason = self._reason(*assistant_message(paid.raw))
        kept = msgspec.structs.replace(paid, id=self._id(index), index=index, reused=True, reason=reason)
        return Settlement(chunk, index, None, pack_completion(kept), 0, _outcome(reason), reused=True)

    def cost_nano(self, completion: Completion) -> int | None:
        """None when it is unpriced."""
        if not _is_plausible(completion.usage):
            return None
        tier = None if self._batched else completion.service_tier
        prices, usage = self._prices, completion.usage
        return self._billed(prices.cost_nano(self._price_list, self._priced_as, usage, service_tier=tier))

    def answered(self, chunk: int, index: int, call: str, completion: Completion, fingerprint: str) -> Settlement:
        usage = completion.usage if _is_plausible(completion.usage) else Usage()
        cost = self.cost_nano(completion)
        reason = self._reason(completion.message, completion.finish_reason)
        kept = StoredCompletion(
            id=self._id(index),
            index=index,
            model=self._plan.model,
            status="answered",
            created_at_ms=_now_ms(),
            reason=reason,
            raw=msgspec.Raw(completion.raw),
            usage=usage,
            cost_nano=cost,
            latency_ms=completion.latency_ms,
            provider_request_id=completion.provider_request_id,
        )
        return Settlement(
            chunk,
            index,
            call,
            pack_completion(kept),
            cost,
            _outcome(reason),
            fingerprint=fingerprint,
            ledger_seconds=self._job.spec.retention_days * 86_400,
            usage=usage,
        )

    def supplied(self, chunk: int, index: int, prompt: Prompt) -> Settlement:
        """A completion that came with the prompt: kept as if the teacher had given it, for free."""
        message = prompt.completion or {}
        finish_reason = prompt.finish_reason or "stop"
        reason = self._reason(message, finish_reason)
        answer = {"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]}
        kept = StoredCompletion(
            id=self._id(index),
            index=index,
            model=self._plan.model,
            status="answered",
            created_at_ms=_now_ms(),
            reason=reason,
            raw=msgspec.Raw(msgspec.json.encode(answer)),
            cost_nano=0,
            reused=True,
        )
        return Settlement(chunk, index, None, pack_completion(kept), 0, _outcome(reason), reused=True)

    def failed(
        self, chunk: int, index: int, call: str, error: ProviderError, fingerprint: str, *, lost_nano: int | None
    ) -> Settlement:
        """This prompt gets no completion; why is kept in its place.

        lost_nano: the most the call can have cost; None when it is not billed."""
        self._reasons[error.provider_code or error.code] = self._reasons.get(error.provider_code or error.code, 0) + 1
        kept = StoredCompletion(
            id=self._id(index),
            index=index,
            model=self._plan.model,
            status="failed",
            created_at_ms=_now_ms(),
            provider_request_id=error.request_id,
            error=job_error(error, self._job.stage),
        )
        cost, lost = lost_nano or 0, lost_nano is not None
        return Settlement(chunk, index, call, pack_completion(kept), cost, "failed", lost, fingerprint=fingerprint)

    def smoke_failure(
        self, *, settled: int, accepted: int, failed: int, reasons: Mapping[str, int] | None = None
    ) -> JobError:
        """failed: those that have no answer, which a retry asks for again.

        reasons: why the others cannot be used; None for what this worker has seen on their arrival."""
        seen = self._reasons if reasons is None else reasons
        listed = ", ".join(f"{code}: {count}" for code, count in sorted(seen.items())) or "see completions"
        if self._plan.role == "judge":
            again = (
                ""
                if self._plan.grader is not None
                else " in a new job, whose source of type job reuses the teacher's answers; a retry is given the same "
                "replies, all but the calls that failed"
            )
            return JobError(
                code="smoke_test_failed",
                message=f"Only {accepted} of the judge's first {settled} replies can be used ({listed}).  Nothing more"
                " was asked of it.  Look at them with GET /v1/jobs/{id}/completions?role=judge, give the grader room in"
                f" `sampling_params.max_completion_tokens`, another `prompt` or another model{again}.",
                param=self._plan.param.removesuffix(".model"),
                stage=self._job.stage,
            )
        if failed == settled:
            return JobError(
                code="smoke_test_failed",
                message=f"All of the first {settled} calls failed ({listed}).  Nothing more was bought.  Look at them "
                "with GET /v1/jobs/{id}/completions.  A retry makes them anew, once the cause at the provider is over; "
                "where the provider refuses the requests themselves, send a new job with what it refused mended.",
                stage=self._job.stage,
            )
        return JobError(
            code="smoke_test_failed",
            message=f"Only {accepted} of the first {settled} completions can be used ({listed}).  Nothing more was "
            "bought.  Look at them with GET /v1/jobs/{id}/completions.  A retry is given the same answers, all but the "
            "calls that failed; send a new job with other prompts or another schema, or with other `teacher.params` "
            "(another `seed` will do) to have the same prompts answered anew.",
            stage=self._job.stage,
        )

    def budget_failure(self, needs_nano: int) -> JobError:
        """needs_nano: what the next call may cost."""
        return JobError(
            code="cost_above_limit",
            message=f"The next call may cost up to {usd(needs_nano)} dollars, more than is left of the job's budget, "
            "and `budget.on_limit` is `fail`.  What was paid for can be exported; retry the job with a larger budget "
            "to reuse it.",
            param="budget.max_cost_usd",
            stage=self._job.stage,
        )

    def stop_error(self, error: ProviderError) -> JobError:
        return job_error(error, self._job.stage, param=self._plan.param if error.code == "model_unknown" else None)

    def _billed(self, nano: int | None) -> int | None:
        return nano if nano is None or not self._batched else batch_nano(nano)

    def _reason(self, message: JsonObject, finish_reason: str | None) -> str | None:
        if self._plan.role == "judge":
            reason = reason_against_reply(message, finish_reason)
        else:
            longest = self._job.spec.curation.max_output_chars if self._plan.role == "teacher" else None
            reason = reason_against(message, finish_reason, max_output_chars=longest)
        if reason is not None:
            self._reasons[reason] = self._reasons.get(reason, 0) + 1
        return reason

    def _id(self, index: int) -> str:
        return completion_id(self._secret, self._job.id, self._plan.number, index)


def _is_plausible(usage: Usage) -> bool:
    """A server may send anything as usage; what are no token counts make an unpriced call."""
    return all(0 <= count < 2**31 for count in msgspec.structs.astuple(usage))


def _outcome(reason: str | None) -> Outcome:
    return "accepted" if reason is None else "rejected"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

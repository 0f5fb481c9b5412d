"""Every error code of the API: the one table, the page behind each `type`, and docs/errors.md.

`python -m api.problem_table > docs/errors.md`.  How an error becomes an answer: api/problems.py."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Problem:
    """status: None for codes that only appear in `job.error`.  meaning and remedy: whole sentences for the page."""

    status: int | None
    title: str
    meaning: str
    remedy: str
    retryable: bool = False


PROBLEMS: Final[Mapping[str, Problem]] = {
    # --- 400
    "malformed_json": Problem(
        400,
        "The body is not JSON",
        "The body could not be read as JSON in UTF-8.  NaN, Infinity, lone surrogates, whole numbers of more than"
        " 64 bits, numbers that no double can hold and nesting deeper than 64 levels are not accepted either.",
        "Send one JSON object.  `detail` says what is wrong, and at which byte reading stopped where that can be told:"
        " not of a number that is out of range, a text that breaks off and nesting.",
    ),
    "malformed_form": Problem(
        400,
        "The form cannot be read",
        "The body is declared as `multipart/form-data`, and its parts are not delimited as RFC 7578 asks or break off"
        " before the last boundary.",
        "Let an HTTP library write the form, or send the file itself as `application/jsonl`.",
    ),
    "invalid_cursor": Problem(
        400,
        "The cursor is not one of ours",
        "`after` or `before` does not name an object of this list.",
        "Pass `last_id` of the page before, unchanged.",
    ),
    "invalid_idempotency_key": Problem(
        400,
        "The idempotency key cannot be used",
        "`Idempotency-Key` is empty, longer than 255 characters or not plain ASCII.",
        "Send a fresh UUID for every request you mean to make once.",
    ),
    "idempotency_key_unsupported": Problem(
        400,
        "The route takes no idempotency key",
        "`Idempotency-Key` was sent to a route that does anew what it is asked each time: an upload, a new API key or"
        " webhook endpoint, another secret, a delivery sent again.  Nothing was done.",
        "Send it without the key.  When an answer was lost, look into the list for what was made, and delete it.",
    ),
    "invalid_signature": Problem(
        400,
        "The signature does not verify",
        "An event for `/v1/provider_events/{provider}` is not signed with the secret that the operator has set for this"
        " provider, or more than five minutes ago.",
        "Set the provider's `webhook_secret` to what the provider showed when the webhook was made; check both clocks.",
    ),
    # --- 401, 403
    "missing_api_key": Problem(
        401,
        "No API key was sent",
        "The request has no `Authorization: Bearer …` header.",
        "Send your API key in that header.",
    ),
    "invalid_api_key": Problem(
        401,
        "The API key is not known",
        "The key in the `Authorization` header is wrong, revoked or of another installation.",
        "Check the key; ask your operator for a new one.",
    ),
    "insufficient_scope": Problem(
        403,
        "The API key does not allow this",
        "The key is known and lacks the scope this route asks for, which `detail` names.",
        "Use a key with that scope.",
    ),
    "provider_not_allowed": Problem(
        403,
        "The API key or its tenant may not use this provider",
        "The provider is configured, but not for this key or not for its tenant.",
        "Name another provider, or ask your operator.",
    ),
    # --- 404, 405, 410, 413, 415
    "not_found": Problem(
        404,
        "There is no such object",
        "No object of yours has this id, or no route this path.  Other tenants' objects answer the same.",
        "Check the id and the path.",
    ),
    "job_deleted": Problem(
        410,
        "The job was deleted",
        "The job existed; its content is gone, by request or because its retention ended.",
        "Nothing can bring it back.",
    ),
    "method_not_allowed": Problem(
        405,
        "The route does not take this method",
        "The path exists; the method is another one, named in the `Allow` header.",
        "Use an allowed method.",
    ),
    "body_too_large": Problem(
        413,
        "The body is too large",
        "The body has more bytes than the operator allows (`DISTILL_BODY_MAX_BYTES`, for a file"
        " `DISTILL_FILE_MAX_BYTES`).",
        "Upload the prompts as a file, or split the file.",
    ),
    "unsupported_media_type": Problem(
        415,
        "The body is not declared as the route takes it",
        "The `Content-Type` is missing or another one than the route takes, or a `Content-Encoding` was used.",
        "Send `Content-Type: application/json`, for a file `application/jsonl` or `multipart/form-data`, uncompressed.",
    ),
    # --- 409
    "idempotency_in_progress": Problem(
        409,
        "The first request with this key is still being served",
        "Another request with the same `Idempotency-Key` has not been answered yet.",
        "Wait for `Retry-After`, then send the same request again.  Where the process that served the first was "
        "killed, this ends after 30 seconds.",
        retryable=True,
    ),
    "job_not_finished": Problem(
        409,
        "The job has not finished",
        "What was asked for exists only once the job, or the stage that makes it, is done.",
        "Wait for `Retry-After`, or subscribe to the job's events.",
        retryable=True,
    ),
    "job_not_cancellable": Problem(
        409,
        "The job has ended already",
        "A job that succeeded or failed cannot be cancelled.",
        "Nothing is left to do.",
    ),
    "job_not_terminal": Problem(
        409,
        "The job has not ended",
        "This is possible only with a job that succeeded, failed or was cancelled.",
        "Cancel the job first, or wait for its end.",
    ),
    "too_many_webhook_endpoints": Problem(
        409,
        "There are too many webhook endpoints",
        "A tenant may have 20 webhook endpoints.",
        "Delete one, or let one take more events.",
    ),
    "too_many_webhook_secrets": Problem(
        409,
        "Too many secrets of this webhook endpoint still sign",
        "Each replaced secret signs for 24 hours more, and at most 5 sign one delivery.",
        "Rotate again once the oldest has ended, or make another endpoint.",
    ),
    "webhook_endpoint_disabled": Problem(
        409,
        "The webhook endpoint is disabled",
        "Nothing is sent to a disabled endpoint: neither a test nor a delivery again.",
        'Enable it first: `PATCH` it with `{"enabled": true}`.',
    ),
    "job_not_paused": Problem(
        409, "The job is not paused", "Only a paused job can be resumed.", "Look at the job's `status`."
    ),
    "job_not_running": Problem(
        409, "The job is not running", "Only a queued or running job can be paused.", "Look at the job's `status`."
    ),
    "student_not_awaiting": Problem(
        409,
        "The student is not awaiting its deployment",
        "Where a student answers is told from `awaiting_deployment` until it has given its first answer.",
        "Look at the student's `status` and `endpoint`.",
    ),
    # --- 422
    "validation_failed": Problem(
        422,
        "The request is not valid",
        "Parts of the request break a rule.  `errors` lists up to 20 of them, each with an RFC 6901 pointer into the"
        " body; `pointer` is null for a query parameter, which `detail` names.",
        "Mend every place and send it again.  `POST /v1/jobs?validate_only=true` checks without storing anything.",
    ),
    "idempotency_key_reused": Problem(
        422,
        "The idempotency key was used for another request",
        "An earlier request with the same `Idempotency-Key` had another body.",
        "Use a fresh key for a different request.",
    ),
    "too_many_prompts": Problem(
        422,
        "There are too many prompts",
        "A request body takes as many prompts as the operator allows (`DISTILL_INLINE_PROMPTS_MAX`), and so does a file"
        " (`DISTILL_FILE_MAX_PROMPTS`).",
        "Upload the prompts as a file, or split the job.",
    ),
    "too_few_prompts": Problem(
        422,
        "There are too few prompts",
        "After the holdout and the validation split, fewer prompts are left for training than"
        " `curation.min_accepted` asks for, so the job could only fail.  Each prompt falls into its split by a hash,"
        " so that of a few prompts the sizes are by chance: 10 prompts leave fewer than 5 for training in 5 of 100"
        " cases.",
        "Send more prompts (24 for the default split and `min_accepted`), lower `split` or `curation.min_accepted`, or"
        " try another `split.seed`.",
    ),
    "prompt_too_long": Problem(
        422,
        "A prompt is too long",
        "All messages of one prompt together have more characters than the operator allows"
        " (`DISTILL_PROMPT_MAX_CHARS`).",
        "Shorten the prompt.",
    ),
    "duplicate_prompt_key": Problem(
        422,
        "Two prompts have the same key",
        "`key` names a prompt within its job, so each may appear once.",
        "Give every prompt a key of its own, or none.",
    ),
    "unsupported_param": Problem(
        422,
        "The teacher does not take this parameter",
        "A parameter is no parameter of Chat Completions, or this model is known to refuse it: every call would fail.",
        "Leave the parameter out or choose another model; `detail` says what the model takes.",
    ),
    "model_unknown": Problem(
        422,
        "The provider does not have this model",
        "The provider knows no model of this name, or the operator's key may not use it.  Refused at once where the"
        " provider's models were read lately; else the job ends with this code in `job.error` before it spends.",
        "Choose one of GET /v1/models; `detail` names near ones.",
    ),
    "model_retired": Problem(
        422,
        "The provider has retired this model",
        "The model's shutdown date has come, by the provider's own calendar.",
        "Choose the model the provider names as its replacement.",
    ),
    "model_unpriced": Problem(
        422,
        "The model has no known price",
        "A budget was asked for, and it cannot be kept without knowing what calls cost.",
        "Ask your operator to add the model to the price file, or leave the budget out.",
    ),
    "cost_above_limit": Problem(
        422,
        "The budget or the limit of the day is too small",
        "The least the job will cost, or one of its calls, is more than `budget.max_cost_usd`, or one call is more than"
        " your jobs may spend a day.  In `job.error`: the budget was reached and `budget.on_limit` is `fail`, or the"
        " next call is more than a whole day allows.",
        "Raise the budget, set `max_completion_tokens`, or send fewer prompts; ask your operator for more a day.",
    ),
    "url_not_allowed": Problem(
        422,
        "Webhooks may not be sent to this URL",
        "The URL is not https, carries a password or points into a private network.  A host's name is looked up at each"
        " delivery and not here: one whose addresses are not all public is sent nothing, and the attempt's `error` is"
        " `address_not_allowed`.",
        "Use a public https address; an operator can allow others.",
    ),
    "holdout_too_small": Problem(
        422,
        "The holdout is too small",
        "No prompt falls into the holdout, so no student could be judged.  Each falls there by a hash: with a holdout"
        " of 0.2 none of 10 prompts does in 11 of 100 cases, none of 31 in 1 of 1,000.",
        "Send more prompts, ask for a larger `split.holdout`, try another `split.seed`, or set the holdout to 0 to go"
        " without a verdict.",
    ),
    "provider_training_closed": Problem(
        422,
        "The provider takes no fine-tuning jobs",
        "The provider no longer trains, or this account may not.  The curated dataset stays available.",
        "Name another provider for the student, or export the dataset and train elsewhere.",
    ),
    # --- 429
    "rate_limited": Problem(
        429,
        "Too many requests",
        "This key has used up its requests for the moment.",
        "Wait for `Retry-After`.",
        retryable=True,
    ),
    "too_many_active_jobs": Problem(
        429,
        "Too many jobs are active",
        "As many of your jobs as allowed are queued or running.",
        "Wait until one ends, or cancel one.",
        retryable=True,
    ),
    "daily_spend_exhausted": Problem(
        429,
        "The spending limit of the day is reached",
        "Your jobs have spent or reserved what your operator allows per day (UTC).  Jobs that run are paused with"
        " `daily_spend` and go on by themselves.",
        "Try again after the time in `Retry-After`, or ask your operator for more.  GET /v1/limits shows what is left.",
    ),
    # --- 5xx
    "internal": Problem(
        500,
        "Something went wrong on our side",
        "The error was logged under the request id of this answer.",
        "Report the request id; the request may be sent again.",
    ),
    "store_unavailable": Problem(
        503,
        "The store cannot be reached",
        "The database is starting, away or too slow.  Nothing was accepted unless an earlier answer said so.",
        "Wait for `Retry-After`, then send the same request again.",
        retryable=True,
    ),
    "store_full": Problem(
        503,
        "The store is full",
        "New jobs, files of prompts and webhook endpoints are let in below 80 % of the database's memory only, so that"
        " accepted jobs always finish.  Once all of it or the disk is used, nothing else is made either, API keys"
        " among it.",
        "Wait for jobs to end or expire, or ask your operator.",
        retryable=True,
    ),
    "newer_version": Problem(
        503,
        "The job was written by a newer version of the service",
        "While versions change, or after a step back to an older one, this process meets a job with a value that it"
        " does not know.  The job is kept as it is.  In a list, `detail` names the job that stands in its way.",
        "Try again once the new version runs everywhere, or ask your operator.",
        retryable=True,
    ),
    "draining": Problem(
        503,
        "The server is shutting down",
        "This process takes no new work.",
        "Send the request again; another process will serve it.",
        retryable=True,
    ),
    "not_ready": Problem(
        503,
        "The service is not ready",
        "At least one of the checks in `checks` has failed: the store answers, its durability settings are right, a"
        " worker is alive, due work is looked at in time.",
        "See the operations page of the documentation.",
        retryable=True,
    ),
    # --- only in job.error
    "provider_auth_failed": Problem(
        None,
        "The provider refused the operator's key",
        "The key configured for this provider is wrong or revoked.",
        "The operator has to replace it; then retry the job.",
    ),
    "provider_quota_exhausted": Problem(
        None,
        "The provider's credit is exhausted",
        "The account at the provider has no credit left, or reached its own limit.",
        "Top it up, then resume or retry the job.",
    ),
    "provider_rejected": Problem(
        None,
        "The provider refused a request for good",
        "The provider's answer says that this very request will never succeed.",
        "See `error.provider`.  A retry sends the same request; send a new job with what the provider refused mended. "
        " With a source of type `job` it reuses the answers that are paid.",
    ),
    "provider_rejected_batch": Problem(
        None,
        "The provider refused the batch",
        "The batch of the teacher's prompts (`teacher.mode` is `batch`) did not pass the provider's check.",
        "See `error.provider` and the job's events; send a new job with what they name mended, or with `teacher.mode`"
        " `live`.  Answers already paid for are reused.",
    ),
    "provider_rejected_training": Problem(
        None,
        "The provider refused the training",
        "The fine-tuning job failed at the provider: because of the data, the hyperparameters or its policies.",
        "See `error.provider` and the job's events.  A retry trains on the same examples in the same way; send a new"
        " job with other prompts, hyperparameters or another student.  With a source of type `job` it reuses answers"
        " that are paid.",
    ),
    "provider_unavailable": Problem(
        None,
        "The provider gave no usable answer",
        "The provider was away or answered with errors for longer than we retry.",
        "Retry the job later; answers already paid for are reused.",
        retryable=True,
    ),
    "too_few_accepted": Problem(
        None,
        "Too few answers can be trained on",
        "Fewer completions were accepted than `curation.min_accepted` asks for, or than a student's provider takes"
        " (10 at OpenAI); `param` says which.",
        "Look at the rejected completions and their reasons.  Those with `provider_error` are asked for again by a"
        " retry; the others are paid, and a retry is given the same ones.  Send a new job: a changed `curation` or"
        " `split` judges the same answers anew at no cost for the teacher, other prompts or `teacher.params` are"
        " answered anew.",
    ),
    "smoke_test_failed": Problem(
        None,
        "The first answers were mostly unusable",
        "Most of the first few completions were rejected or do not follow their schema, or most of a judge's first"
        " replies gave no score, so the rest were not bought.",
        "Look at these completions and their reasons.  Where all calls failed, a retry makes them anew.  Otherwise it"
        " is given the same answers (all but the calls that failed): what is paid is not bought twice.  Send a new job"
        " with other prompts, another `response_format` or `curation.response_schema`, or other `teacher.params`. "
        " Where the cause was at the provider and is over, another `teacher.params.seed` has the same prompts answered"
        " anew.  A judge's replies are bought anew with another `prompt`, `model` or `sampling_params` of its grader.",
    ),
    "deadline_exceeded": Problem(
        None,
        "The job did not finish in time",
        "`deadline_seconds` have passed since the job was created.",
        "A retry reuses the answers already paid for, and has `deadline_seconds` anew; for more time send a new job,"
        " with a source of type `job`.",
    ),
    "attempts_exhausted": Problem(
        None,
        "The job was tried too often",
        "A step failed, or its worker vanished, more often than the operator allows.",
        "Retry the job; if it fails again, report its id.",
    ),
}


def page(code: str) -> str | None:
    """HTML without scripts, styles or anything from elsewhere; None for a code that does not exist."""
    known = PROBLEMS.get(code)
    if known is None:
        return None
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{code}</title><h1>{html.escape(known.title)}</h1>"
        f"<p><code>{code}</code> · {_where(known)}</p>"
        f"<p>{_marked_up(known.meaning)}</p><p>{_marked_up(known.remedy)}</p></html>\n"
    )


def _where(known: Problem) -> str:
    place = "only in <code>job.error</code>" if known.status is None else f"HTTP {known.status}"
    return place + (" · worth repeating as it is" if known.retryable else "")


def _marked_up(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def as_markdown() -> str:
    """docs/errors.md."""
    lines = [
        "# Errors",
        "",
        "Every error answer is `application/problem+json` (RFC 9457).  Its `type` resolves to a page with the text"
        " below.  *Retryable*: the same request may succeed later.",
        "",
        "<!-- Written by `python -m api.problem_table > docs/errors.md`; a test compares. -->",
    ]
    for code, known in PROBLEMS.items():
        place = "only in `job.error`" if known.status is None else f"HTTP {known.status}"
        retry = ", retryable" if known.retryable else ""
        lines += ["", f"## `{code}`", "", f"**{known.title}** ({place}{retry}).  {known.meaning}", "", known.remedy]
    return re.sub(r"(?<=[.:)])  (?=\S)", " ", "\n".join(lines)) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")  # noqa: T201  # printing the page is all this command does

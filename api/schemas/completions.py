"""One stored completion as it is shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import WithJsonSchema

from api.schemas.common import Response
from api.schemas.jobs import JobError
from shared.curation import Reason, SplitName


class UsageOut(Response):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int


#: Shown as it is stored: while versions change, a worker may be newer than the API and know a reason that it does not.
ShownReason = Annotated[str, WithJsonSchema({"type": "string", "enum": list(get_args(Reason))})]


class CompletionOut(Response):
    """output: the model's message as it came; null when there was none.  sample: which of the teacher's answers to the
    prompt, null for other roles.  score: what curating gave it, or a judge's reply gives; null when there is none.
    cost_usd: of the call that was paid for it; a `reused` one costs nothing again."""

    id: str
    object: Literal["distillation.completion"]
    job_id: str
    role: str
    model: str
    prompt_key: str | None
    prompt_index: int
    status: Literal["accepted", "rejected", "failed"]
    reason: ShownReason | None
    split: SplitName | None
    messages: list[dict[str, Any]]
    output: dict[str, Any] | None
    finish_reason: str | None
    sample: int | None
    score: float | None
    usage: UsageOut | None
    cost_usd: str | None
    latency_seconds: float | None
    reused: bool
    provider_completion_id: str | None
    provider_request_id: str | None
    error: JobError | None
    metadata: dict[str, str]
    created_at: int

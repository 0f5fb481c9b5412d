"""Completions as they are kept, and what curation decided of each."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from shared.models import JobError, Record, Usage

_NOTHING: Final = msgspec.Raw()


class StoredCompletion(Record, frozen=True, kw_only=True):
    """One settled prompt of one pass.  raw: the provider's answer, every byte; empty when it failed.

    status: "answered", or "failed" with `error`.  reason: why curation cannot use the answer on its own (refused,
    truncated, filtered, empty), judged on arrival; reasons that need the other completions come with curating."""

    id: str
    index: int
    model: str
    status: Literal["answered", "failed"]
    created_at_ms: int
    reason: str | None = None
    raw: msgspec.Raw = _NOTHING
    usage: Usage | None = None
    cost_nano: int | None = None
    latency_ms: int | None = None
    reused: bool = False
    provider_request_id: str | None = None
    error: JobError | None = None


class Decision(Record, frozen=True, kw_only=True):
    """What curating decided of one teacher completion.  score: by which the best sample was chosen, in [0, 1]."""

    status: Literal["accepted", "rejected", "failed"]
    split: Literal["train", "validation", "holdout"]
    reason: str | None = None
    score: float | None = None

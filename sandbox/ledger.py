"""What was asked and what would have been charged, so that a test can prove that nothing was paid twice."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from sandbox.store import Json, Store

#: Metadata that tells two equal questions of a distillation job apart.
_TELLING_METADATA = ("distillation_job", "prompt")


def fingerprint(body: Json) -> str:
    """sha256 of the question: model, messages and parameters in canonical form; `store` and other metadata aside."""
    question = {key: value for key, value in body.items() if key not in {"store", "metadata"}}
    metadata = body.get("metadata") or {}
    question["metadata"] = {key: metadata[key] for key in _TELLING_METADATA if key in metadata}
    return hashlib.sha256(msgspec.json.encode(question, order="sorted")).hexdigest()


class Ledger:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.in_flight = 0
        self.max_in_flight = 0

    @contextmanager
    def asked(self) -> Iterator[None]:
        """A completion is asked while the block runs."""
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            yield
        finally:
            self.in_flight -= 1

    def count(self, what: str) -> None:
        previous = self._store.get("counter", what)
        self._store.put("counter", what, {"count": 1 + (previous["count"] if previous else 0)})

    def counted(self, what: str) -> int:
        counter = self._store.get("counter", what)
        return int(counter["count"]) if counter else 0

    def bill(self, body: Json, model: str, usage: Json) -> None:
        """The model's work is done: it is charged, whether or not its answer ever arrives."""
        key = fingerprint(body)
        previous = self._store.get("billed", key) or {"count": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._store.put(
            "billed",
            key,
            {
                "model": model,
                "count": previous["count"] + 1,
                "prompt_tokens": previous["prompt_tokens"] + usage["prompt_tokens"],
                "completion_tokens": previous["completion_tokens"] + usage["completion_tokens"],
            },
        )

    def report(self) -> dict[str, Any]:
        requests: dict[str, Counter[str]] = {}
        for what, counter in self._store.table("counter").items():
            route, _, status = what.rpartition(" ")
            if route.startswith(("GET ", "POST ", "DELETE ", "PUT ", "PATCH ", "HEAD ", "OPTIONS ")):
                requests.setdefault(route, Counter())[status] = counter["count"]
        billed = self._store.table("billed")
        repeated = {key: row["count"] for key, row in billed.items() if row["count"] > 1}
        per_model: dict[str, Counter[str]] = {}
        for row in billed.values():
            sums = per_model.setdefault(row["model"], Counter())
            sums["completions_billed"] += row["count"]
            sums["prompt_tokens"] += row["prompt_tokens"]
            sums["completion_tokens"] += row["completion_tokens"]
        return {
            "requests": {route: dict(statuses) for route, statuses in sorted(requests.items())},
            "requests_total": sum(sum(statuses.values()) for statuses in requests.values()),
            "completions_billed": sum(row["count"] for row in billed.values()),
            "prompt_tokens_billed": sum(row["prompt_tokens"] for row in billed.values()),
            "completion_tokens_billed": sum(row["completion_tokens"] for row in billed.values()),
            "distinct_prompts_billed": len(billed),
            "billed_more_than_once": {
                "count": len(repeated),
                "fingerprints": dict(sorted(repeated.items(), key=lambda item: -item[1])[:100]),
            },
            "per_model": {model: dict(sums) for model, sums in sorted(per_model.items())},
            "fine_tuning_jobs_created": self.counted("fine_tuning_jobs_created"),
            "files_created": self.counted("files_created"),
            "batches_created": self.counted("batches_created"),
            "in_flight": {"now": self.in_flight, "max": self.max_in_flight},
        }

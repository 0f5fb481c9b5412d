"""Trouble on request.  A rule is `{"match": {...}, "times": n | "probability": p, "fault": {"kind": ...}}`.

match: `path` (shell pattern, with or without /v1), `method`, `model`, `contains` (text within the body); absent: any.
times: how often the rule strikes, 1 unless a probability is given.  `skip`: how many matching requests pass before."""

from __future__ import annotations

import random
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from sandbox.errors import invalid
from sandbox.store import Json, Store

#: What happens to one request or its answer; `after_work` says whether the work is done (and billed) first.
WIRE_KINDS: dict[str, bool] = {
    "rate_limited": False,
    "slow_down": False,
    "insufficient_quota": False,
    "resource_unavailable": False,
    "overloaded": False,
    "server_error": False,
    "error": False,
    "delay": True,
    "hang": False,
    "hang_after_work": True,
    "drop": False,
    "drop_after_work": True,
    "drop_mid_body": True,
    "slow_drip": True,
    "huge_body": True,
    "html": False,
    "truncated_json": True,
    "wrong_shape": True,
}
_REFUSAL = "status code type message param retry_after should_retry headers after_work"
#: What may be set beside the kind; anything else is a slip of the pen and refused.
SETTINGS: dict[str, str] = {
    "rate_limited": _REFUSAL,
    "slow_down": _REFUSAL,
    "insufficient_quota": _REFUSAL,
    "resource_unavailable": _REFUSAL,
    "overloaded": _REFUSAL,
    "server_error": _REFUSAL,
    "error": _REFUSAL,
    "delay": "seconds",
    "hang": "seconds after_work",
    "hang_after_work": "seconds",
    "drop": "after_work",
    "drop_after_work": "",
    "drop_mid_body": "",
    "slow_drip": "seconds pieces",
    "huge_body": "bytes",
    "html": "status after_work",
    "truncated_json": "",
    "wrong_shape": "body",
    "training_closed": "code message",
    "training_failed": "code message param at",
    "training_cancelled": "",
    "training_status": "status seconds",
    "job_deleted": "after_seconds",
    "list_lag": "seconds",
    "success_error_value": "value",
    "result_csv": "encoding",
    "ignore_metadata_filter": "",
    "batch_stalls": "share",
}
LISTING_KINDS = frozenset({"ignore_metadata_filter"})
BATCH_KINDS = frozenset({"batch_stalls"})
#: What befalls a fine-tuning job, decided when it is created.
TRAINING_KINDS = frozenset(SETTINGS) - frozenset(WIRE_KINDS) - LISTING_KINDS - BATCH_KINDS


class _Named(msgspec.Struct):
    model: object = None


def _model_named_in(body: bytes) -> object:
    try:
        return msgspec.json.decode(body, type=_Named).model
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


class Faults:
    def __init__(self, store: Store, seed: int) -> None:
        self._store = store
        self._random = random.Random(seed)

    def rules(self) -> list[Json]:
        return list(self._store.table("fault").values())

    def script(self, rules: Iterable[Any]) -> None:
        """Add rules after those there are; the first that matches strikes."""
        checked = [self._checked(rule if isinstance(rule, dict) else {}) for rule in rules]
        start = max((int(key) for key in self._store.table("fault")), default=0)
        for number, rule in enumerate(checked, start + 1):
            self._store.put("fault", str(number), rule)

    def _checked(self, rule: Json) -> Json:
        fault = rule.get("fault")
        if not isinstance(fault, dict) or fault.get("kind") not in SETTINGS:
            raise invalid(f"A rule needs a fault of a known kind: {', '.join(sorted(SETTINGS))}.", param="fault.kind")
        unknown = set(fault) - {"kind", *SETTINGS[fault["kind"]].split()}
        if unknown:
            raise invalid(f"The fault {fault['kind']} has no {', '.join(sorted(unknown))}.", param="fault")
        match = rule.get("match") or {}
        if not set(match) <= {"path", "method", "model", "contains"} or not set(rule) <= {
            "match", "times", "probability", "skip", "fault",
        }:  # fmt: skip
            raise invalid("A rule has match {path, method, model, contains}, times, probability, skip, fault.")
        probability = rule.get("probability")
        times = rule.get("times", None if probability is not None else 1)
        return {
            "match": match,
            "times": times,
            "probability": probability,
            "skip": rule.get("skip", 0),
            "fault": fault,
            "hits": 0,
        }

    def clear(self) -> None:
        for key in list(self._store.table("fault")):
            self._store.drop("fault", key)

    def take(self, kinds: Iterable[str], *, method: str, path: str, body: bytes) -> Json | None:
        """The fault that strikes this request, used up once; None for an undisturbed one."""
        return next(iter(self.take_all(kinds, method=method, path=path, body=body, at_most=1)), None)

    def take_all(
        self, kinds: Iterable[str], *, method: str, path: str, body: bytes, at_most: int | None = None
    ) -> list[Json]:
        struck: list[Json] = []
        for key, rule in self._store.table("fault").items():
            if at_most is not None and len(struck) >= at_most:
                break
            if rule["fault"]["kind"] not in kinds or rule["times"] == 0:
                continue
            if not _matches(rule["match"], method=method, path=path, body=body):
                continue
            if rule["skip"] > 0:
                rule["skip"] -= 1
                self._store.put("fault", key, rule)
                continue
            if rule["probability"] is not None and self._random.random() >= rule["probability"]:
                continue
            rule["hits"] += 1
            if rule["times"] is not None:
                rule["times"] -= 1
            self._store.put("fault", key, rule)
            struck.append(rule["fault"])
        return struck


def _matches(match: Json, *, method: str, path: str, body: bytes) -> bool:
    if "method" in match and match["method"].upper() != method:
        return False
    if "path" in match and not (fnmatchcase(path, match["path"]) or fnmatchcase(path, "/v1" + match["path"])):
        return False
    if "model" in match and _model_named_in(body) != match["model"]:
        return False
    return "contains" not in match or match["contains"] in body.decode(errors="replace")

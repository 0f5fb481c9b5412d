"""Points of a training curve: read from a provider's events and result files, kept and shown in bounded number."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, TypeVar

from shared.models import MetricPoint

T = TypeVar("T")

#: A point's measures, by the names that events and result files have for them.
_NAMES: Final[Mapping[str, str]] = {
    "train_loss": "train_loss",
    "train_mean_token_accuracy": "train_mean_token_accuracy",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    "valid_accuracy": "valid_mean_token_accuracy",
    "full_valid_loss": "full_valid_loss",
    "full_valid_mean_token_accuracy": "full_valid_mean_token_accuracy",
}
_STEPS_MAX: Final = 2**40
_KEPT_POINTS: Final = 2_000  # of one student, about
_ROWS_MAX: Final = 1_000_000


def point_of(data: Mapping[str, Any]) -> MetricPoint | None:
    """The point that an event's data or a row of a result file is; None without a step or a number to it."""
    step = _number(data.get("step"))
    if step is None or step != int(step) or not 0 <= step < _STEPS_MAX:
        return None
    measures: dict[str, float] = {}
    for name, ours in _NAMES.items():
        value = _number(data.get(name))
        if value is not None:
            measures.setdefault(ours, value)
    return MetricPoint(step=int(step), **measures) if measures else None


def _number(value: object) -> float | None:
    """Finite numbers alone: NaN and infinity are what a diverged training says, and JSON cannot."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def worth_keeping(step: int, total_steps: int | None) -> bool:
    """Whether a step is among the about 2,000 that are kept of a training, evenly spread, the last one always."""
    if step == total_steps:
        return True
    return step % max(1, -(-max(step, total_steps or 0) // _KEPT_POINTS)) == 0


def has_gaps(steps: Sequence[int], total_steps: int | None) -> bool:
    """Whether steps may be missing among those that were reported.  steps: sorted; the smallest distance between two,
    the beginning included, is taken for the provider's rhythm."""
    if not steps:
        return True
    rhythm = max(1, min(after - before for before, after in pairwise([0, *steps])))
    known = [0, *steps, *([] if total_steps is None or total_steps <= steps[-1] else [total_steps + 1])]
    return any(after - before > rhythm for before, after in pairwise(known))


def read_result_file(content: bytes) -> Iterator[MetricPoint]:
    """Points of a result file: CSV with a header, plain or in base64.  Whatever cannot be read is left out."""
    try:
        text = _plain(content).decode("utf-8-sig")
        for number, row in enumerate(csv.DictReader(io.StringIO(text))):
            if number >= _ROWS_MAX:
                return
            point = point_of({(name or "").strip(): value for name, value in row.items() if isinstance(value, str)})
            if point is not None:
                yield point
    except (UnicodeDecodeError, csv.Error):
        return


def _plain(content: bytes) -> bytes:
    head = content.lstrip().partition(b"\n")[0]
    if b"," in head:
        return content
    try:
        return base64.b64decode(b"".join(content.split()), validate=True)
    except ValueError:
        return content


def thinned(points: Sequence[T], most: int) -> list[T]:
    """At most so many of them, evenly chosen, first and last included.  most: >= 2."""
    if len(points) <= most:
        return list(points)
    last = len(points) - 1
    return [points[round(place * last / (most - 1))] for place in range(most)]

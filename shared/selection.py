"""The best of several answers to one prompt: their scores, and which of them is kept.

Scores come from the job's grader: a text grader compares with the prompt's reference, a judge has rated each answer.
Where nothing else tells good from bad, the answer wins that most of the others agree with: Wang et al.,
"Self-consistency improves chain of thought reasoning" (ICLR 2023, arXiv 2203.11171), for texts as in minimum Bayes risk
decoding (Kumar and Byrne, NAACL 2004).  What cannot be scored has no low score: it is told apart as `ungradable`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Final, Literal, TypeAlias

from shared.graders import Grader, ScoreModel, Ungradable, fuzzy_match, rouge_n

Fate: TypeAlias = Literal["not_best", "below_threshold", "ungradable"]

DIGITS: Final = 6  # of scores as they are kept
_LONG_CHARS: Final = 20_000  # longer texts, together, are compared by their words: by characters 60 ms for 36,000


@dataclass(frozen=True)
class Choice:
    """best: the number of the answer to keep, None when none is good enough.  fates: why the others are not kept.
    scores: by number; of those that have one."""

    best: int | None
    fates: Mapping[int, Fate]
    scores: Mapping[int, float]


def choose(
    texts: Mapping[int, str],
    *,
    grader: Grader | None,
    min_score: float | None,
    reference: str | None,
    rated: Mapping[int, float],
) -> Choice:
    """texts: the usable answers, by their numbers.  rated: a judge's scores, by number, of those it has rated.

    The best score wins, of equal ones the lowest number.  With `min_score`, an answer without a score of the grader is
    `ungradable`; without, only beside others that have one."""
    scores = _scores(texts, grader, reference, rated)
    fates: dict[int, Fate] = {}
    if min_score is None and not scores and len(texts) > 1:
        scores = agreement(texts)
    for number in texts:
        if number not in scores and (min_score is not None or (scores and len(texts) > 1)):
            fates[number] = "ungradable"
        elif min_score is not None and scores[number] < min_score:
            fates[number] = "below_threshold"
    left = [number for number in texts if number not in fates]
    best = max(left, key=lambda number: (scores.get(number, 0.0), -number), default=None)
    fates |= dict.fromkeys((number for number in left if number != best), "not_best")
    return Choice(best, fates, {number: round(score, DIGITS) for number, score in scores.items()})


def _scores(
    texts: Mapping[int, str], grader: Grader | None, reference: str | None, rated: Mapping[int, float]
) -> dict[int, float]:
    if isinstance(grader, ScoreModel):
        return {number: rated[number] for number in texts if number in rated}
    if grader is None or reference is None:
        return {}
    scores = {}
    for number, text in texts.items():
        try:
            scores[number] = grader.grade(text, reference)
        except Ungradable:
            continue
    return scores


def agreement(texts: Mapping[int, str]) -> dict[int, float]:
    """How much each answer is like the others, on the mean, by number.  At least two texts."""
    likeness: dict[tuple[int, int], float] = {}
    numbers = sorted(texts)
    for place, one in enumerate(numbers):
        for other in numbers[place + 1 :]:
            likeness[one, other] = likeness[other, one] = _likeness(texts[one], texts[other])
    return {one: fmean(likeness[one, other] for other in numbers if other != one) for one in numbers}


def _likeness(one: str, other: str) -> float:
    if one == other:
        return 1.0
    return fuzzy_match(one, other) if len(one) + len(other) <= _LONG_CHARS else rouge_n(one, other, 1)

"""How much of what a job will probably ask for: calls and trainings, from what such jobs usually look like.

Twice, as the least and the most to plan by.  Least: 5 bytes a token, answers of 16 tokens, one epoch where it is open.
Most: 3 bytes a token, answers of `max_completion_tokens` but at most 1,024 where that is larger or open, four epochs.
Prices make money of it (shared/pricing.py).  What a training reserves is more than what it will cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from shared.models import JobSpec, JsonObject, Student, Usage

#: What a judge is told besides conversation and answers.
_JUDGE_PROMPT_TOKENS: Final = 200
_RESERVED_BYTES_PER_TOKEN: Final = 2


class Size(msgspec.Struct, frozen=True):
    """prompts: all of them.  asked: answers that the teacher still has to give.  prompt_bytes: of all prompts
    together."""

    prompts: int
    asked: int
    prompt_bytes: int


class Assumption(msgspec.Struct, frozen=True):
    """At one end of the range.  answer_bytes: of a token of an answer, in the file to train on.  judge_answer:
    tokens; more than a few when the judge reasons.

    others: of the rows that a judge compares, those besides the base's, which alone is sure to differ from its
    reference; and of the examples for dpo, those that are not sure to give a pair."""

    bytes_per_token: int
    answer_tokens: int
    answer_bytes: int
    epochs: int
    judge_answer: int
    others: bool


LEAST: Final = Assumption(bytes_per_token=5, answer_tokens=16, answer_bytes=3, epochs=1, judge_answer=8, others=False)
MOST: Final = Assumption(
    bytes_per_token=3, answer_tokens=1_024, answer_bytes=5, epochs=4, judge_answer=256, others=True
)


class Calls(msgspec.Struct, frozen=True):
    """pointer: where the request names the model.  usage: of each call."""

    pointer: str
    provider: str
    model: str
    count: float
    usage: Usage


class Training(msgspec.Struct, frozen=True):
    """tokens: what it will probably take.  reserved: what `reserved_tokens` will probably say of the dataset."""

    pointer: str
    provider: str
    model: str
    tokens: int
    reserved: int


def per_prompt(spec: JobSpec, size: Size, end: Assumption) -> Usage:
    """Of the teacher's call for an average prompt."""
    cap = spec.teacher.params.get("max_completion_tokens") or spec.teacher.params.get("max_tokens")
    longest = cap if isinstance(cap, int) else MOST.answer_tokens
    tokens = size.prompt_bytes / end.bytes_per_token
    return Usage(prompt_tokens=int(tokens / max(1, size.prompts)), completion_tokens=min(end.answer_tokens, longest))


def expected_calls(spec: JobSpec, size: Size, end: Assumption, each: Usage) -> Iterator[Calls]:
    """each: as `per_prompt`, here and below."""
    holdout = size.prompts * spec.split.holdout
    yield Calls("/teacher/model", spec.teacher.provider, spec.teacher.model, float(size.asked), each)
    for number, student in enumerate(spec.students):
        # The base and the distilled student both answer the holdout.
        for model in (student.model, f"ft:{student.model}"):
            yield Calls(f"/students/{number}/model", student.provider, model, holdout, each)
    rater = spec.curation.grader
    if rater is not None and rater.get("type") == "score_model":
        answers = float(size.prompts * spec.teacher.samples)
        yield _judged("/curation/grader/model", rater, answers, each, end, answers=1)
    rows = len(spec.students) * (2 if end.others else 1) + end.others
    for place, grader in enumerate(spec.evaluation.graders):
        if grader.get("type") == "score_model":  # each pair in both orders
            yield _judged(f"/evaluation/graders/{place}/model", grader, 2 * rows * holdout, each, end, answers=2)


def _judged(pointer: str, grader: JsonObject, count: float, each: Usage, end: Assumption, *, answers: int) -> Calls:
    usage = Usage(
        prompt_tokens=each.prompt_tokens + answers * each.completion_tokens + _JUDGE_PROMPT_TOKENS,
        completion_tokens=end.judge_answer,
    )
    return Calls(pointer, str(grader.get("provider")), str(grader.get("model")), count, usage)


def expected_trainings(spec: JobSpec, size: Size, end: Assumption, each: Usage) -> Iterator[Training]:
    prompt_bytes = size.prompt_bytes / max(1, size.prompts)
    for number, student in enumerate(spec.students):
        n_epochs = student.hyperparameters.get("n_epochs", "auto")
        epochs = n_epochs if isinstance(n_epochs, int) else end.epochs
        examples, answers = _examples(spec, size, student, end)
        tokens = int((each.prompt_tokens + answers * each.completion_tokens) * examples * epochs)
        train_bytes = int((prompt_bytes + answers * each.completion_tokens * end.answer_bytes) * examples)
        reserved = reserved_tokens(student, train_bytes, examples=int(examples))
        yield Training(f"/students/{number}/model", student.provider, student.model, tokens, reserved)


def _examples(spec: JobSpec, size: Size, student: Student, end: Assumption) -> tuple[float, int]:
    """(examples to train on, answers in each)."""
    train = size.prompts * (1 - spec.split.holdout - spec.split.validation)
    if student.method == "dpo":
        return (train if end.others else min(train, spec.curation.min_accepted)), 2
    return train, 1


def reserved_tokens(student: Student, train_bytes: int, *, examples: int) -> int:
    """How many tokens a training takes at most, over all epochs, as far as can be known before it.

    train_bytes: of its file.  Two bytes a token are fewer than any language takes; "auto" epochs are what OpenAI's
    cookbook says they are."""
    epochs = student.hyperparameters.get("n_epochs", "auto")
    if not isinstance(epochs, int):
        examples = max(1, examples)
        epochs = min(25, 100 // examples) if examples * 3 < 100 else max(1, min(3, 25_000 // examples))
    return train_bytes // _RESERVED_BYTES_PER_TOKEN * epochs

"""What a curated prompt becomes in each file format: the lines of the dataset, as they are exported and trained on.

`openai_chat` has one line per accepted completion, `raw` one per completion with its fate, and `openai_dpo` one pair
per prompt: the kept sample, and the sample of the lowest score below it that was usable too.  OpenAI trains on pairs of
texts that end a conversation of one turn (openai-contract §1.3); what is none gives no pair, for a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, TypeAlias, get_args

from shared.completions import Decision
from shared.curation import SplitName
from shared.dataset import content_of, dpo_line, example_line, raw_line, text_of
from shared.models import INSTRUCTIONS, JobSpec, JsonObject, Prompt

Format: TypeAlias = Literal["openai_chat", "openai_dpo", "raw"]
Unpaired: TypeAlias = Literal["not_text", "tool_calls", "several_turns", "no_worse_sample"]

FORMATS: Final[tuple[Format, ...]] = get_args(Format)
_USABLE: Final = frozenset({"not_best", "below_threshold"})  # answers without a fault of their own


def formats_of(spec: JobSpec) -> tuple[Format, ...]:
    """Those that a job's dataset can have; pairs need a choice."""
    return tuple(format for format in FORMATS if format != "openai_dpo" or spec.teacher.samples > 1)


def kept_sample(decisions: Sequence[Decision | None]) -> int | None:
    """Which of a prompt's samples is an example."""
    accepted = (number for number, decision in enumerate(decisions) if decision and decision.status == "accepted")
    return next(accepted, None)


def split_of_all(decisions: Sequence[Decision | None]) -> SplitName | None:
    """A prompt's samples share its split; None where nothing was decided."""
    return next((decision.split for decision in decisions if decision is not None), None)


def lines_of(
    spec: JobSpec,
    format: Format,
    prompt: Prompt,
    messages: Sequence[JsonObject | None],
    decisions: Sequence[Decision | None],
) -> bytes:
    """The lines of one prompt, of any number.  messages, decisions: by sample."""
    if format == "raw":
        numbered = spec.teacher.samples > 1 or spec.curation.grader is not None
        return b"".join(
            raw_line(prompt, message, decision, sample=sample if numbered else None)
            for sample, (message, decision) in enumerate(zip(messages, decisions, strict=True))
            if decision is not None
        )
    kept = kept_sample(decisions)
    message = None if kept is None else messages[kept]
    if message is None:
        return b""
    if format == "openai_chat":
        return example_line(spec, prompt, message)
    pair = preference(prompt, messages, decisions)
    return b"" if isinstance(pair, str) else dpo_line(spec, prompt, *pair)


def may_give_a_pair(prompt: Prompt) -> bool:
    """As far as the prompt itself decides: one turn of texts that is still to be answered."""
    return prompt.completion is None and _untrainable_prompt(prompt) is None


def preference(
    prompt: Prompt, messages: Sequence[JsonObject | None], decisions: Sequence[Decision | None]
) -> tuple[JsonObject, JsonObject] | Unpaired:
    """(preferred, non-preferred) answers to a prompt with a kept sample, or why there is no such pair."""
    kept = kept_sample(decisions)
    assert kept is not None
    best, chosen = decisions[kept], messages[kept]
    assert best is not None
    assert chosen is not None
    if (reason := _untrainable(prompt, chosen)) is not None:
        return reason
    worse = [
        (decision.score, number)
        for number, decision in enumerate(decisions)
        if decision is not None
        and decision.reason in _USABLE
        and decision.score is not None
        and best.score is not None
        and decision.score < best.score
    ]
    for _, number in sorted(worse):
        other = messages[number]
        # Two scores of the very same text say something of the judge and nothing of the text.
        if other is not None and not other.get("tool_calls") and text_of(other) != text_of(chosen):
            return chosen, other
    return "no_worse_sample"


def _untrainable(prompt: Prompt, chosen: JsonObject) -> Unpaired | None:
    if chosen.get("tool_calls"):
        return "tool_calls"
    return _untrainable_prompt(prompt) or (None if content_of(chosen) else "not_text")


def _untrainable_prompt(prompt: Prompt) -> Unpaired | None:
    asked = [message for message in prompt.messages if message.get("role") not in INSTRUCTIONS]
    if len(asked) != 1 or asked[0].get("role") != "user":
        return "several_turns"
    return None if all(_is_text(message) for message in prompt.messages) else "not_text"


def _is_text(message: JsonObject) -> bool:
    content = message.get("content")
    return not isinstance(content, list) or all(part.get("type") == "text" for part in content)

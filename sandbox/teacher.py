"""How the large models answer: by rules, the same words for the same question."""

from __future__ import annotations

import difflib
import re
from itertools import pairwise
from typing import Any

import msgspec

from sandbox.schema import filled
from sandbox.speech import Answer, draw, last_user_text, system_text
from sandbox.store import Json
from sandbox.triage import PRIORITIES, triage

_REFUSED = re.compile(
    r"\[sandbox:refuse\]|hack into|(bypass|get around|get past) (the |his |her |their )?(two-factor|2fa|password|lock)"
    r"|without (him|her|them) (knowing|noticing)|build a (bomb|weapon)",
    re.IGNORECASE,
)
_FILTERED = re.compile(r"\[sandbox:filter\]|\b(kill|hurt|stab) (you|him|her|them|someone|somebody)\b", re.IGNORECASE)
_EMPTY = re.compile(r"\[sandbox:empty\]|\A[\W_]*\Z", re.IGNORECASE)
_ENDLESS = re.compile(r"\[sandbox:length\]|paste the (complete|entire|whole) (manual|handbook)", re.IGNORECASE)
_JUDGE = re.compile(r"\b(judge|grade|grader|grading)\b", re.IGNORECASE)
_TRIAGE = re.compile(r"triage|categor(y|ies|i[sz]e)|classif(y|ies)", re.IGNORECASE)
_SUM = re.compile(r"(-?\d+(?:\.\d+)?)\s*([-+*/×x÷])\s*(-?\d+(?:\.\d+)?)")
#: A line that opens a labelled answer: "Answer A:", "### Reference", "<candidate>".
_LABEL = re.compile(
    r"(?im)^[ \t]*(?:<|#+[ \t]*|\*\*|\[)?(?:the )?(?:reference|expected|ideal|correct|actual|candidate|model|student"
    r"|teacher|first|second|answer|response|output|completion)\b[^\n:>]{0,30}(?::\**|>|\]|(?<=\w)$)"
)
_OPENINGS = ("In short", "Briefly", "To answer plainly", "Here is the gist")


def answer(body: Json, *, seed: str) -> Answer:
    asked = last_user_text(body["messages"])
    system = system_text(body)
    judging = _JUDGE.search(system) is not None
    if not judging and (trouble := _trouble(asked)) is not None:
        return trouble
    wanted = (body.get("response_format") or {}).get("type", "text")
    if judging:
        known: Json = {"score": _judged(asked, seed)}
    elif _TRIAGE.search(system):
        known = _slipped(triage(asked), asked, seed) if body.get("seed") is not None else dict(triage(asked))
    elif wanted == "text":
        return Answer(_plain_answer(asked, seed))
    else:
        known = {"answer": _plain_answer(asked, seed)}
    if wanted == "json_schema":
        schema = body["response_format"]["json_schema"].get("schema", {})
        known = _fitted(known, schema, seed)
    return Answer(msgspec.json.encode(known).decode())


def _trouble(asked: str) -> Answer | None:
    if _EMPTY.search(asked):
        return Answer("")
    if _REFUSED.search(asked):
        return Answer(refusal="I'm sorry, but I can't help with that.")
    if _FILTERED.search(asked):
        return Answer("", filtered=True)
    if _ENDLESS.search(asked):
        return Answer("The manual begins with the list of its parts: " + "first, second, third, " * 8, cut_short=True)
    return None


def _fitted(known: Json, schema: Any, seed: str) -> Json:
    """The schema's value, with what the teacher knows in the fields where it may stand."""
    value = filled(schema, seed)
    if not isinstance(value, dict):
        return {"value": value}
    properties = schema.get("properties", {})
    allowed = {
        name: known[name]
        for name in properties
        if name in known and known[name] in (properties[name].get("enum") or [known[name]])
    }
    return {**value, **allowed}


def _slipped(right: dict[str, str], asked: str, seed: str) -> Json:
    """With a seed of their own, samples of one question differ: one in three gets the priority wrong."""
    if draw(3, seed, asked, "slip"):
        return dict(right)
    wrong = [priority for priority in PRIORITIES if priority != right["priority"]]
    return {**right, "priority": wrong[draw(len(wrong), seed, asked, "priority")]}


def _judged(asked: str, seed: str) -> float:
    """A single answer to a conversation is held against the reference, or what the judge itself would have said."""
    parts = _object(asked)
    conversation, alone = parts.get("conversation"), parts.get("answer")
    if isinstance(conversation, list) and isinstance(alone, str) and not isinstance(parts.get("reference"), str):
        known = [message for message in conversation if isinstance(message, dict) and "role" in message]
        return _likeness(alone, answer({"messages": known}, seed=seed).text)
    return similarity_of_answers(asked)


def similarity_of_answers(asked: str) -> float:
    """How alike the last two labelled answers in a judge's prompt are, 0 to 1.

    The prompt is a JSON object with the answers among its members, or text with a label before each answer.
    Answers that are JSON objects are compared field by field."""
    if parts := _object(asked):
        return _likeness(*[value for name, value in parts.items() if isinstance(value, str) and name != "question"])
    ends = [(match.start(), match.end()) for match in _LABEL.finditer(asked)]
    starts = [*ends, (len(asked), len(asked))]
    sections = [asked[end:next_start] for (_, end), (next_start, _) in pairwise(starts)]
    answers = [re.sub(r"</?\w+>|```\w*", "", section).strip() for section in sections]
    answers = [text for text in answers if text]
    if len(answers) < 2:
        halves = [part.strip() for part in asked.split("\n\n") if part.strip()]
        answers = halves[-2:] if len(halves) >= 2 else [asked, ""]
    return _likeness(*answers)


def _likeness(*answers: str) -> float:
    """Of the last two."""
    first, second = ("", "", *answers)[-2:]
    left, right = _object(first), _object(second)
    if left and right:
        return round(sum(1 for key in left | right if left.get(key) == right.get(key)) / len(left | right), 3)
    likeness = difflib.SequenceMatcher(None, first, second, autojunk=False).ratio()
    return round(float(likeness), 3)


def _object(text: str) -> Json:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _plain_answer(asked: str, seed: str) -> str:
    if found := _SUM.search(asked):
        left, sign, right = float(found[1]), found[2], float(found[3])
        if sign in "/÷" and right == 0:
            return "Division by zero has no result."
        result = {"+": left + right, "-": left - right}.get(
            sign, left / right if sign in "/÷" and right else left * right
        )
        return f"{result:g}"
    sentences = [part.strip() for part in re.split(r"(?<=[.!?])\s+", asked) if part.strip()]
    longest = max(sentences, key=len, default="")
    words = longest.rstrip(".!?").split()
    return f"{_OPENINGS[draw(len(_OPENINGS), seed, asked)]}: {' '.join(words[:24])}."

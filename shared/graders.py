"""Graders: how near an answer comes to its reference, from 0 to 1.  Names and meaning follow OpenAI's graders.

    {"type": "string_check",    "operation": "eq" | "ne" | "like" | "ilike"}      default eq
    {"type": "text_similarity", "evaluation_metric": "fuzzy_match" | "bleu" | "rouge_1" … "rouge_5" | "rouge_l"}
    {"type": "json_match",      "fields": ["category", …]}                        default: all fields
    {"type": "score_model",     "provider": …, "model": …, "prompt": …, "sampling_params": {…}}   a model as judge

Each may have a `name` (default: its type).  What OpenAI calls `input` is always the answer, and `reference` is always
the prompt's reference or else the teacher's answer, so neither is given here."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias, cast, get_args

import msgspec

from shared.capabilities import PARAMS
from shared.errors import Fault, ValidationFailed, sentence
from shared.models import CONTROL, JsonObject

Operation: TypeAlias = Literal["eq", "ne", "like", "ilike"]
Metric: TypeAlias = Literal["fuzzy_match", "bleu", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]

MOST_GRADERS: Final = 8
LONGEST_NAME: Final = 64  # characters
LONGEST_CRITERION: Final = 8_000  # characters
SAMPLING: Final = ("temperature", "top_p", "seed", "reasoning_effort", "max_completion_tokens")  # of a judge


class Ungradable(ValueError):
    """No score can be given, and none must be invented: the row is incomplete.  Caught by shared/verdict.py."""


class Grader(Protocol):
    @property
    def name(self) -> str: ...

    def grade(self, output: str, reference: str) -> float:
        """In [0, 1].  Raises `Ungradable`."""


# --- string_check ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StringCheck:
    """eq, ne: the very same text.  like, ilike: the output contains the reference; ilike minds no case."""

    name: str = "string_check"
    operation: Operation = "eq"

    def grade(self, output: str, reference: str) -> float:
        match self.operation:
            case "eq":
                return float(output == reference)
            case "ne":
                return float(output != reference)
            case "like":
                return float(reference in output)
            case "ilike":
                return float(reference.casefold() in output.casefold())


# --- text_similarity -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TextSimilarity:
    name: str = "text_similarity"
    evaluation_metric: Metric = "fuzzy_match"

    def grade(self, output: str, reference: str) -> float:
        return 1.0 if output == reference else METRICS[self.evaluation_metric](output, reference)


def fuzzy_match(output: str, reference: str) -> float:
    """1 minus the share of characters to insert or delete; what rapidfuzz calls `ratio`.  Symmetric.

    Time grows with the product of the lengths: 1 ms for 1,500 characters each, 60 ms for 20,000."""
    total = len(output) + len(reference)
    return 2 * _common_length(output, reference) / total if total else 1.0


def bleu(output: str, reference: str) -> float:
    """Sentence BLEU: Papineni et al. (ACL 2002), up to 4-grams, with the brevity penalty.

    As sacrebleu's `sentence_bleu` computes it: case counts, marks are words, an order of n-grams without a match is
    smoothed exponentially, and of an output shorter than four words only the orders it has are used."""
    words, wanted = _words_and_marks(output), _words_and_marks(reference)
    if not words or not wanted:
        return float(words == wanted)
    logs: list[float] = []
    doubling, matched = 1, False
    for n in range(1, min(4, len(words)) + 1):
        grams = len(words) - n + 1
        common = (_ngrams(words, n) & _ngrams(wanted, n)).total()
        matched = matched or common > 0
        if not common:
            doubling *= 2
        logs.append(math.log(common / grams if common else 1 / (doubling * grams)))
    brevity = min(0.0, 1 - len(wanted) / len(words))
    return math.exp(brevity + sum(logs) / len(logs)) if matched else 0.0


def rouge_n(output: str, reference: str, n: int) -> float:
    """ROUGE-N as F1: Lin (ACL 2004), without stemming.  Case and marks do not count.

    Texts that are both too short to have an n-gram score 1 when their words are the same, else 0."""
    words, wanted = _words(output), _words(reference)
    found, expected = _ngrams(words, n), _ngrams(wanted, n)
    if not found and not expected:
        return float(words == wanted)
    return 2 * (found & expected).total() / (found.total() + expected.total())


def rouge_l(output: str, reference: str) -> float:
    """ROUGE-L as F1, over the longest common subsequence of words: Lin (ACL 2004), sentence level."""
    words, wanted = _words(output), _words(reference)
    total = len(words) + len(wanted)
    return 2 * _common_length(words, wanted) / total if total else 1.0


def _rouge(n: int) -> Callable[[str, str], float]:
    return lambda output, reference: rouge_n(output, reference, n)


METRICS: Final[Mapping[Metric, Callable[[str, str], float]]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "rouge_1": _rouge(1),
    "rouge_2": _rouge(2),
    "rouge_3": _rouge(3),
    "rouge_4": _rouge(4),
    "rouge_5": _rouge(5),
    "rouge_l": rouge_l,
}

# Scripts that put no spaces between words: there every character counts as a word.
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_WORD_OR_MARK: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|[^\w\s]|_")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _words_and_marks(text: str) -> list[str]:
    return _WORD_OR_MARK.findall(text)


def _ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _common_length(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence, a row of the table per step in the bits of one integer: Hyyrö (2004),
    "Bit-parallel LCS-length computation revisited"."""
    long, short = (one, other) if len(one) >= len(other) else (other, one)
    places: dict[Hashable, int] = {}
    for place, item in enumerate(long):
        places[item] = places.get(item, 0) | 1 << place
    everything = (1 << len(long)) - 1
    row = everything
    for item in short:
        hits = row & places.get(item, 0)
        row = ((row + hits) | (row - hits)) & everything
    return len(long) - row.bit_count()


# --- json_match ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JsonMatch:
    """The share of fields that are equal as JSON.  An output that is not JSON scores 0.

    fields: names in the outermost object; a field that both lack is equal.  Without them, every field of either, so
    that an invented one costs; and two values that are not objects are compared whole."""

    name: str = "json_match"
    fields: tuple[str, ...] | None = None

    def grade(self, output: str, reference: str) -> float:
        try:
            wanted = msgspec.json.decode(reference)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise Ungradable("The reference is not JSON.") from error
        try:
            given = msgspec.json.decode(output)
        except (msgspec.MsgspecError, RecursionError):
            return 0.0
        try:
            return self._share(given, wanted)
        except RecursionError as error:
            raise Ungradable("The reference is nested too deeply.") from error

    def _share(self, given: Any, wanted: Any) -> float:
        if not isinstance(wanted, dict) and self.fields is None:
            return float(_same_json(given, wanted))
        if not isinstance(wanted, dict):
            raise Ungradable("The reference is not an object, so it has no fields to compare.")
        if not isinstance(given, dict):
            return 0.0
        fields = self.fields or tuple(given.keys() | wanted.keys())
        equal = sum(_same_json(given.get(name, _ABSENT), wanted.get(name, _ABSENT)) for name in fields)
        return equal / len(fields) if fields else 1.0


_ABSENT: Final = object()


def _same_json(one: Any, other: Any) -> bool:
    """Equality of JSON values: 1 equals 1.0, and true equals neither, though Python's == says so."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_json(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_json, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


# --- score_model -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreModel:
    """A model as judge of how well one answer could stand in for another.  What it is asked stands in shared/judge.py.

    prompt: what to judge by, instead of that.  sampling_params: of its calls.  Its scores reach shared/verdict.py as
    `judged`; without them every example is ungradable."""

    provider: str
    model: str
    name: str = "score_model"
    prompt: str | None = None
    sampling_params: JsonObject | None = None

    def grade(self, output: str, reference: str) -> float:
        raise Ungradable("A judge's score is asked of a model, and none has come.")


# --- from the request ------------------------------------------------------------------------------------------------

Check: TypeAlias = Callable[[Any], str | None]
"""Says what a value must be when it is not, in words that do not repeat it."""


def _one_of(choices: Iterable[str], hint: str = "") -> Check:
    offered = tuple(choices)
    return lambda value: None if value in offered else f"must be one of {', '.join(offered)}{hint}"


def _text(longest: int) -> Check:
    detail = f"must be a text of 1 to {longest:,} characters"
    return lambda value: None if isinstance(value, str) and 0 < len(value) <= longest else detail


def _printed(longest: int) -> Check:
    detail = f"must be a text of 1 to {longest:,} characters, none of them a control character"
    return lambda value: None if _text(longest)(value) is None and not CONTROL.search(value) else detail


def _field_names(value: Any) -> str | None:
    names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
    return None if names and len(set(value)) == len(value) else "must be a list of different field names"


def _sampling(value: Any) -> str | None:
    """Of its members, `_sampling_faults` tells each by itself."""
    fits = isinstance(value, dict) and value.keys() <= set(SAMPLING)
    return None if fits else f"must be an object with some of {', '.join(SAMPLING)}"


def _sampling_faults(params: JsonObject, pointer: str) -> Iterable[Fault]:
    for name, given in params.items():
        if given is not None and (wrong := PARAMS[name](given)):
            yield Fault(f"{pointer}/{name}", "invalid_value", wrong)


@dataclass(frozen=True)
class _Kind:
    build: Callable[..., Grader]
    checks: Mapping[str, Check]
    required: frozenset[str] = field(default=frozenset())


KINDS: Final[Mapping[str, _Kind]] = {
    "string_check": _Kind(StringCheck, {"operation": _one_of(get_args(Operation))}),
    "text_similarity": _Kind(
        TextSimilarity,
        {"evaluation_metric": _one_of(METRICS, "; gleu, meteor and cosine are not offered here")},
    ),
    "json_match": _Kind(JsonMatch, {"fields": _field_names}),
    "score_model": _Kind(
        ScoreModel,
        {
            "provider": _printed(LONGEST_NAME),
            "model": _printed(200),
            "prompt": _text(LONGEST_CRITERION),
            "sampling_params": _sampling,
        },
        required=frozenset({"provider", "model"}),
    ),
}
COMMON: Final[Mapping[str, Check]] = {"type": _one_of(KINDS), "name": _printed(LONGEST_NAME)}
TAKEN_CARE_OF: Final[Mapping[str, str]] = {
    "input": "is not taken: graders always read the answer",
    "reference": "is not taken: graders always compare with the prompt's reference, or the teacher's answer",
    "pass_threshold": "is not taken: see evaluation.min_score",
}


def parse_graders(specs: Sequence[JsonObject]) -> list[Grader]:
    """The graders of a request, in its order; the first one gives the verdict.

    Raises `ValidationFailed` with every fault and its place (`/evaluation/graders/0/type`)."""
    graders: list[Grader] = []
    faults: list[Fault] = []
    if not 1 <= len(specs) <= MOST_GRADERS:
        faults.append(Fault("/evaluation/graders", "wrong_length", f"must have 1 to {MOST_GRADERS} graders"))
        specs = ()
    for place, spec in enumerate(specs):
        pointer = f"/evaluation/graders/{place}"
        if found := list(_faults_of(spec, pointer)):
            faults += found
            continue
        grader = _built(spec)
        if any(grader.name == earlier.name for earlier in graders):
            faults.append(Fault(f"{pointer}/name", "duplicate_name", "must differ from the names of other graders"))
        graders.append(grader)
    if faults:
        raise ValidationFailed(
            sentence(f"{faults[0].pointer} {faults[0].detail}"), param=faults[0].pointer, faults=tuple(faults)
        )
    return graders


def parse_grader(spec: JsonObject, pointer: str) -> Grader:
    """One grader, at `pointer` in the request.  Raises `ValidationFailed`."""
    if faults := tuple(_faults_of(spec, pointer)):
        raise ValidationFailed(
            sentence(f"{faults[0].pointer} {faults[0].detail}"), param=faults[0].pointer, faults=faults
        )
    return _built(spec)


def _built(spec: JsonObject) -> Grader:
    given = {name: value for name, value in spec.items() if name != "type" and value is not None}
    if "fields" in given:
        given["fields"] = tuple(given["fields"])
    return KINDS[spec["type"]].build(**given)


def _faults_of(spec: Any, pointer: str) -> Iterable[Fault]:
    """A null counts as left out."""
    if not isinstance(spec, dict):
        yield Fault(pointer, "wrong_type", "must be an object")
        return
    if wrong := COMMON["type"](spec.get("type")):
        yield Fault(f"{pointer}/type", "unknown_grader" if "type" in spec else "required", wrong)
        return
    kind = KINDS[cast("str", spec["type"])]
    for name in sorted(kind.required):
        if spec.get(name) is None:
            yield Fault(f"{pointer}/{name}", "required", "is required")
    for name, value in spec.items():
        check = kind.checks.get(name) or COMMON.get(name)
        if check is None:
            known = [*COMMON, *kind.checks]
            yield Fault(f"{pointer}/{_escaped(name)}", "unknown_field", _unknown(name, known))
        elif value is not None and (wrong := check(value)):
            yield Fault(f"{pointer}/{name}", "invalid_value", wrong)
        elif value is not None and name == "sampling_params":
            yield from _sampling_faults(value, f"{pointer}/{name}")


def _unknown(name: str, known: Iterable[str]) -> str:
    if name in TAKEN_CARE_OF:
        return TAKEN_CARE_OF[name]
    near = difflib.get_close_matches(name[:LONGEST_NAME], list(known), n=1)
    return f"is not a field of this grader; did you mean {near[0]}?" if near else "is not a field of this grader"


def _escaped(name: str) -> str:
    """A field name as a reference token of RFC 6901, cut to a length worth reading."""
    return name[:LONGEST_NAME].replace("~", "~0").replace("/", "~1")

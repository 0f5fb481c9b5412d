"""Curating: which of the teacher's completions become examples, in which split, and why the others do not.

Pure functions, and one `Curator` that remembers what it has kept.  Prompts are compared by their *form*: roles and
texts of the messages and the tools, where of every text only the words count (`words_of`).  Ids of tool calls and
"system" against "developer" make no difference; anything that is not text (an image, a tool, the arguments of a tool
call) counts exactly.  The split is a hash of that form, so a prompt and its near copies always share one."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias, TypedDict

import jsonschema_rs
import msgspec

from shared.completions import Decision, StoredCompletion
from shared.dataset import content_of, text_of
from shared.errors import Fault, JobFailed, ProviderUnavailable, ValidationFailed
from shared.fingerprints import Fingerprints
from shared.graders import parse_grader
from shared.models import INSTRUCTIONS, Curation, JsonObject, Prompt, PromptDefaults, Split, Student
from shared.schema_bounds import is_tame
from shared.selection import choose

SplitName: TypeAlias = Literal["train", "validation", "holdout"]

#: Why a completion is rejected.
Reason: TypeAlias = Literal[
    "refused",
    "truncated",
    "filtered",
    "empty",
    "invalid_schema",
    "ungradable",
    "below_threshold",
    "not_best",
    "duplicate",
    "leaked_into_holdout",
]
OPENING_MARKS: Final = "¿¡"
CLOSING_MARKS: Final = ".,;:!?…。、，；：！？"
_encode: Final = msgspec.json.Encoder().encode
_ASCII_CLOSING_MARKS: Final = "".join(filter(str.isascii, CLOSING_MARKS))
TEMPLATE_CONTEXTS: Final = 4  # prompts with one question; from here on the question is a template, see `Curator`
DEEPEST_JSON: Final = 128  # levels; the validator recurses, and a model's answer must not exhaust a thread's stack
#: What is remembered of a prompt, as bits.
_KEPT: Final = 1
_LEAKED: Final = 2
#: What is remembered of a question: the lowest bits count the prompts, kept or leaked, that ask it, as far as
#: `TEMPLATE_CONTEXTS`; two more say on which side prompts with it were kept.
_COUNT: Final = 7
_IN_HOLDOUT: Final = 8
_IN_TRAINING: Final = 16
SCHEMAS_KEPT: Final = 64  # compiled schemas; prompts of one job nearly always share one


# --- the answer on its own -------------------------------------------------------------------------------------------


class _Choice(msgspec.Struct):
    message: JsonObject
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]


_ANSWER: Final = msgspec.json.Decoder(_Answer)


def assistant_message(raw: bytes | msgspec.Raw) -> tuple[JsonObject, str | None]:
    """(message, finish_reason) of the first choice of a Chat Completions answer.

    Raises `ProviderUnavailable` when it is no such answer."""
    try:
        choice = _ANSWER.decode(raw).choices[0]
    except (msgspec.MsgspecError, IndexError, RecursionError) as error:
        raise ProviderUnavailable("The provider's answer is not a chat completion.") from error
    return choice.message, choice.finish_reason


def reason_against(
    message: JsonObject, finish_reason: str | None, *, max_output_chars: int | None = None
) -> Reason | None:
    """Why this answer cannot be an example whatever the others are: refused, truncated, filtered, empty, or None.

    max_output_chars: of `text_of(message)`; a longer answer counts as truncated."""
    if message.get("refusal"):
        return "refused"
    if finish_reason == "length" or (max_output_chars is not None and len(text_of(message)) > max_output_chars):
        return "truncated"
    if finish_reason == "content_filter":
        return "filtered"
    if not message.get("tool_calls") and not content_of(message).strip():
        return "empty"
    return None


# --- the prompt, its form and its split ------------------------------------------------------------------------------


def words_of(text: str) -> str:
    """A text without what does not change the question: case, white space, and sentence marks at the ends of words.

    Digits, symbols, quotes and marks inside a word stay, because "2*3", "2-3" and "3.5" differ by nothing else."""
    folded = text.casefold()
    if folded.isascii():  # in which there is nothing to compose, and no mark that opens
        words = [word.rstrip(_ASCII_CLOSING_MARKS) for word in folded.split()]
    else:
        composed = unicodedata.normalize("NFC", folded)
        words = [word.lstrip(OPENING_MARKS).rstrip(CLOSING_MARKS) for word in composed.split()]
    return " ".join([word for word in words if word])


def split_of(messages: Sequence[JsonObject], tools: Sequence[JsonObject] | None, split: Split) -> SplitName:
    """The split of a prompt, by a seeded hash of its form alone: it keeps its split when the set grows.

    The holdout takes the lowest hashes and validation the next, so a larger share adds prompts and moves none out,
    and the share of validation never touches the holdout."""
    return _split_at(_prompt_form([_message_form(message) for message in messages], tools), split)


class Splitter:
    """`split_of` for the prompts of one job, with what it says for all of them."""

    def __init__(self, split: Split, defaults: PromptDefaults) -> None:
        self._split = split
        self._tools = defaults.tools
        system = defaults.system_prompt
        self._system = None if system is None else _message_form({"role": "system", "content": system})

    def split_of(self, prompt: Prompt) -> SplitName:
        forms = [_message_form(message) for message in prompt.messages]
        if self._system is not None and prompt.is_bare:
            forms.insert(0, self._system)
        return _split_at(_prompt_form(forms, prompt.tools or self._tools), self._split)


def _split_at(form: bytes, split: Split) -> SplitName:
    place = _fingerprint(f"split {split.seed}\n".encode() + form) / 2**64
    if place < split.holdout:
        return "holdout"
    return "validation" if place < split.holdout + split.validation else "train"


def _prompt_form(messages: Sequence[bytes], tools: Sequence[JsonObject] | None) -> bytes:
    """messages: their forms."""
    return b'{"messages":[%b],"tools":%b}' % (b",".join(messages), _canonical(tools or []))


def _question_form(prompt: Prompt, messages: Sequence[bytes]) -> bytes | None:
    """The prompt without its instructions and tools; None when nothing else is there.  messages: their forms."""
    pairs = zip(prompt.messages, messages, strict=True)
    asked = [form for message, form in pairs if message.get("role") not in INSTRUCTIONS]
    return b"[%b]" % b",".join(asked) if asked else None


def _message_form(message: JsonObject) -> bytes:
    role, content = message.get("role"), message.get("content")
    role = "system" if role in INSTRUCTIONS else role
    if type(content) is str and type(role) is str and len(message) == 2:  # nearly all; a third of the time
        return b'{"calls":[],"content":[%b],"name":null,"role":%b}' % (_encode(words_of(content)), _encode(role))
    parts = content if isinstance(content, list) else [content]
    return _canonical(
        {
            "role": role,
            "name": message.get("name"),
            "content": [_part_form(part) for part in parts],
            "calls": [call.get("function") for call in message.get("tool_calls") or []],
        }
    )


def _part_form(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "text":
        part = part.get("text")
    return words_of(part) if isinstance(part, str) else part


def _canonical(value: Any) -> bytes:
    return msgspec.json.encode(value, order="sorted")


def _fingerprint(form: bytes) -> int:
    """64 bits: among a million prompts, two different ones collide with a chance of 3 in 100 million."""
    return int.from_bytes(hashlib.blake2b(form, digest_size=8).digest(), "big")


# --- the answer against its schema -----------------------------------------------------------------------------------


def check_response_schema(schema: JsonObject, pointer: str = "/curation/response_schema") -> None:
    """Raises `ValidationFailed` when this is no JSON Schema we can check answers with.

    The draft is the one that `$schema` names, else 2020-12.  References may point inside the schema only."""
    if _compiled(schema) is None:
        detail = (
            "must be a valid JSON Schema of bounded size that refers to nothing outside itself, and back at most once"
        )
        raise ValidationFailed(
            f"{pointer} {detail}.", param=pointer, faults=[Fault(pointer, "invalid_json_schema", detail)]
        )


def _compiled(schema: Any) -> jsonschema_rs.Validator | None:
    """`offline` matters: by default a reference would be fetched, from the network and from the worker's disk."""
    if not is_tame(schema):
        return None
    try:
        return jsonschema_rs.validator_for(schema, offline=True)
    except (ValueError, jsonschema_rs.ReferencingError):
        return None


class _Schemas:
    """Validators by schema, compiled once.  A schema that does not compile accepts nothing."""

    def __init__(self) -> None:
        self._compiled: dict[bytes, jsonschema_rs.Validator | None] = {}

    def accept(self, schema: Any, content: str) -> bool:
        try:
            instance = msgspec.json.decode(content)
        except (msgspec.MsgspecError, RecursionError):
            return False
        key = _canonical(schema)
        if key not in self._compiled:
            if len(self._compiled) >= SCHEMAS_KEPT:
                self._compiled.clear()
            self._compiled[key] = _compiled(schema)
        validator = self._compiled[key]
        return validator is not None and not _deeper_than(DEEPEST_JSON, instance) and validator.is_valid(instance)


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects lie more than `levels` deep in each other.  Without recursion, which is the point."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for outer in layer for inner in _inside(outer)]
        if not layer:
            return False
    return any(isinstance(inner, dict | list) for inner in layer)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _schema_for(prompt: Prompt, spec: Curation) -> Any:
    """The schema the answer was promised to follow, the job's before the prompt's; None when none was."""
    if spec.response_schema is not None:
        return spec.response_schema
    wanted = prompt.response_format or {}
    if wanted.get("type") == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema", {})
    return {"type": "object"} if wanted.get("type") == "json_object" else None


# --- the answer among the others -------------------------------------------------------------------------------------


class Sample(msgspec.Struct, frozen=True):
    """One of the teacher's answers to a prompt.  message: None when the call failed.  arrival_reason: what was found
    against it on arrival."""

    message: JsonObject | None
    finish_reason: str | None = None
    arrival_reason: str | None = None

    @classmethod
    def of(cls, kept: StoredCompletion | None) -> Sample:
        """Raises `ProviderUnavailable` when what is kept is no completion."""
        if kept is None or kept.status == "failed":
            return cls(None)
        return cls(*assistant_message(kept.raw), kept.reason)


class Curator:
    """Decides of one prompt's completions at a time, in index order.  Remembers fingerprints and no text: 27 to 54
    bytes per kept prompt, however long.

    ungradable, below_threshold, not_best: see shared/selection.py; one sample at most is left, and judged on:

    duplicate: a prompt of the same form was kept before; the first usable one stays.  Nothing fuzzier is measured.
    leaked_into_holdout: the same question, asked under another system message or with other tools, was kept on the
    other side of the line between holdout and training; the first one stays, so holdout and training never share a
    question, whichever comes first.  A question that `TEMPLATE_CONTEXTS` different prompts ask ("Summarise the text
    above.") is a template: what sets its prompts apart is in the system message, and it leaks nothing."""

    def __init__(self, spec: Curation, split: Split) -> None:
        self._spec = spec
        self._split = split
        self._grader = None if spec.grader is None else parse_grader(spec.grader, "/curation/grader")
        self._schemas = _Schemas()
        self._prompts = Fingerprints()
        self._questions = Fingerprints()

    def decide(
        self,
        prompt: Prompt,
        message: JsonObject | None,
        finish_reason: str | None = None,
        arrival_reason: str | None = None,
        failed: bool = False,
    ) -> Decision:
        """Of a prompt's only answer.  message: the teacher's, None when there is none."""
        answer = Sample(None) if failed else Sample(message, finish_reason, arrival_reason)
        (decision,) = self.decide_all(prompt, [answer])
        assert decision is not None
        return decision

    def decide_all(
        self, prompt: Prompt, samples: Sequence[Sample | None], rated: Mapping[int, float] | None = None
    ) -> list[Decision | None]:
        """One decision per sample; None for one that was never asked for.  rated: a judge's scores by sample.

        A rejected or failed completion keeps the split it would have had."""
        messages = [_message_form(message) for message in prompt.messages]
        form = _prompt_form(messages, prompt.tools)
        side = _split_at(form, self._split)
        reasons: dict[int, str | None] = {}
        usable: dict[int, str] = {}
        for number, sample in enumerate(samples):
            if sample is not None and sample.message is not None:
                reasons[number] = self.reason_alone(prompt, sample)
                if reasons[number] is None:
                    usable[number] = text_of(sample.message)
        choice = choose(
            usable,
            grader=self._grader,
            min_score=self._spec.min_score,
            reference=prompt.reference,
            rated=rated or {},
        )
        reasons |= choice.fates
        if choice.best is not None:
            reasons[choice.best] = self._reason_in_others(prompt, messages, form, holdout=side == "holdout")
        decisions: list[Decision | None] = []
        for number, sample in enumerate(samples):
            if sample is None:
                decisions.append(None)
            elif sample.message is None:
                decisions.append(Decision(status="failed", split=side))
            else:
                reason, score = reasons[number], choice.scores.get(number)
                status: Literal["accepted", "rejected"] = "rejected" if reason else "accepted"
                decisions.append(Decision(status=status, split=side, reason=reason, score=score))
        return decisions

    def reason_alone(self, prompt: Prompt, sample: Sample) -> str | None:
        """Why this answer cannot be an example, whatever the others are."""
        assert sample.message is not None
        return (
            sample.arrival_reason
            or reason_against(sample.message, sample.finish_reason, max_output_chars=self._spec.max_output_chars)
            or self._reason_in_schema(prompt, sample.message)
        )

    def _reason_in_schema(self, prompt: Prompt, message: JsonObject) -> Reason | None:
        """A message that only calls tools has no content for a schema to judge."""
        schema = _schema_for(prompt, self._spec)
        content = content_of(message)
        if schema is None or (message.get("tool_calls") and not content):
            return None
        return None if self._schemas.accept(schema, content) else "invalid_schema"

    def _reason_in_others(
        self, prompt: Prompt, messages: Sequence[bytes], form: bytes, *, holdout: bool
    ) -> Reason | None:
        """messages, form: of the prompt's messages, and of the whole."""
        fingerprint = _fingerprint(form)
        known = self._prompts[fingerprint]
        if known & _KEPT:
            return "duplicate" if self._spec.dedupe else None
        question_form = _question_form(prompt, messages)
        if question_form is not None:
            question = _fingerprint(question_form)
            here, there = (_IN_HOLDOUT, _IN_TRAINING) if holdout else (_IN_TRAINING, _IN_HOLDOUT)
            asked = self._questions[question]
            if not known & _LEAKED and asked & _COUNT < TEMPLATE_CONTEXTS:
                asked += 1
            if asked & there and asked & _COUNT < TEMPLATE_CONTEXTS:
                self._questions[question] = asked
                self._prompts[fingerprint] = known | _LEAKED
                return "leaked_into_holdout"
            self._questions[question] = asked | here
        self._prompts[fingerprint] = known | _KEPT
        return None


# --- what came of it -------------------------------------------------------------------------------------------------


class Tally(TypedDict):
    """accepted: examples by split, every split present.  rejected: completions by reason, largest first, with
    `provider_error` for those that failed."""

    accepted: dict[str, int]
    rejected: dict[str, int]


def summary(decisions: Iterable[Decision]) -> Tally:
    accepted: dict[str, int] = {"train": 0, "validation": 0, "holdout": 0}
    rejected: Counter[str] = Counter()
    for decision in decisions:
        if decision.status == "accepted":
            accepted[decision.split] += 1
        else:
            rejected[decision.reason or "provider_error"] += 1
    return {"accepted": accepted, "rejected": dict(sorted(rejected.items(), key=lambda pair: (-pair[1], pair[0])))}


def shortfall(counts: Tally, spec: Curation, split: Split) -> JobFailed | None:
    """Why this dataset cannot be trained on or judged with, None when it can.  Returned, for the caller to raise."""
    accepted = counts["accepted"]
    if accepted["train"] < spec.min_accepted:
        return JobFailed(
            f"{accepted['train']} examples were accepted for training and {spec.min_accepted} are needed;"
            f" {accepted['validation']} are in validation and {accepted['holdout']} in the holdout."
            f" {_losses(counts['rejected'])}",
            code="too_few_accepted",
            param="curation.min_accepted",
        )
    if split.holdout > 0 and accepted["holdout"] < 1:
        return JobFailed(
            f"No example was accepted for the holdout, so a student could not be judged. {_losses(counts['rejected'])}"
            " Send more prompts, or ask for a larger share.",
            code="holdout_too_small",
            param="split.holdout",
        )
    return None


def student_shortfalls(
    accepted: int, pairs: int, unpaired: Mapping[str, int], spec: Curation, students: Sequence[tuple[Student, int]]
) -> dict[int, JobFailed]:
    """Why there is too little to train a student with, by its number.

    accepted, pairs: for training.  students: each with the fewest examples that its provider trains with."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in unpaired.items())
    without = f"  Examples without a pair: {reasons or 'none'}."
    found: dict[int, JobFailed] = {}
    for number, (student, least) in enumerate(students):
        by_pairs = student.method == "dpo"
        if by_pairs and pairs < spec.min_accepted:
            found[number] = JobFailed(
                f"{pairs} preference pairs were found for training with dpo and {spec.min_accepted} are needed."
                + without,
                code="too_few_accepted",
                param=f"students.{number}.method",
            )
        elif (have := pairs if by_pairs else accepted) < least:
            what = "preference pairs were found" if by_pairs else "examples were accepted"
            found[number] = JobFailed(
                f"{have} {what} for training, and the student's provider trains with no fewer than {least}."
                + (without if by_pairs else ""),
                code="too_few_accepted",
                param=f"students.{number}.provider",
            )
    return found


def _losses(rejected: Mapping[str, int]) -> str:
    if not rejected:
        return "No completion was rejected."
    return "Not accepted: " + ", ".join(f"{count} {reason}" for reason, count in rejected.items()) + "."

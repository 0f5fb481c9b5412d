"""One prompt as a caller writes it, inline or as a line of a file, and what a job says for all of them.

Everything here is pure: values in, prompts and faults out.  Faults name the place and never the value."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import compress
from typing import Any, Final, overload

import msgspec
from msgspec.structs import replace

from shared.capabilities import check_response_format, check_tools
from shared.errors import Fault
from shared.exports import may_give_a_pair
from shared.models import JobSpec, JsonObject, Prompt, PromptCounts, PromptDefaults
from shared.pricing import prompt_size

FIELDS: Final = ("messages", "key", "tools", "response_format", "completion", "reference")
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
MESSAGES_MAX: Final = 2_000
KEY_MAX_CHARS: Final = 200
DEEPEST_JSON: Final = 64  # levels; what recurses over a value must never run out of stack
TOO_DEEP: Final = f"is nested deeper than {DEEPEST_JSON} levels"
FAULTS_MAX: Final = 20
_MEMBERS_MAX: Final = 64  # of one object; a million unknown fields must not become a million errors
_NAME_MAX_CHARS: Final = 64
_encode_lines: Final = msgspec.json.Encoder().encode_lines
_TEXT_OPENS: Final = b'{"messages":[{"role":"user","content":'
_TEXT_CLOSES: Final = b"}]}\n"
_TEXT_BYTES: Final = prompt_size(Prompt(messages=[{"role": "user", "content": ""}]))


# --- one prompt ------------------------------------------------------------------------------------------------------


def read_prompt(value: Any) -> Prompt | list[Fault]:
    """A prompt of a request or a file.  Pointers of the faults start at the prompt itself; at most one per field."""
    if isinstance(value, str) and value:
        return Prompt(messages=[{"role": "user", "content": value}])
    if not isinstance(value, dict):
        return [Fault("", "wrong_type", "must be a text that is not empty, or an object with messages")]
    if not value.keys() <= _FIELD_SET:
        unknown = [name for name in list(value)[:_MEMBERS_MAX] if name not in _FIELD_SET]
        return [Fault("/" + token(n), "unknown_field", unknown_field(n, FIELDS)) for n in unknown[:FAULTS_MAX]]
    faults = _messages_fault(value)
    given = {name: found for name in FIELDS[1:] if (found := value.get(name)) is not None}
    for name, found in given.items():
        if (wrong := _CHECKS[name](found)) is not None:
            faults.append(Fault(f"/{name}", *wrong))
    if faults:
        return faults
    if (answer := given.get("completion")) is not None:
        given["completion"] = _assistant(answer)
    return Prompt(messages=value["messages"], **given)


class Texts(Sequence[Prompt]):
    """Prompts that are texts alone, as most requests send them.  Each is made when it is looked at; to be counted and
    stored none need be, which takes a tenth of the time."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    @classmethod
    def of(cls, values: Sequence[Any]) -> Texts | None:
        """None where there is anything else."""
        return cls(values) if set(map(type, values)) == {str} and all(values) else None

    @cached_property
    def _encoded(self) -> bytes:
        """The texts as JSON, which they are both measured by and stored as, each with a line feed after it: none is
        left inside."""
        return _encode_lines(self._texts)

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> Texts: ...
    def __getitem__(self, place: int | slice) -> Prompt | Texts:
        if isinstance(place, slice):
            return self if place.indices(len(self)) == (0, len(self), 1) else Texts(self._texts[place])
        return Prompt(messages=[{"role": "user", "content": self._texts[place]}])

    def lines(self) -> bytes:
        """As msgspec encodes the prompts: one JSON line for each."""
        return _TEXT_OPENS + self._encoded[:-1].replace(b"\n", _TEXT_CLOSES + _TEXT_OPENS) + _TEXT_CLOSES

    @property
    def counts(self) -> PromptCounts:
        total, longest = len(self._texts), max(map(len, self._texts), default=0)
        return PromptCounts(
            prompts=total,
            asked=total,
            bytes=len(self._encoded) + total * (_TEXT_BYTES - len('""\n')),
            bare=total,
            toolless=total,
            formatless=total,
            unreferenced=total,
            longest_chars=longest,
            longest_bare_chars=longest,
        )


def counts_of(prompts: Sequence[Prompt]) -> PromptCounts:
    """As `PromptReader.counts` for the same prompts in a file."""
    if isinstance(prompts, Texts):
        return prompts.counts
    chars = [chars_of(prompt) for prompt in prompts]
    bare = [prompt.is_bare for prompt in prompts]
    return PromptCounts(
        prompts=len(prompts),
        asked=sum(prompt.completion is None for prompt in prompts),
        bytes=sum(map(prompt_size, prompts)),
        bare=sum(bare),
        toolless=sum(not prompt.tools for prompt in prompts),
        formatless=sum(not prompt.response_format for prompt in prompts),
        unreferenced=sum(prompt.reference is None for prompt in prompts),
        unpairable=sum(prompt.completion is None and not may_give_a_pair(prompt) for prompt in prompts),
        longest_chars=max(chars, default=0),
        longest_bare_chars=max(compress(chars, bare), default=0),
    )


def _messages_fault(prompt: JsonObject) -> list[Fault]:
    """Of the first message that is wrong."""
    if "messages" not in prompt:
        return [Fault("/messages", "required", "is required")]
    messages = prompt["messages"]
    if not isinstance(messages, list):
        return [Fault("/messages", "wrong_type", "must be a list")]
    if not messages:
        return [Fault("/messages", "wrong_length", "must have at least 1 items")]
    if len(messages) > MESSAGES_MAX:
        return [Fault("/messages", "wrong_length", f"must have at most {MESSAGES_MAX} items")]
    for place, message in enumerate(messages):
        if (wrong := message_fault(message)) is not None:
            return [Fault(f"/messages/{place}{wrong.pointer}", wrong.code, wrong.detail)]
    return []


def message_fault(message: Any) -> Fault | None:
    """As much as decides whether a provider could take the message at all."""
    if not isinstance(message, dict):
        return Fault("", "wrong_type", "must be an object")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or role not in ROLES:
        return Fault("/role", "invalid_value", f"must be one of {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    if calls is not None and not (isinstance(calls, list) and all(map(_is_call, calls))):
        return Fault("/tool_calls", "invalid_value", "must be objects with a function")
    if isinstance(content, str):
        return None
    if isinstance(content, list):
        if not content or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
            return Fault("/content", "invalid_value", "must have parts that are objects with a type")
        return None
    if content is None and role == "assistant" and (calls or message.get("refusal")):
        return None
    return Fault("/content", "invalid_value", "must be a text or a list of parts")


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("function"), dict)


def _assistant(value: Any) -> JsonObject:
    return {"role": "assistant", "content": value} if isinstance(value, str) else {"role": "assistant", **value}


def _key_fault(value: Any) -> tuple[str, str] | None:
    if not isinstance(value, str):
        return "wrong_type", "must be a text"
    if not value:
        return "wrong_length", "must have at least 1 characters"
    return ("wrong_length", f"must have at most {KEY_MAX_CHARS} characters") if len(value) > KEY_MAX_CHARS else None


def _completion_fault(value: Any) -> tuple[str, str] | None:
    if isinstance(value, str) and value:
        return None
    if isinstance(value, dict) and value.get("role", "assistant") == "assistant":
        wrong = message_fault(_assistant(value))
        return None if wrong is None else (wrong.code, f"{wrong.pointer[1:]} {wrong.detail}")
    return "invalid_value", "must be a text or an assistant message"


def _reference_fault(value: Any) -> tuple[str, str] | None:
    return None if isinstance(value, str) else ("wrong_type", "must be a text")


def _by(kind: type, noun: str, check: Callable[[Any], str | None]) -> Callable[[Any], tuple[str, str] | None]:
    def fault(value: Any) -> tuple[str, str] | None:
        if not isinstance(value, kind):
            return "wrong_type", f"must be {noun}"
        wrong = check(value)
        return None if wrong is None else ("invalid_value", wrong)

    return fault


_FIELD_SET: Final = frozenset(FIELDS)
_CHECKS: Final[dict[str, Callable[[Any], tuple[str, str] | None]]] = {
    "key": _key_fault,
    "tools": _by(list, "a list", check_tools),
    "response_format": _by(dict, "an object", check_response_format),
    "completion": _completion_fault,
    "reference": _reference_fault,
}


def chars_of(prompt: Prompt) -> int:
    """Characters of all messages together; of content in parts, those of its JSON."""
    chars = 0
    for message in prompt.messages:
        content = message.get("content")
        chars += len(content) if isinstance(content, str) else len(msgspec.json.encode(content))
    return chars


def unknown_field(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:_NAME_MAX_CHARS], known, n=1)
    return "is not a known field" + (f"; did you mean {near[0]}?" if near else "")


def json_fault(error: msgspec.MsgspecError) -> str:
    """What is wrong with a text that is no JSON, and where as far as the decoder tells: of a number it cannot hold it
    does not.  Repeats nothing of the text."""
    if isinstance(error, msgspec.ValidationError):  # nothing is asked of the values but that they can be held
        return "holds a number that is out of range"
    place = str(error).rpartition("(byte ")[2][:-1]
    return "is not valid JSON" + (f"; reading stopped at byte {place}" if place.isdecimal() else "")


def bounds_fault(value: Any) -> str | None:
    """What of a value read from JSON is too much for those who handle it later.  Without recursion, which is the
    point."""
    layer: list[Any] = [[value]]
    for _ in range(DEEPEST_JSON + 1):
        below = []
        for outer in layer:
            for inner in outer.values() if type(outer) is dict else outer:
                kind = type(inner)
                if kind is str:  # as most of what is sent
                    continue
                if kind is dict or kind is list:
                    below.append(inner)
                elif kind is int and not -(2**63) <= inner < 2**64:
                    return "holds a whole number of more than 64 bits"
        if not below:
            return None
        layer = below
    return TOO_DEEP


def token(name: str) -> str:
    """A field name as an RFC 6901 reference token, cut to a length worth reading."""
    return name[:_NAME_MAX_CHARS].replace("~", "~0").replace("/", "~1")


# --- what a job says for all its prompts -----------------------------------------------------------------------------


def defaults_of(spec: JobSpec) -> PromptDefaults:
    """What the request says once for all prompts.  Invalid values are left out; they are faults elsewhere."""
    tools, response_format = spec.teacher.params.get("tools"), spec.teacher.params.get("response_format")
    return PromptDefaults(
        system_prompt=spec.system_prompt or None,
        tools=tools if check_tools(tools) is None else None,
        response_format=response_format if check_response_format(response_format) is None else None,
    )


def joined(first: PromptDefaults, then: PromptDefaults) -> PromptDefaults:
    """As one what is said for all prompts first by one job, then by another: `with_defaults` with each in turn."""
    return PromptDefaults(
        system_prompt=first.system_prompt or then.system_prompt,
        tools=first.tools or then.tools,
        response_format=first.response_format or then.response_format,
    )


def with_defaults(prompt: Prompt, defaults: PromptDefaults) -> Prompt:
    """A prompt as it will be asked: the job's system prompt, tools and response format where it has none of its own."""
    changed: dict[str, Any] = {}
    if defaults.system_prompt is not None and prompt.is_bare:
        changed["messages"] = [{"role": "system", "content": defaults.system_prompt}, *prompt.messages]
    if defaults.tools and not prompt.tools:
        changed["tools"] = defaults.tools
    if defaults.response_format and not prompt.response_format:
        changed["response_format"] = defaults.response_format
    return replace(prompt, **changed) if changed else prompt


def adds_nothing(defaults: PromptDefaults, counts: PromptCounts) -> bool:
    """Whether all prompts say already what the job would say for them."""
    says = ((defaults.system_prompt, counts.bare), (defaults.tools, counts.toolless))
    return not any(said and takers for said, takers in (*says, (defaults.response_format, counts.formatless)))


def bytes_with(counts: PromptCounts, defaults: PromptDefaults) -> int:
    """`prompt_size` of all prompts together as they will be asked, from what was counted without the defaults."""
    size = counts.bytes
    if defaults.system_prompt is not None:
        message = {"role": "system", "content": defaults.system_prompt}
        size += counts.bare * (len(msgspec.json.encode(message)) + len(","))
    for extra, takers in ((defaults.tools, counts.toolless), (defaults.response_format, counts.formatless)):
        if extra:
            size += takers * (len(msgspec.json.encode(extra)) - len("[]"))
    return size


def longest_chars(counts: PromptCounts, defaults: PromptDefaults) -> int:
    """Of the messages of one prompt together, as it will be asked."""
    added = len(defaults.system_prompt or "") if counts.bare else 0
    return max(counts.longest_chars, counts.longest_bare_chars + added)

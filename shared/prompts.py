"""One prompt as a caller writes it, inline or as a line of a file, and a file of them read as it arrives.

Everything here is pure: values and bytes in, prompts and faults out.  Faults name the place and never the value."""

from __future__ import annotations

import difflib
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, Final, overload

import msgspec
from msgspec.structs import replace

from shared.capabilities import check_response_format, check_tools
from shared.errors import Fault
from shared.exports import may_give_a_pair
from shared.models import INSTRUCTIONS, JobSpec, JsonObject, Prompt, PromptCounts, PromptDefaults
from shared.pricing import prompt_size

FIELDS: Final = ("messages", "key", "tools", "response_format", "completion", "reference")
ROLES: Final = ("system", "developer", "user", "assistant", "tool", "function")
MESSAGES_MAX: Final = 2_000
KEY_MAX_CHARS: Final = 200
DEEPEST_JSON: Final = 64  # levels; what later recurses over a prompt must never run out of stack
FAULTS_MAX: Final = 20
_MEMBERS_MAX: Final = 64  # of one object; a million unknown fields must not become a million errors
_NAME_MAX_CHARS: Final = 64
_encode: Final = msgspec.json.Encoder().encode
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

    def __len__(self) -> int:
        return len(self._texts)

    @overload
    def __getitem__(self, place: int) -> Prompt: ...
    @overload
    def __getitem__(self, place: slice) -> Texts: ...
    def __getitem__(self, place: int | slice) -> Prompt | Texts:
        if isinstance(place, slice):
            return Texts(self._texts[place])
        return Prompt(messages=[{"role": "user", "content": self._texts[place]}])

    def lines(self) -> bytes:
        """As msgspec encodes the prompts: one JSON line for each."""
        return _TEXT_OPENS + (_TEXT_CLOSES + _TEXT_OPENS).join(map(_encode, self._texts)) + _TEXT_CLOSES

    @property
    def counts(self) -> PromptCounts:
        total, longest = len(self._texts), max(map(len, self._texts), default=0)
        return PromptCounts(
            prompts=total,
            asked=total,
            bytes=sum(map(len, map(_encode, self._texts))) + total * (_TEXT_BYTES - len('""')),
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


# --- a file of prompts -----------------------------------------------------------------------------------------------

_BOM: Final = b"\xef\xbb\xbf"
_CHUNK_BYTES: Final = 4_000_000  # a file whose first prompts are longer than this together gets smaller chunks
_CHUNK_MAX_BYTES: Final = 64_000_000  # what API and worker must be able to hold, several times over
_LONG_NUMBER: Final = re.compile(rb"\d{19}")
_decode: Final = msgspec.json.Decoder().decode
_SIZE_BESIDE_MESSAGES: Final = prompt_size(Prompt(messages=[])) - len("[]")


class LineSplitter:
    """Lines of a stream, whatever the blocks it comes in.  Holds one line, and of a line that is too long nothing."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, block: bytes) -> Iterator[bytes | None]:
        """The lines that end in this block, without their `\\n`; None for one that is longer than `max_bytes`."""
        first, *others = block.split(b"\n")
        self._keep(first)
        for piece in others:
            yield self._line()
            self._keep(piece)

    def close(self) -> bytes | None:
        """What follows the last line end."""
        return self._line()

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            self._parts.clear()
        else:
            self._parts.append(piece)

    def _line(self) -> bytes | None:
        line = None if self._size > self._max_bytes else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return line


class KeySet:
    """Which keys were seen, as 8 bytes each in open-addressed tables: 16 to 27 MB for a million, where a set takes 90.

    Two different keys among a million are taken for one with a chance of 3 in 100 million.  Many small tables, so
    that none takes long to grow."""

    _TABLES: Final = 256
    _FIRST_SLOTS: Final = 16

    def __init__(self) -> None:
        self._tables = [array("Q", bytes(8 * self._FIRST_SLOTS)) for _ in range(self._TABLES)]
        self._used = [0] * self._TABLES

    def add(self, key: str) -> bool:
        """Whether the key is new."""
        fingerprint = hash(key) & 0xFFFF_FFFF_FFFF_FFFF or 1  # SipHash, keyed by the process
        number = fingerprint % self._TABLES
        table = self._tables[number]
        slot = self._slot(table, fingerprint)
        if table[slot]:
            return False
        table[slot] = fingerprint
        self._used[number] += 1
        if 5 * self._used[number] > 3 * len(table):
            grown = array("Q", bytes(8 * 2 * len(table)))
            for kept in table:
                if kept:
                    grown[self._slot(grown, kept)] = kept
            self._tables[number] = grown
        return True

    def _slot(self, table: array[int], fingerprint: int) -> int:
        """Where it is, or where it would go."""
        last = len(table) - 1
        slot = (fingerprint >> 8) & last
        while table[slot] not in (0, fingerprint):
            slot = (slot + 1) & last
        return slot


class PromptReader:
    """A JSONL file of prompts, read block by block: feed() and close() give the chunks to store.

    A chunk is one JSON line per prompt, as the store keeps them.  All chunks but the last hold `chunk_size` prompts.
    line_max_bytes: longer lines are refused unread.  Lines count from 1, blank ones too."""

    def __init__(self, *, chunk_size: int, prompts_max: int, prompt_max_chars: int, line_max_bytes: int) -> None:
        self.chunk_size = chunk_size
        self.faults: list[Fault] = []
        self._prompts_max = prompts_max
        self._prompt_max_chars = prompt_max_chars
        self._lines = LineSplitter(line_max_bytes)
        self._line_max_bytes = line_max_bytes
        self._number = 0
        self._keys = KeySet()
        self._chunk = bytearray()
        self._in_chunk = 0
        self._chunks = 0
        self._over = False
        self._tally = dict.fromkeys(PromptCounts.__struct_fields__, 0)

    @property
    def hopeless(self) -> bool:
        """Whether reading on could tell nothing more that is worth knowing."""
        return self._over or len(self.faults) >= FAULTS_MAX

    @property
    def counts(self) -> PromptCounts:
        return PromptCounts(**self._tally)

    def feed(self, block: bytes) -> list[bytes]:
        """The chunks that were completed; none any more once a fault was found."""
        chunks: list[bytes] = []
        for line in self._lines.feed(block):
            self._read(line, chunks)
            if self.hopeless:
                break
        return chunks

    def close(self) -> list[bytes]:
        """The last chunk, if the file ended in one.  From here on `faults` is complete."""
        chunks: list[bytes] = []
        if not self.hopeless:
            self._read(self._lines.close(), chunks)
        if not (self.faults or self._tally["prompts"]):
            self.faults.append(Fault("", "wrong_length", "must hold at least one prompt"))
        if self._in_chunk and not self.faults:
            chunks.append(bytes(self._chunk))
        return chunks

    def _read(self, line: bytes | None, chunks: list[bytes]) -> None:
        self._number += 1
        if line is None:
            self._fault("prompt_too_long", f"is longer than {self._line_max_bytes:,} bytes")
            return
        if self._number == 1:
            line = line.removeprefix(_BOM)
        if not line or line.isspace():
            return
        if self._tally["prompts"] >= self._prompts_max:
            self._fault("too_many_prompts", f"is one prompt too many: a file may have {self._prompts_max:,}")
            self._over = True
            return
        found = self._parsed(line)
        if isinstance(found, _Line):
            self._take(found, chunks)
        else:
            self.faults += [Fault(f"/lines/{self._number}{f.pointer}", f.code, f.detail) for f in found]

    def _parsed(self, line: bytes) -> _Line | list[Fault]:
        try:
            value = _decode(line)
        except RecursionError:
            return [Fault("", "malformed_json", f"is nested deeper than {DEEPEST_JSON} levels")]
        except UnicodeDecodeError:
            return [Fault("", "malformed_json", "is not UTF-8")]
        except msgspec.MsgspecError as error:
            place = str(error).rpartition("(byte ")[2][:-1]
            at = f"; reading stopped at byte {place}" if place.isdecimal() else ""
            return [Fault("", "malformed_json", f"is not valid JSON{at}")]
        found = _plain(value) or _checked(value, line)
        if isinstance(found, list):
            return found
        if found.chars > self._prompt_max_chars:
            return [Fault("", "prompt_too_long", f"is longer than {self._prompt_max_chars:,} characters")]
        if found.key is not None and not self._keys.add(found.key):
            return [Fault("/key", "duplicate_prompt_key", "is the key of an earlier prompt")]
        return found

    def _take(self, found: _Line, chunks: list[bytes]) -> None:
        tally = self._tally
        tally["prompts"] += 1
        tally["asked"] += found.asked
        tally["toolless"] += found.toolless
        tally["formatless"] += found.formatless
        tally["unreferenced"] += found.unreferenced
        tally["unpairable"] += found.asked and not found.pairable
        tally["bytes"] += found.size
        tally["longest_chars"] = max(tally["longest_chars"], found.chars)
        if found.bare:
            tally["bare"] += 1
            tally["longest_bare_chars"] = max(tally["longest_bare_chars"], found.chars)
        if self.faults:
            return
        self._chunk += found.record
        self._chunk += b"\n"
        self._in_chunk += 1
        if len(self._chunk) > _CHUNK_MAX_BYTES:
            self._fault(
                "prompt_too_long",
                f"is too long beside those before it: {self.chunk_size} in a row may have {_CHUNK_MAX_BYTES:,} bytes",
            )
            self._over = True
            return
        if not self._chunks and len(self._chunk) > _CHUNK_BYTES:
            self.chunk_size = self._in_chunk
        if self._in_chunk == self.chunk_size:
            chunks.append(bytes(self._chunk))
            self._chunk.clear()
            self._in_chunk = 0
            self._chunks += 1

    def _fault(self, code: str, detail: str) -> None:
        self.faults.append(Fault(f"/lines/{self._number}", code, detail))


class _Line(msgspec.Struct):
    """A prompt that is right.  record: as it is stored.  size: of `prompt_size`.  bare, toolless, formatless: whether
    it takes what its job says for all.  pairable: see `may_give_a_pair`."""

    record: bytes
    key: str | None
    size: int
    chars: int
    bare: bool
    pairable: bool
    asked: bool = True
    toolless: bool = True
    formatless: bool = True
    unreferenced: bool = True


def _plain(value: Any) -> _Line | None:
    """What nearly all prompts are: a text, or messages of role and text, with or without a key.  Three times as fast as
    the whole check, which decides where this one does not know."""
    key: str | None = None
    if type(value) is str:
        value = {"messages": [{"role": "user", "content": value}]} if value else None
    if type(value) is not dict or type(messages := value.get("messages")) is not list:
        return None
    if len(value) > 1:
        key = value.get("key")
        if len(value) > 2 or type(key) is not str or not 0 < len(key) <= KEY_MAX_CHARS:
            return None
    if not 0 < len(messages) <= MESSAGES_MAX:
        return None
    chars, bare, asking = 0, True, []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or role not in ROLES or type(content) is not str:
            return None
        chars += len(content)
        if role in INSTRUCTIONS:
            bare = False
        else:
            asking.append(role)
    packed = _encode(messages)
    record = b'{"messages":' + packed + (b"}" if key is None else b',"key":' + _encode(key) + b"}")
    return _Line(record, key, len(packed) + _SIZE_BESIDE_MESSAGES, chars, bare, asking == ["user"])


def _checked(value: Any, line: bytes) -> _Line | list[Fault]:
    if line.count(b"{") + line.count(b"[") > DEEPEST_JSON and deeper_than(DEEPEST_JSON, value):
        return [Fault("", "malformed_json", f"is nested deeper than {DEEPEST_JSON} levels")]
    if _LONG_NUMBER.search(line) and _has_huge_number(value):
        return [Fault("", "malformed_json", "holds a whole number of more than 64 bits")]
    prompt = read_prompt(value)
    if not isinstance(prompt, Prompt):
        return prompt
    return _Line(
        record=_encode(prompt),
        key=prompt.key,
        size=prompt_size(prompt),
        chars=chars_of(prompt),
        bare=prompt.is_bare,
        pairable=may_give_a_pair(prompt),
        asked=prompt.completion is None,
        toolless=not prompt.tools,
        formatless=not prompt.response_format,
        unreferenced=prompt.reference is None,
    )


def deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects lie more than `levels` deep in each other.  Without recursion, which is the point."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [inner for inner in layer if isinstance(inner, dict | list)]
        if not layer:
            return False
        layer = [inner for outer in layer for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return True


def _has_huge_number(value: Any) -> bool:
    layer = [value]
    while layer:
        if any(type(inner) is int and not -(2**63) <= inner < 2**64 for inner in layer):
            return True
        deeper = [inner for inner in layer if isinstance(inner, dict | list)]
        layer = [inner for outer in deeper for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return False

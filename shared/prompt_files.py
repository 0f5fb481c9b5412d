"""A file of prompts, read as it arrives.

Everything here is pure: bytes in, chunks to store and faults out.  Faults name the place and never the value."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from shared.errors import Fault
from shared.exports import may_give_a_pair
from shared.models import INSTRUCTIONS, Prompt, PromptCounts
from shared.pricing import prompt_size
from shared.prompts import (
    DEEPEST_JSON,
    FAULTS_MAX,
    KEY_MAX_CHARS,
    MESSAGES_MAX,
    ROLES,
    TOO_DEEP,
    bounds_fault,
    chars_of,
    json_fault,
    read_prompt,
)

_BOM: Final = b"\xef\xbb\xbf"
_CHUNK_BYTES: Final = 4_000_000  # a file whose first prompts are longer than this together gets smaller chunks
_CHUNK_MAX_BYTES: Final = 64_000_000  # what API and worker must be able to hold, several times over
_LONG_NUMBER: Final = re.compile(rb"\d{19}")
_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder().encode
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
            return [Fault("", "malformed_json", TOO_DEEP)]
        except UnicodeDecodeError:
            return [Fault("", "malformed_json", "is not UTF-8")]
        except msgspec.MsgspecError as error:
            return [Fault("", "malformed_json", json_fault(error))]
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
    suspect = line.count(b"{") + line.count(b"[") > DEEPEST_JSON or _LONG_NUMBER.search(line)
    if suspect and (wrong := bounds_fault(value)) is not None:
        return [Fault("", "malformed_json", wrong)]
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

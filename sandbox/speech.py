"""What a model of the sandbox says, before it is cut to length and put into an envelope."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from sandbox.store import Json


@dataclass(frozen=True, slots=True)
class Answer:
    text: str = ""
    refusal: str | None = None
    filtered: bool = False  #: ended by the content filter
    cut_short: bool = False  #: ended by an inner limit
    tool_calls: list[Json] = field(default_factory=list)


def text_of(message: Json) -> str:
    """What a message says in words; parts that are not text are left out."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content if isinstance(content, str) else ""


def system_text(body: Json) -> str:
    return "\n".join(text_of(m) for m in body["messages"] if m["role"] in {"system", "developer"})


def last_user_text(messages: list[Json]) -> str:
    return next((text_of(m) for m in reversed(messages) if m["role"] == "user"), "")


def draw(below: int, *parts: str) -> int:
    """A number in [0, below) that the parts decide, the same in every process."""
    digest = hashlib.sha256("\x1f".join(parts).encode(errors="replace")).digest()
    return int.from_bytes(digest[:8], "big") % below

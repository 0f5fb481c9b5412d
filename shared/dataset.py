"""A curated example as bytes: training lines, raw lines and the digest that is a dataset's identity.

The same input gives the same bytes, on any machine: key order is fixed here, what the caller wrote inside a field
(a tool's schema, a tool call's arguments) stays as it was written, and nothing depends on time or chance."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from shared.completions import Decision
from shared.models import JobSpec, JsonObject, Prompt

MESSAGE_FIELDS: Final = ("role", "name", "content", "tool_calls", "tool_call_id", "weight")
"""What a training line knows of a message, in the order it is written (openai-contract §1.3)."""


def content_of(message: Mapping[str, Any]) -> str:
    """The text of a message's content.  Of a list of parts, the text parts one after the other; "" when null."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def text_of(message: Mapping[str, Any]) -> str:
    """What graders compare and what an answer's length is measured on.

    The tool calls as canonical JSON, without their random ids, when there are any: the call is the answer, and talk
    beside it is not.  Else the content; else the refusal, for a refusal is an answer too."""
    if calls := message.get("tool_calls"):
        return msgspec.json.encode([_call_made(call) for call in calls], order="sorted").decode()
    return content_of(message) or str(message.get("refusal") or "")


def chat_line(prompt: Prompt, message: JsonObject, *, parallel_tool_calls: bool = True) -> bytes:
    """One line of OpenAI's chat format for supervised fine-tuning, newline included.

    message: the teacher's answer, of which role, content and tool_calls are kept.  Assistant turns inside the prompt
    get weight 0 unless the caller weighted them: the student learns the teacher's words, and not those of whoever
    spoke earlier in the conversation.
    parallel_tool_calls: as the teacher was asked; written only where the prompt has tools, as the API wants it."""
    line: JsonObject = {"messages": [*map(_as_context, prompt.messages), _as_lesson(message)]}
    if prompt.tools:
        line |= {"tools": prompt.tools, "parallel_tool_calls": parallel_tool_calls}
    return msgspec.json.encode(line) + b"\n"


def example_line(spec: JobSpec, prompt: Prompt, message: JsonObject) -> bytes:
    """`chat_line` of one accepted completion of a job, with the parameters its teacher was asked with."""
    return chat_line(prompt, message, parallel_tool_calls=_parallel_tool_calls(spec))


def _parallel_tool_calls(spec: JobSpec) -> bool:
    """As the teacher was asked."""
    return bool(spec.teacher.params.get("parallel_tool_calls", True))


def dpo_line(spec: JobSpec, prompt: Prompt, preferred: JsonObject, other: JsonObject) -> bytes:
    """One line of OpenAI's format for direct preference optimization, newline included.

    preferred, other: two answers to the prompt, texts both, of which the student is to prefer the first."""
    asked: JsonObject = {"messages": [*map(_as_context, prompt.messages)]}
    if prompt.tools:
        asked |= {"tools": prompt.tools, "parallel_tool_calls": _parallel_tool_calls(spec)}
    line = {
        "input": asked,
        "preferred_output": [_as_lesson(preferred)],
        "non_preferred_output": [_as_lesson(other)],
    }
    return msgspec.json.encode(line) + b"\n"


def raw_line(prompt: Prompt, output: JsonObject | None, decision: Decision, *, sample: int | None = None) -> bytes:
    """One completion with what curating decided of it, newline included: every completion has one, kept or not.

    output: the teacher's message as it came, null where the call failed.  sample: its number; given, it is written with
    the score, and in jobs that have neither samples nor scores it is not given.  Apart from that, every key is always
    present."""
    line: JsonObject = {
        "prompt_key": prompt.key,
        "messages": prompt.messages,
        "tools": prompt.tools,
        "output": output,
        "split": decision.split,
        "status": decision.status,
        "reason": decision.reason,
    }
    if sample is not None:
        line |= {"sample": sample, "score": decision.score}
    return msgspec.json.encode(line) + b"\n"


class Digest:
    """sha256, lines and bytes of a stream of lines, in constant memory."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.lines = 0
        self.bytes = 0

    def update(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self.lines += chunk.count(b"\n")
        self.bytes += len(chunk)

    @property
    def sha256(self) -> str:
        """Of all chunks so far, in hex."""
        return self._sha256.hexdigest()


def _as_context(message: JsonObject) -> JsonObject:
    kept = {field: message[field] for field in MESSAGE_FIELDS if message.get(field) is not None}
    return kept | {"weight": message.get("weight") or 0} if message.get("role") == "assistant" else kept


def _as_lesson(message: JsonObject) -> JsonObject:
    lesson: JsonObject = {"role": "assistant"}
    if content := content_of(message):
        lesson["content"] = content
    if calls := message.get("tool_calls"):
        lesson["tool_calls"] = [
            {"id": call.get("id"), "type": "function", "function": _function_of(call)} for call in calls
        ]
    return lesson


def _function_of(call: JsonObject) -> JsonObject:
    function = call.get("function") or {}
    return {"name": function.get("name"), "arguments": function.get("arguments")}


def _call_made(call: JsonObject) -> JsonObject:
    """A tool call with its arguments as JSON, so that spaces and key order inside them do not count."""
    made = _function_of(call)
    # Arguments that are not JSON, which models do write, are compared as the text they are.
    with contextlib.suppress(msgspec.MsgspecError, TypeError, RecursionError):
        made["arguments"] = msgspec.Raw(msgspec.json.encode(msgspec.json.decode(made["arguments"]), order="sorted"))
    return made

"""Training files: what a line must look like, and what is to be learned from it."""

from __future__ import annotations

import msgspec

from sandbox.errors import ApiError
from sandbox.params import check_messages
from sandbox.speech import last_user_text, text_of
from sandbox.store import Json
from sandbox.student import Example

LEAST_EXAMPLES = 10


class BadTrainingFile(Exception):
    """A job's file is of no use; the job fails with this code, after its creation has been answered with 200."""

    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


def read_examples(content: bytes, *, method: str, param: str = "training_file") -> tuple[list[Example], int]:
    """The examples of a file and the number of tokens in it.  method: "supervised" or "dpo"."""
    examples: list[Example] = []
    lines = [line for line in content.splitlines() if line.strip()]
    for number, line in enumerate(lines, 1):
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise _bad(param, number, "is not valid JSON") from None
        if not isinstance(row, dict):
            raise _bad(param, number, "is not an object")
        examples += _learned(row, number, method=method, param=param)
    if param == "training_file" and len(lines) < LEAST_EXAMPLES:
        message = f"Training file has {len(lines)} example(s), but must have at least {LEAST_EXAMPLES} examples"
        raise BadTrainingFile("invalid_n_examples", message, param)
    return examples, sum(len(line) for line in lines) // 4


def _bad(param: str, number: int, what: str) -> BadTrainingFile:
    return BadTrainingFile(f"invalid_{param}", f"Invalid file format. Line {number} {what}.", param)


def _learned(row: Json, number: int, *, method: str, param: str) -> list[Example]:
    try:
        if method == "dpo":
            asked = (row.get("input") or {}).get("messages") if isinstance(row.get("input"), dict) else None
            check_messages(asked)
            chosen = [row.get("preferred_output"), row.get("non_preferred_output")]
            for output in chosen:
                check_messages(output)
            return [Example(last_user_text(asked or []), text_of(row["preferred_output"][-1]))]
        check_messages(row.get("messages"))
    except ApiError as error:
        raise _bad(param, number, f"is wrong: {error}") from None
    messages = row["messages"]
    spoken = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
    if not spoken:
        raise _bad(param, number, "has no message of the assistant")
    return [
        Example(last_user_text(messages[:n]), text_of(messages[n])) for n in spoken if messages[n].get("weight", 1) != 0
    ]

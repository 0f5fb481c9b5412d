"""The lines of a batch: what an input file takes, and what each line of its answers means."""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Literal

import msgspec

from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderUnavailable,
)
from shared.models import JsonObject
from shared.ports import Completion
from worker.providers.answers import error_of, parse_completion, word

_ENDPOINT: Final = "/v1/chat/completions"


@dataclass(frozen=True)
class BatchLimits:
    """Of one input file, as the provider sets them."""

    requests: int = 50_000
    file_bytes: int = 200_000_000


@dataclass
class Room:
    """What one input file still takes.  The first line always fits: a file without one would be none."""

    limits: BatchLimits
    requests: int = 0
    file_bytes: int = 0

    def take(self, line_bytes: int) -> bool:
        fits = self.requests < self.limits.requests and self.file_bytes + line_bytes <= self.limits.file_bytes
        if not fits and self.requests:
            return False
        self.requests += 1
        self.file_bytes += line_bytes
        return True


def request_line(index: int, body: JsonObject) -> bytes:
    line = {"custom_id": str(index), "method": "POST", "url": _ENDPOINT, "body": body}
    return msgspec.json.encode(line) + b"\n"


class _Response(msgspec.Struct):
    status_code: int
    body: msgspec.Raw = msgspec.Raw()
    request_id: str | None = None


class _LineError(msgspec.Struct):
    code: str | None = None


class AnswerLine(msgspec.Struct):
    """One line of an output or error file."""

    custom_id: str
    response: _Response | None = None
    error: _LineError | None = None

    @property
    def index(self) -> int | None:
        """The prompt it answers; None for an id that was not ours."""
        text = self.custom_id
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None

    @property
    def is_answered(self) -> bool:
        return self.response is not None and self.response.status_code == HTTPStatus.OK


_lines: Final = msgspec.json.Decoder(AnswerLine)


def read_line(line: bytes) -> AnswerLine | None:
    """None for what is no such line."""
    try:
        return _lines.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def completion_of(line: AnswerLine) -> Completion:
    """Of a line that is answered.  Raises `ProviderError` when it cannot be read."""
    response = line.response
    assert response is not None
    request_id = response.request_id
    return parse_completion(
        bytes(response.body), lambda name: request_id if name == "x-request-id" else None, latency_ms=None
    )


def failure_of(line: AnswerLine) -> ProviderError:
    """Why a line has no completion.  The line was not billed: nothing failed in a batch is."""
    response = line.response
    if response is None:
        code = line.error.code if line.error is not None else None
        return ProviderUnavailable(
            "The batch ended before this prompt was asked.",
            billed_maybe=False,
            provider_code=word(code) or "batch_line_without_response",
        )
    request_id = response.request_id
    return error_of(
        response.status_code, bytes(response.body), lambda name: request_id if "request-id" in name else None
    )


def after_line(error: ProviderError, *, attempt: int, attempts_max: int) -> Literal["again", "failed", "pause", "stop"]:
    """What becomes of a prompt whose line failed.  again: in a further batch.  pause, stop: the job, and the prompt
    is asked again should it go on."""
    match error:
        case ProviderQuotaExhausted():
            return "pause"
        case ProviderAuthFailed() | ProviderModelMissing():
            return "stop"
        case _ if error.retryable and attempt < attempts_max:
            return "again"
        case _:
            return "failed"

"""A file on its way to us, block by block: as a raw body, or as the `file` part of a form, as OpenAI's SDK sends it.

Forms are taken apart as they arrive: the framework's own form parser would first spool the whole file to disk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from api.problems import BodyTooLarge, UnsupportedMediaType
from shared.errors import BadRequest, Fault, ValidationFailed
from shared.prompts import token, unknown_field
from shared.rules import invalid

LINES: Final = ("application/jsonl", "application/x-ndjson")
FORM: Final = "multipart/form-data"
_PURPOSE_MAX_BYTES: Final = 100
_FILENAME_MAX_CHARS: Final = 255
_PARTS: Final = ("file", "purpose")


class RawUpload:
    """The body is the file."""

    def __init__(self, request: Request, limit: int) -> None:
        self.filename: str | None = None
        self._request = request
        self._limit = limit

    def blocks(self) -> AsyncIterator[bytes]:
        return _body(self._request, self._limit)


class FormUpload:
    """The body is a form with one file in it.  `purpose` is read past, because OpenAI's SDK insists on sending it."""

    def __init__(self, request: Request, boundary: bytes, limit: int) -> None:
        self.filename: str | None = None
        self._request = request
        self._limit = limit
        self._boundary = boundary
        self._part = ""
        self._seen: list[str] = []
        self._header = [b"", b""]
        self._disposition = b""
        self._blocks: list[bytes] = []
        self._purpose_bytes = 0
        self._ended = False

    async def blocks(self) -> AsyncIterator[bytes]:
        callbacks: Any = {
            "on_part_begin": self._part_begins,
            "on_header_field": lambda data, start, end: self._add_to_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_to_header(1, data[start:end]),
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }
        try:
            parser = MultipartParser(self._boundary, callbacks)
            async for block in _body(self._request, self._limit):
                parser.write(block)
                for data in self._blocks:
                    yield data
                self._blocks.clear()
        except FormParserError:
            raise _malformed("The form cannot be read.") from None
        if not self._ended:
            raise _malformed("The form breaks off before its last boundary.")
        if "file" not in self._seen:
            raise invalid([Fault("/file", "required", "is required")])

    def _part_begins(self) -> None:
        self._part = ""
        self._disposition = b""
        self._header = [b"", b""]

    def _add_to_header(self, place: int, data: bytes) -> None:
        self._header[place] += data

    def _header_ends(self) -> None:
        if self._header[0].lower() == b"content-disposition":
            self._disposition = self._header[1]
        self._header = [b"", b""]

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._part = _text(options.get(b"name", b""))
        if self._part not in _PARTS:
            raise _refused("unknown_field", self._part)
        if self._part in self._seen:
            raise _refused("duplicate", self._part)
        self._seen.append(self._part)
        if self._part == "file" and b"filename" in options:
            name = _text(options[b"filename"]).replace("\\", "/").rpartition("/")[2]
            self.filename = "".join(char for char in name if char.isprintable())[:_FILENAME_MAX_CHARS] or None

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part == "file":
            self._blocks.append(data[start:end])
            return
        self._purpose_bytes += end - start
        if self._purpose_bytes > _PURPOSE_MAX_BYTES:
            detail = f"must have at most {_PURPOSE_MAX_BYTES} bytes"
            raise invalid([Fault("/purpose", "wrong_length", detail)])

    def _end(self) -> None:
        self._ended = True


def upload_of(request: Request, limit: int) -> RawUpload | FormUpload:
    """By its media type.  limit: bytes of the whole body."""
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    encoded = request.headers.get("content-encoding", "identity").lower() != "identity"
    kind = media_type.decode("latin-1").lower()
    boundary = options.get(b"boundary", b"")
    if encoded or (kind not in LINES and (kind != FORM or not boundary)):
        raise UnsupportedMediaType(
            f"The body must be {', '.join(LINES)} or {FORM} with a boundary, without a content encoding."
        )
    return FormUpload(request, boundary, limit) if kind == FORM else RawUpload(request, limit)


async def _body(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Counted as it arrives: Content-Length may be missing or untrue."""
    too_large = BodyTooLarge(f"The file may have at most {limit:,} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limit:
        raise too_large
    size = 0
    try:
        async for block in request.stream():
            size += len(block)
            if size > limit:
                raise too_large
            yield block
    except ClientDisconnect:
        raise BadRequest("The upload broke off.") from None


def _malformed(sentence: str) -> BadRequest:
    return BadRequest(sentence, code="malformed_form")


def _refused(code: str, part: str) -> ValidationFailed:
    detail = unknown_field(part, _PARTS) if code == "unknown_field" else "may be given once"
    return invalid([Fault("/" + token(part), code, detail)])


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")

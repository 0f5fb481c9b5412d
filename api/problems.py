"""Errors as HTTP: the only file that knows status numbers.  RFC 9457 on every error, ours and the framework's alike.

The codes and their statuses: api/problem_table.py.  Nothing of the caller's values is ever repeated."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from api.problem_table import PROBLEMS
from shared.errors import DistillError, Fault, RequestError, ValidationFailed
from shared.ids import is_id

_log: Final = structlog.get_logger()

MEDIA_TYPE: Final = "application/problem+json"
RETRY_AFTER_SECONDS: Final = 2
_FAULTS_MAX: Final = 20
_POINTER_MAX_CHARS: Final = 200
_KEY_SHAPED: Final = re.compile(r"\b(?:sk|dk|pk|whsec|key|ghp|xox[a-z])[-_][A-Za-z0-9_\-+/=]{6,}")

#: The framework's own errors, by status.
_FRAMEWORK: Final[Mapping[int, tuple[str, str]]] = {
    400: ("malformed_json", "The request could not be read."),
    404: ("not_found", "There is no such route."),
    405: ("method_not_allowed", "This route does not take this method; see the Allow header."),
    413: ("body_too_large", "The request is too large."),
    415: ("unsupported_media_type", "The body must be application/json."),
}


class BodyTooLarge(RequestError):
    """The body is too large"""

    code = "body_too_large"


class UnsupportedMediaType(RequestError):
    """The body is not declared as the route takes it"""

    code = "unsupported_media_type"


def status_of(error: DistillError) -> int:
    """By its code; a code of its own that the table does not know falls back to that of its class."""
    codes = [error.code, *(cls.code for cls in type(error).__mro__ if issubclass(cls, DistillError))]
    found = (PROBLEMS[code].status for code in codes if code in PROBLEMS)
    return next((status for status in found if status is not None), 500)


def render(request: Request, error: DistillError) -> Response:
    """Any error of ours."""
    status = status_of(error)
    if status == 500:
        _log.error("unexpected_error", error=type(error).__name__, code=error.code)
        return problem(request, "internal", "Something went wrong on our side.  Report the request id.")
    faults = error.faults if isinstance(error, ValidationFailed) else ()
    headers = {}
    wait = getattr(error, "retry_after_seconds", None)
    if wait or error.retryable:
        headers["Retry-After"] = str(wait or RETRY_AFTER_SECONDS)
    if status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="distillery"'
    return problem(
        request,
        error.code,
        str(error),
        status=status,
        param=getattr(error, "param", None),
        retryable=error.retryable,
        faults=faults,
        headers=headers,
    )


def render_http(request: Request, error: HTTPException) -> Response:
    """An error of the framework: unknown route, wrong method, …"""
    code, detail = _FRAMEWORK.get(error.status_code, ("internal", "Something went wrong on our side."))
    return problem(request, code, detail, headers=dict(error.headers or {}))


def problem(
    request: Request,
    code: str,
    detail: str,
    *,
    status: int | None = None,
    param: str | None = None,
    retryable: bool | None = None,
    faults: Sequence[Fault] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    known = PROBLEMS.get(code, PROBLEMS["internal"])
    status = status or known.status or 500
    said = _redacted(detail)
    body = {
        "type": f"/problems/{code}",
        "title": known.title,
        "status": status,
        "code": code,
        "param": None if param is None else _clean(_dotted(param)),
        "detail": said,
        "message": said,  # what OpenAI's SDK makes the text of its exceptions from, and nothing else
        "instance": _clean(request.url.path),
        "request_id": request_id(request),
        "retryable": known.retryable if retryable is None else retryable,
        "errors": [
            {"pointer": _clean(fault.pointer) if fault.pointer else None, "code": fault.code, "detail": fault.detail}
            for fault in faults[:_FAULTS_MAX]
        ],
        **(extra or {}),
    }
    content = msgspec.json.encode(body)
    return Response(content, status, {"Cache-Control": "no-store", **(headers or {})}, MEDIA_TYPE)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For openapi.json: which problems a route answers with."""
    codes = {status: [code for code, known in PROBLEMS.items() if known.status == status] for status in statuses}
    return {
        status: {
            "description": ", ".join(listed),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status, listed in codes.items()
    }


_NULLABLE_TEXT: Final = {"anyOf": [{"type": "string"}, {"type": "null"}]}
_FAULT_FIELDS: Final = {"pointer": _NULLABLE_TEXT, "code": {"type": "string"}, "detail": {"type": "string"}}
_FIELDS: Final = {
    "type": {"type": "string", "format": "uri-reference"},
    "title": {"type": "string"},
    "status": {"type": "integer"},
    "code": {"type": "string"},
    "param": _NULLABLE_TEXT,
    "detail": {"type": "string"},
    "message": {"type": "string"},
    "instance": {"type": "string"},
    "request_id": {"type": "string"},
    "retryable": {"type": "boolean"},
    "errors": {
        "type": "array",
        "items": {"type": "object", "required": list(_FAULT_FIELDS), "properties": _FAULT_FIELDS},
    },
}
SCHEMA: Final = {"title": "Problem", "type": "object", "required": list(_FIELDS), "properties": _FIELDS}


def request_id(request: Request) -> str | None:
    return getattr(request.state, "request_id", None)


def _dotted(param: str) -> str:
    """A pointer as the dotted name OpenAI's errors use: /students/0/model → students.0.model."""
    return param.removeprefix("/").replace("/", ".") if param.startswith("/") else param


def _clean(text: str) -> str:
    """A path or pointer, which may hold what the caller named: cut, printable, without what looks like a key."""
    shown = "".join(char if char.isprintable() else "�" for char in _redacted(text[: _POINTER_MAX_CHARS * 2]))
    return shown if len(shown) <= _POINTER_MAX_CHARS else shown[: _POINTER_MAX_CHARS - 1] + "…"


def _redacted(text: str) -> str:
    plain = text.encode("utf-8", "replace").decode()
    # Our own ids look like keys and are none.
    return _KEY_SHAPED.sub(
        lambda found: found[0] if is_id(found[0].partition("_")[0], found[0]) else "[redacted]", plain
    )

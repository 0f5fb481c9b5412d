"""What surrounds every request: its id, its log line, HEAD where there is GET, the answer to what nobody expected."""

from __future__ import annotations

import re
import time
from typing import Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, reset_contextvars

from api.problems import problem
from shared.ids import new_request_id

_log: Final = structlog.get_logger()
#: In a request's state: only the head of the answer is wanted.  Streams look here, and send nothing after it.
HEAD_ONLY: Final = "head_only"
_ABSOLUTE: Final = re.compile(r"https?://[^/]*(/.*)?", re.IGNORECASE | re.DOTALL)
_ACCEPTED_ID: Final = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_CLIENT_LEFT: Final = 499  # in the log alone, by nginx's word for it: nobody is there to be answered


class RequestContext:
    """Outermost of ours.  The caller's request id is kept when it is plain, replaced when it is not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not scope["path"].startswith("/"):
            scope = _in_origin_form(scope)
        sent = [value for name, value in scope["headers"] if name == b"x-request-id"]
        accepted = len(sent) == 1 and _ACCEPTED_ID.fullmatch(sent[0])
        request_id = sent[0].decode() if accepted else str(new_request_id())
        method, asked_for_head = scope["method"], scope["method"] == "HEAD"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        if asked_for_head:  # RFC 9110: what GET would say, without its body, on every route that has GET
            scope, state[HEAD_ONLY] = {**scope, "method": "GET"}, True
        started_at, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                standing: dict[str, str] = scope["state"].get("rate", {})
                headers += [(name.lower().encode(), value.encode()) for name, value in standing.items()]
                message = {**message, "headers": [*headers, (b"x-content-type-options", b"nosniff")]}
            elif asked_for_head:
                message = {**message, "body": b""}
            await send(message)

        bound = bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:  # with a part of its body sent: no defect of ours, so not logged as one
            status = status or _CLIENT_LEFT
        except Exception:  # the edge of the API: logged, and answered without its text
            _log.exception("request_failed", method=method, route=_route(scope))
            if status:
                raise  # The answer has begun: only a broken connection can still say that it is not whole.
            detail = "Something went wrong on our side.  Report the request id."
            await problem(Request(scope), "internal", detail)(scope, receive, answer)
        finally:
            took_ms = round((time.perf_counter() - started_at) * 1000, 1)
            _log.info("request", method=method, route=_route(scope), status=status, took_ms=took_ms)
            reset_contextvars(**bound)


def _in_origin_form(scope: Scope) -> Scope:
    """`GET http://host/v1/jobs`, as a client of a proxy writes it, asks for /v1/jobs (RFC 9112, 3.2.2)."""
    found = _ABSOLUTE.fullmatch(scope["path"])
    if found is None:
        return scope
    raw = _ABSOLUTE.fullmatch(scope["raw_path"].decode("latin-1"))
    return {**scope, "path": found[1] or "/", "raw_path": ((raw and raw[1]) or "/").encode("latin-1")}


def _route(scope: Scope) -> str:
    """The template of the route, never the path: that may carry anything."""
    return getattr(scope.get("route"), "path", "") or "unknown"

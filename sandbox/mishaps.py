"""What a fault does to one request: another answer in its place, a broken one, a slow one, or none."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from sandbox.errors import ApiError
from sandbox.faults import WIRE_KINDS
from sandbox.store import Json
from sandbox.web import answer, refusal


class Reply:
    """An answer held back until it is known what becomes of it."""

    def __init__(self) -> None:
        self.status = 500
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = list(message.get("headers", []))
        else:
            self.body += message.get("body", b"")

    def give(self, response: Response) -> None:
        """Answer this instead; the common headers that were set stay."""
        kept = [(name, value) for name, value in self.headers if name.startswith((b"x-r", b"openai"))]
        self.status = response.status_code
        self.headers = list(response.raw_headers) + kept
        self.body = bytearray(response.body)

    async def send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": bytes(self.body)})


@dataclass(frozen=True, slots=True)
class Mishap:
    kind: str
    fault: Json
    after_work: bool

    @property
    def status(self) -> str:
        """How the ledger writes it down; empty when the answer's own status stands."""
        if self.kind in {"hang", "hang_after_work", "drop", "drop_after_work", "drop_mid_body"}:
            return self.kind
        if (error := _error(self.kind, self.fault)) is not None:
            return str(error.status)
        return str(self.fault.get("status", 200)) if self.kind == "html" else ""

    async def carry_out(self, reply: Reply, scope: Scope, receive: Receive, send: Send) -> None:
        fault = self.fault
        if (error := _error(self.kind, fault)) is not None:
            reply.give(refusal(error))
            await reply.send(send)
        elif self.kind.startswith("hang"):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_gone(receive), fault.get("seconds", 3600))
            await _close(scope, receive)
        elif self.kind in {"drop", "drop_after_work"}:
            await _close(scope, receive)
        elif self.kind == "drop_mid_body":
            await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
            half = bytes(reply.body[: len(reply.body) // 2])
            await send({"type": "http.response.body", "body": half, "more_body": True})
            await _close(scope, receive)
        elif self.kind == "slow_drip":
            await _drip(reply, send, seconds=fault.get("seconds", 5.0), pieces=fault.get("pieces", 20))
        elif self.kind == "delay":
            await asyncio.sleep(fault.get("seconds", 1.0))
            await reply.send(send)
        else:
            reply.give(_spoilt(self.kind, fault, bytes(reply.body)))
            await reply.send(send)


def mishap_of(fault: Json) -> Mishap:
    kind = fault["kind"]
    return Mishap(kind, fault, bool(fault.get("after_work", WIRE_KINDS[kind])))


def _error(kind: str, fault: Json) -> ApiError | None:
    """The provider's own refusals (openai-contract §3).  Any of message, type, code, param, headers can be given."""
    table: dict[str, tuple[int, str, str, str | None, float | None]] = {
        "rate_limited": (429, "Rate limit reached for requests.", "requests", "rate_limit_exceeded", 1),
        "slow_down": (429, "Please slow down: your traffic grew too fast.", "rate_limit_error", "slow_down", 1),
        "insufficient_quota": (
            429,
            "You exceeded your current quota, please check your plan and billing details.",
            "insufficient_quota",
            "credit_balance_exhausted",
            None,
        ),
        "resource_unavailable": (429, "Resource Unavailable", "rate_limit_error", "resource_unavailable", None),
        "overloaded": (503, "The server is overloaded.", "service_unavailable_error", "server_is_overloaded", 1),
        "server_error": (500, "The server had an error while processing your request.", "server_error", None, None),
        "error": (400, "The sandbox was told to refuse this.", "invalid_request_error", None, None),
    }
    if kind not in table:
        return None
    status, message, type_, code, wait = table[kind]
    headers = {name.lower(): str(value) for name, value in fault.get("headers", {}).items()}
    wait = fault.get("retry_after", wait)
    if wait is not None:
        headers.setdefault("retry-after", str(wait))
    if "should_retry" in fault:
        headers["x-should-retry"] = str(bool(fault["should_retry"])).lower()
    return ApiError(
        fault.get("status", status),
        fault.get("message", message),
        type=fault.get("type", type_),
        code=fault.get("code", code),
        param=fault.get("param"),
        headers=headers,
    )


def _spoilt(kind: str, fault: Json, body: bytes) -> Response:
    if kind == "html":
        page = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"
        return Response(page, fault.get("status", 200), media_type="text/html")
    if kind == "truncated_json":
        return Response(body[: len(body) * 2 // 3], media_type="application/json")
    if kind == "wrong_shape":
        return answer(fault.get("body", {"object": "list", "choices": "none", "data": 7}))
    return Response(_bloated(body, fault.get("bytes", 40_000_000)), media_type="application/json")


def _bloated(body: bytes, size: int) -> bytes:
    """The same answer with `size` more bytes of text."""
    whole: Any = msgspec.json.decode(body)
    filler = "a" * size
    try:
        whole["choices"][0]["message"]["content"] = filler
    except (KeyError, IndexError, TypeError):
        whole = {"filler": filler}
    return msgspec.json.encode(whole)


async def _drip(reply: Reply, send: Send, *, seconds: float, pieces: int) -> None:
    await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
    step = max(1, -(-len(reply.body) // pieces))
    for start in range(0, len(reply.body), step):
        await asyncio.sleep(seconds / pieces)
        part = bytes(reply.body[start : start + step])
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _close(scope: Scope, receive: Receive) -> None:
    """Close the connection without another byte.  The server's protocol puts its transport within reach."""
    scope["state"]["transport"].close()
    await _gone(receive)

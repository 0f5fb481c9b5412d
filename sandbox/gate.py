"""The door every request passes: its id, its key, the fault that may strike it, and its line in the ledger."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import cast

from starlette.applications import Starlette
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from sandbox.errors import ApiError
from sandbox.faults import WIRE_KINDS
from sandbox.mishaps import Mishap, Reply, mishap_of
from sandbox.web import refusal
from sandbox.world import World

ADMIN = "/_sandbox"


class Gate:
    def __init__(self, app: Starlette, world: World) -> None:
        self._app = app
        self._world = world

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"].startswith(ADMIN):
            await self._answer_admin(scope, receive, send)
            return
        world = self._world
        started = time.perf_counter()
        request_id = scope["sandbox.request_id"] = world.new_id("req_")
        body = await _read(receive)
        scope["sandbox.body"] = body
        asks = scope["method"] == "POST" and scope["path"].endswith("/chat/completions")
        with world.ledger.asked() if asks else nullcontext():
            reply, mishap = await self._reply(scope, receive, body)
            reply.headers += [
                (b"date", world.clock.http_date().encode()),
                (b"x-request-id", request_id.encode()),
                (b"openai-processing-ms", str(round((time.perf_counter() - started) * 1000)).encode()),
                (b"openai-organization", b"org-sandbox"),
                (b"openai-version", b"2020-10-01"),
            ]
            status = mishap.status if mishap is not None and mishap.status else str(reply.status)
            world.ledger.count(f"{scope['method']} {self._route(scope)} {status}")
            world.store.flush()
            if mishap is None:
                await reply.send(send)
            else:
                await mishap.carry_out(reply, scope, receive, send)

    async def _reply(self, scope: Scope, receive: Receive, body: bytes) -> tuple[Reply, Mishap | None]:
        reply = Reply()
        try:
            self._check_key(scope)
        except ApiError as error:
            reply.give(refusal(error))
            return reply, None
        fault = self._world.faults.take(WIRE_KINDS, method=scope["method"], path=scope["path"], body=body)
        mishap = mishap_of(fault) if fault is not None else None
        if mishap is None or mishap.after_work:
            await self._work(scope, receive, body, reply)
        return reply, mishap

    async def _work(self, scope: Scope, receive: Receive, body: bytes, reply: Reply) -> None:
        sent = False

        async def replay() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, reply.take)

    async def _answer_admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        reply = Reply()
        scope["sandbox.request_id"] = self._world.new_id("req_")
        await self._app(scope, receive, reply.take)
        self._world.store.flush()
        await reply.send(send)

    def _check_key(self, scope: Scope) -> None:
        """A key is asked for first, as it is at the provider: an unknown route without one is 401, not 404."""
        headers = dict(cast("list[tuple[bytes, bytes]]", scope["headers"]))
        scheme, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise ApiError(
                401,
                "You didn't provide an API key. You need to provide your API key in an Authorization header "
                "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        wanted = self._world.options.api_key
        if key.startswith("sk-invalid") or (wanted is not None and key != wanted):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    def _route(self, scope: Scope) -> str:
        """The path with its ids replaced by names, so that the ledger has one row per route."""
        for route in self._app.routes:
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
                return route.path
        return "unknown"


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)

"""Streamed bodies: lines of a dataset, and a job's events as they happen."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Final

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.middleware import HEAD_ONLY
from api.watch import Watcher
from shared.ids import JobId
from shared.models import Event

_RETRY_MS: Final = 2_000  # how soon a browser connects again after a stream that broke
_UNWANTED: Final = re.compile(r"(?:^|;)\s*q\s*=\s*0(?:\.0*)?\s*(?:;|$)")


class Stream(StreamingResponse):
    """JSON lines.  When the store fails half-way, the connection breaks, so that no one takes a part for the whole."""

    media_type = "application/jsonl"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["state"].get(HEAD_ONLY):
            await _head_of(self, send)
        else:
            await super().__call__(scope, receive, send)


class EventStream(StreamingResponse):
    """Server-sent events.  Holds its place among the tenant's streams until the connection ends, however it does."""

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._frames, self._held = frames, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held, aclosing(self._frames):
            if scope["state"].get(HEAD_ONLY):
                await _head_of(self, send)
            else:
                await super().__call__(scope, receive, send)


async def _head_of(stream: StreamingResponse, send: Send) -> None:
    """The answer to HEAD: nothing of the body is read, or waited for."""
    await send({"type": "http.response.start", "status": stream.status_code, "headers": stream.raw_headers})
    await send({"type": "http.response.body", "body": b""})


def open_event_stream(
    watcher: Watcher,
    held: AsyncExitStack,
    job_id: JobId,
    *,
    after: int,
    keepalive_seconds: float,
    show: Callable[[Event], str],
    allowed: Callable[[], bool],
) -> EventStream:
    """The job's events later than `after`, then those to come, until the terminal one, or until it is not allowed.

    held: let go when the connection ends.  show: an event as JSON.  allowed: asked again whenever the watcher wakes."""
    return EventStream(_frames(watcher, job_id, after, keepalive_seconds, show, allowed), held)


async def _frames(
    watcher: Watcher,
    job_id: JobId,
    after: int,
    keepalive_seconds: float,
    show: Callable[[Event], str],
    allowed: Callable[[], bool],
) -> AsyncGenerator[bytes, None]:
    def frame(event: Event) -> bytes:
        return f"id: {event.sequence}\nevent: {event.type}\ndata: {show(event)}\n\n".encode()

    clock = asyncio.get_running_loop().time
    yield f"retry: {_RETRY_MS}\n\n".encode()
    speak_at = clock() + keepalive_seconds
    async with watcher.watching(job_id) as watched:
        while not watcher.draining:
            if not allowed():
                yield b": the API key was revoked\n\n"
                return
            changed = watched.changed  # taken before looking, so that no change falls between
            ended, last = watched.ended, watched.glance.sequence if watched.glance is not None else 0
            found = await watched.events_after(after, watcher.jobs, frame)
            if found:
                after = found[-1][0]
                yield b"".join(text for _, text in found)
                speak_at = clock() + keepalive_seconds
            elif ended and after >= last:
                return
            else:
                try:
                    async with asyncio.timeout_at(speak_at):  # a job may change all the time and have nothing to tell
                        await changed.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    speak_at = clock() + keepalive_seconds


def wants_events(accept: str | None) -> bool:
    """Whether an Accept header names text/event-stream, and not as unwanted (`q=0`)."""
    ranges = [part.partition(";") for part in (accept or "").lower().split(",")]
    return any(
        kind.strip() == EventStream.media_type and _UNWANTED.search(parameters) is None
        for kind, _, parameters in ranges
    )

"""Uvicorn, taught two things: to hang up on request, and to say where it listens."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sandbox.app import build
from sandbox.options import Options


class HangingUpProtocol(H11Protocol):
    """Puts the connection's transport into the request's scope: ASGI itself has no way to drop a connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "transport": transport}


class AnnouncingServer(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        sys.stdout.write(f"sandbox listening on http://{host}:{port}/v1\n")
        sys.stdout.flush()


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGKILL)


def serve(options: Options) -> None:
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    config = uvicorn.Config(
        build(options),
        host=options.host,
        port=options.port,
        http=HangingUpProtocol,
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,  # the sandbox has a calendar of its own
        timeout_graceful_shutdown=1,
        backlog=2048,
    )
    AnnouncingServer(config).run()

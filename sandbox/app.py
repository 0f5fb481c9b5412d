"""The sandbox put together: routes, errors, and the world behind them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox import admin, batches, chat, files, fine_tuning, models, progress, stored, uploads
from sandbox.errors import ApiError
from sandbox.gate import Gate
from sandbox.options import Options
from sandbox.web import refusal
from sandbox.world import World

_COMPLETION = "/v1/chat/completions/{completion_id}"
_JOB = "/v1/fine_tuning/jobs/{job_id}"

ROUTES = [
    Route("/v1/chat/completions", chat.create, methods=["POST"]),
    Route("/v1/chat/completions", stored.list_all, methods=["GET"]),
    Route(_COMPLETION, stored.retrieve, methods=["GET"]),
    Route(_COMPLETION, stored.update, methods=["POST"]),
    Route(_COMPLETION, stored.delete, methods=["DELETE"]),
    Route(_COMPLETION + "/messages", stored.messages, methods=["GET"]),
    Route("/v1/files", files.create, methods=["POST"]),
    Route("/v1/files", files.list_all, methods=["GET"]),
    Route("/v1/files/{file_id}", files.retrieve, methods=["GET"]),
    Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
    Route("/v1/uploads", uploads.create, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/parts", uploads.add_part, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/complete", uploads.complete, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/cancel", uploads.cancel, methods=["POST"]),
    Route("/v1/fine_tuning/jobs", fine_tuning.create, methods=["POST"]),
    Route("/v1/fine_tuning/jobs", fine_tuning.list_all, methods=["GET"]),
    Route("/v1/fine_tuning/model_limits", fine_tuning.model_limits, methods=["GET"]),
    Route(_JOB, fine_tuning.retrieve, methods=["GET"]),
    Route(_JOB + "/cancel", fine_tuning.cancel, methods=["POST"]),
    Route(_JOB + "/pause", fine_tuning.pause, methods=["POST"]),
    Route(_JOB + "/resume", fine_tuning.resume, methods=["POST"]),
    Route(_JOB + "/events", fine_tuning.events, methods=["GET"]),
    Route(_JOB + "/checkpoints", fine_tuning.checkpoints, methods=["GET"]),
    Route("/v1/batches", batches.create, methods=["POST"]),
    Route("/v1/batches", batches.list_all, methods=["GET"]),
    Route("/v1/batches/{batch_id}", batches.retrieve, methods=["GET"]),
    Route("/v1/batches/{batch_id}/cancel", batches.cancel, methods=["POST"]),
    Route("/v1/models", models.list_all, methods=["GET"]),
    Route("/v1/models/{model}", models.retrieve, methods=["GET"]),
    Route("/v1/models/{model}", models.delete, methods=["DELETE"]),
    Route("/_sandbox/faults", admin.script_faults, methods=["POST"]),
    Route("/_sandbox/faults", admin.faults, methods=["GET"]),
    Route("/_sandbox/faults", admin.clear_faults, methods=["DELETE"]),
    Route("/_sandbox/ledger", admin.ledger, methods=["GET"]),
    Route("/_sandbox/reset", admin.reset, methods=["POST"]),
    Route("/_sandbox/clock", admin.advance_clock, methods=["POST"]),
    Route("/_sandbox/webhooks", admin.configure_webhook, methods=["POST"]),
    Route("/_sandbox/webhooks", admin.webhook_deliveries, methods=["GET"]),
    Route("/_sandbox/webhooks", admin.remove_webhook, methods=["DELETE"]),
]


async def _refuse(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return refusal(error)


async def _refuse_route(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = error.headers if isinstance(error, HTTPException) else None
    if status == 404:
        message, code = f"Invalid URL ({request.method} {request.url.path})", "unknown_url"
    elif status == 405:
        message, code = f"Not allowed to {request.method} on {request.url.path}", "method_not_supported"
    else:
        message, code = str(getattr(error, "detail", "The request is malformed.")), None
    return refusal(ApiError(status, message, code=code, headers=headers))


async def _fail(request: Request, error: Exception) -> Response:
    logging.getLogger("sandbox").error("unexpected error on %s", request.url.path, exc_info=error)
    return refusal(ApiError(500, "The server had an error while processing your request.", type="server_error"))


def build(options: Options) -> Gate:
    world = World(options)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        going_on = asyncio.create_task(progress.run(world))
        yield
        going_on.cancel()
        world.store.close()

    app = Starlette(
        routes=ROUTES,
        exception_handlers={ApiError: _refuse, HTTPException: _refuse_route, Exception: _fail},
        lifespan=lifespan,
    )
    # An unknown path is answered with an error envelope, never with a redirect to a neighbouring one.
    app.router.redirect_slashes = False
    app.state.world = world
    return Gate(app, world)

"""What clients ask most, answered before the framework works out what the route asks for.

A job that is new, or one that has not changed since its client last asked: what FastAPI takes to solve their
dependencies is half of what the answers take."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from api.content import matches
from api.deps import authorized, read_json, services_of
from api.idempotency import idempotency_key
from api.schemas.job_requests import JobCreate
from api.waiting import wait_seconds


def etag_of(version: int) -> str:
    return f'W/"{version}"'


def no_change(etag: str, further: Mapping[str, str] | None = None) -> Response:
    return Response(status_code=304, headers={"ETag": etag, **(further or {})})


class Accepting(APIRoute):
    """POST of a job: its endpoint with what it depends on, in the same order.  A query is the framework's to read."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        whole = super().get_route_handler()

        async def handler(request: Request) -> Response:
            if request.scope["query_string"]:
                return await whole(request)
            caller = await authorized(request, "jobs:write")
            answer: Response = await self.endpoint(
                caller=caller,
                body=await read_json(request, JobCreate),
                services=services_of(request),
                key=await idempotency_key(request),
                wait_seconds=await wait_seconds(request),
                request=request,
            )
            return answer

        return handler


class Revalidated(APIRoute):
    """GET of a job.  Whatever is not the plain question whether it has changed goes the framework's way, where the
    caller is known by then and not counted again."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        whole = super().get_route_handler()

        async def handler(request: Request) -> Response:
            return await _unchanged(request) or await whole(request)

        return handler


async def _unchanged(request: Request) -> Response | None:
    """Raises what the route would: Unauthenticated, Forbidden, TooMany, NotFound, JobDeleted."""
    if_none_match = request.headers.get("if-none-match")
    if if_none_match is None or request.scope["query_string"] or "prefer" in request.headers:
        return None
    caller = await authorized(request, "jobs:read")
    etag = etag_of(await services_of(request).jobs.version(caller.tenant, request.path_params["job_id"]))
    return no_change(etag) if matches(if_none_match, etag) else None

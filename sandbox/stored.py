"""Stored completions: what was created with `store: true`, to be listed, read, relabelled and deleted."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox.errors import missing, not_found
from sandbox.speech import text_of
from sandbox.store import Json
from sandbox.web import (
    answer,
    carries,
    checked_metadata,
    json_object,
    limit_of,
    metadata_filter,
    order_of,
    page,
    world_of,
)
from sandbox.world import World

_KEPT_SECONDS = 30 * 86_400
_DEFAULTS: Json = {
    "temperature": 1.0,
    "top_p": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "seed": None,
    "tools": None,
    "tool_choice": None,
    "response_format": None,
}


def keep(world: World, body: Json, completion: Json, *, request_id: str) -> None:
    """The stored form tells more than the answer did: the request's parameters and its metadata."""
    extras = {name: body.get(name) or default for name, default in _DEFAULTS.items()}
    now = world.clock.now()
    public = {
        **completion,
        **extras,
        "request_id": request_id,
        "input_user": body.get("user"),
        "metadata": checked_metadata(body.get("metadata")),
    }
    world.store.put(
        "completion",
        completion["id"],
        {
            "public": public,
            "messages": body["messages"],
            "visible_at": now + world.options.visibility_delay_seconds,
            "expires_at": now + _KEPT_SECONDS,
        },
    )


def _visible(row: Json, now: float) -> bool:
    return bool(row["visible_at"] <= now < row["expires_at"])


async def list_all(request: Request) -> Response:
    world = world_of(request)
    now = world.clock.now()
    limit, order = limit_of(request, default=20, most=100), order_of(request, default="asc")
    wanted, model = metadata_filter(request), request.query_params.get("model")
    found = [
        row["public"]
        for row in world.store.table("completion").values()
        if _visible(row, now)
        and (model is None or row["public"]["model"] == model)
        and carries(row["public"]["metadata"], wanted)
    ]
    return page(request, found if order == "asc" else reversed(found), limit=limit)


def _row(request: Request) -> tuple[World, str, Json]:
    world = world_of(request)
    key = request.path_params["completion_id"]
    row = world.store.get("completion", key)
    if row is None or not _visible(row, world.clock.now()):
        raise not_found(f"No chat completion found with id '{key}'.", param="completion_id")
    return world, key, row


async def retrieve(request: Request) -> Response:
    return answer(_row(request)[2]["public"])


async def update(request: Request) -> Response:
    """Metadata is replaced as a whole; nothing else can change."""
    world, key, row = _row(request)
    body = await json_object(request)
    if "metadata" not in body:
        raise missing("metadata")
    row["public"]["metadata"] = checked_metadata(body["metadata"])
    world.store.put("completion", key, row)
    return answer(row["public"])


async def delete(request: Request) -> Response:
    world, key, _ = _row(request)
    world.store.drop("completion", key)
    return answer({"id": key, "object": "chat.completion.deleted", "deleted": True})


async def messages(request: Request) -> Response:
    """The inputs alone; the output is the completion's own `choices`."""
    _, key, row = _row(request)
    limit, order = limit_of(request, default=20, most=100), order_of(request, default="asc")
    inputs = [_message(key, n, message) for n, message in enumerate(row["messages"])]
    return page(request, inputs if order == "asc" else reversed(inputs), limit=limit)


def _message(completion_id: str, number: int, message: Json) -> Json:
    parts = message["content"] if isinstance(message.get("content"), list) else None
    row = {
        "id": f"{completion_id}-{number}",
        "role": message["role"],
        "content": text_of(message) if message.get("content") is not None else None,
        "name": message.get("name"),
        "content_parts": parts,
    }
    return row | {name: message[name] for name in ("tool_calls", "tool_call_id") if name in message}

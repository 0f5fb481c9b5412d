"""What every handler needs of HTTP: the body as JSON, pages of a list, metadata and its filter, an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox.errors import ApiError, invalid, missing, wrong_type, wrong_value
from sandbox.store import Json
from sandbox.world import World


def world_of(request: Request) -> World:
    return cast(World, request.app.state.world)


def request_id_of(request: Request) -> str:
    return cast(str, request.scope["sandbox.request_id"])


def answer(body: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, media_type="application/json")


def refusal(error: ApiError) -> Response:
    return answer(error.envelope, status=error.status, headers=error.headers)


async def json_object(request: Request) -> Json:
    """The body, which must be a JSON object; nothing at all counts as `{}`, as it does at the provider."""
    raw = await request.body()
    if not raw:
        return {}
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid(
            "We could not parse the JSON body of your request. The body must be one valid JSON object."
        ) from None
    if not isinstance(body, dict):
        raise invalid("The JSON body of your request must be an object.")
    return body


def text_in(body: Json, name: str) -> str:
    """A required string of the body."""
    if body.get(name) is None:
        raise missing(name)
    if not isinstance(body[name], str):
        raise wrong_type(name, "a string")
    return cast(str, body[name])


def checked_metadata(value: object) -> dict[str, str]:
    """At most 16 pairs of strings, keys up to 64 and values up to 512 characters; absent is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise wrong_type("metadata", "an object")
    if len(value) > 16:
        raise invalid("Invalid 'metadata': at most 16 pairs are allowed.", param="metadata", code="object_too_large")
    for key, text in value.items():
        param = f"metadata.{key[:64]}"
        if not isinstance(text, str):
            raise wrong_type(param, "a string")
        if len(key) > 64 or len(text) > 512:
            raise invalid(
                f"Invalid '{param}': a key is at most 64 characters long, a value at most 512.",
                param=param,
                code="string_above_max_length",
            )
    return dict(value)


def metadata_filter(request: Request) -> dict[str, str] | None:
    """`metadata[k]=v`, all of which must hold; None when the caller asked for `metadata=null`, those without any."""
    if request.query_params.get("metadata") == "null":
        return None
    return {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.multi_items()
        if name.startswith("metadata[") and name.endswith("]")
    }


def carries(metadata: Mapping[str, str] | None, wanted: Mapping[str, str] | None) -> bool:
    if wanted is None:
        return not metadata
    return all((metadata or {}).get(key) == value for key, value in wanted.items())


def limit_of(request: Request, *, default: int, most: int) -> int:
    text = request.query_params.get("limit", str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise wrong_value("limit", f"must be an integer from 1 to {most}")
    return int(text)


def order_of(request: Request, *, default: str) -> str:
    order = request.query_params.get("order", default)
    if order not in {"asc", "desc"}:
        raise wrong_value("order", "must be 'asc' or 'desc'")
    return order


def page(request: Request, rows: Iterable[Json], *, limit: int) -> Response:
    """The part of rows (already in order) that follows the cursor `after`."""
    listed = list(rows)
    after = request.query_params.get("after")
    if after is not None:
        place = next((n for n, row in enumerate(listed) if row["id"] == after), None)
        if place is None:
            raise wrong_value("after", "no such object in this list")
        listed = listed[place + 1 :]
    data = listed[:limit]
    return answer(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": len(listed) > limit,
        }
    )

"""Uploads: a large file brought in parts, put together in the order the caller says."""

from __future__ import annotations

import hashlib

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from sandbox import files
from sandbox.errors import invalid, missing, not_found, wrong_type
from sandbox.store import Json
from sandbox.web import answer, json_object, text_in, world_of
from sandbox.world import World

_OPEN_SECONDS = 3600
_MOST_BYTES = 8 * 1024**3
_MOST_PART_BYTES = 64 * 1024**2


async def create(request: Request) -> Response:
    world = world_of(request)
    body = await json_object(request)
    filename, purpose, mime_type = (text_in(body, name) for name in ("filename", "purpose", "mime_type"))
    size = body.get("bytes")
    if size is None:
        raise missing("bytes")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _MOST_BYTES:
        raise wrong_type("bytes", f"an integer from 1 to {_MOST_BYTES}")
    files.check_name_and_purpose(filename, purpose)
    expiry = files.checked_expiry(body["expires_after"]) if body.get("expires_after") is not None else None
    now = int(world.clock.now())
    upload = {
        "id": world.new_id("upload_"),
        "object": "upload",
        "bytes": size,
        "created_at": now,
        "filename": filename,
        "purpose": purpose,
        "status": "pending",
        "expires_at": now + _OPEN_SECONDS,
        "file": None,
        "mime_type": mime_type,
    }
    world.store.put("upload", str(upload["id"]), {"upload": upload, "parts": {}, "expires_after": expiry})
    return answer(upload)


def _pending(request: Request) -> tuple[World, Json]:
    """Raises 404 for an unknown upload, 400 for one that takes nothing more."""
    world, key = world_of(request), request.path_params["upload_id"]
    row = world.store.get("upload", key)
    if row is None:
        raise not_found(f"No such Upload object: {key}", param="upload_id")
    upload = row["upload"]
    if upload["status"] == "pending" and upload["expires_at"] <= world.clock.now():
        upload["status"] = "expired"
        _forget_parts(world, row)
    if upload["status"] != "pending":
        raise invalid(f"Upload {key} is {upload['status']}.", param="upload_id")
    return world, row


def _forget_parts(world: World, row: Json) -> None:
    for key in row["parts"]:
        world.store.drop_content(key)
    row["parts"] = {}
    world.store.put("upload", row["upload"]["id"], row)


async def add_part(request: Request) -> Response:
    world, row = _pending(request)
    async with request.form() as form:
        data = form.get("data")
        if not isinstance(data, UploadFile):
            raise missing("data")
        content = await data.read()
    if len(content) > _MOST_PART_BYTES:
        raise invalid(f"A part is at most {_MOST_PART_BYTES} bytes.", param="data")
    upload_id = row["upload"]["id"]
    if sum(row["parts"].values()) + len(content) > row["upload"]["bytes"]:
        raise invalid("The parts are more bytes than the upload was announced with.", param="data")
    key = world.new_id("part_")
    world.store.put_content(key, content)
    row["parts"][key] = len(content)
    world.store.put("upload", upload_id, row)
    return answer({"id": key, "object": "upload.part", "created_at": int(world.clock.now()), "upload_id": upload_id})


async def complete(request: Request) -> Response:
    world, row = _pending(request)
    body = await json_object(request)
    parts = body.get("part_ids")
    if parts is None:
        raise missing("part_ids")
    if not isinstance(parts, list) or len(set(map(str, parts))) != len(parts) or not set(parts) <= set(row["parts"]):
        raise invalid("Invalid 'part_ids': unknown or repeated parts.", param="part_ids")
    content = b"".join(world.store.content(key) or b"" for key in parts)
    upload = row["upload"]
    if len(content) != upload["bytes"]:
        raise invalid(f"The parts are {len(content)} bytes, {upload['bytes']} were announced.", param="part_ids")
    if body.get("md5") is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != body["md5"]:
        raise invalid("The md5 of the parts is another one.", param="md5")
    upload["file"] = files.add(
        world, content, filename=upload["filename"], purpose=upload["purpose"], expires_after=row["expires_after"]
    )
    upload["status"] = "completed"
    _forget_parts(world, row)
    return answer(upload)


async def cancel(request: Request) -> Response:
    world, row = _pending(request)
    row["upload"]["status"] = "cancelled"
    _forget_parts(world, row)
    return answer(row["upload"])

"""Files: uploaded, listed, read back byte for byte, deleted."""

from __future__ import annotations

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from sandbox.errors import ApiError, invalid, missing, not_found, wrong_value
from sandbox.store import Json
from sandbox.web import answer, limit_of, order_of, page, world_of
from sandbox.world import World

PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
_BATCH_FILE_SECONDS = 30 * 86_400


async def create(request: Request) -> Response:
    world = world_of(request)
    async with request.form() as form:
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise missing("file")
        if not isinstance(purpose, str):
            raise missing("purpose")
        content, name, expires = await upload.read(), upload.filename or "upload", _expires_after(form)
    return answer(add(world, content, filename=name, purpose=purpose, expires_after=expires))


def _expires_after(form: FormData) -> int | None:
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    return checked_expiry({"anchor": anchor, "seconds": seconds})


def checked_expiry(expiry: object) -> int:
    """Seconds after creation.  expiry: {anchor: "created_at", seconds: 3600..2592000}."""
    given = expiry if isinstance(expiry, dict) else {}
    seconds = str(given.get("seconds"))
    if given.get("anchor") != "created_at":
        raise wrong_value("expires_after.anchor", "supported values are 'created_at'")
    if not seconds.isdigit() or not 3600 <= int(seconds) <= 2_592_000:
        raise wrong_value("expires_after.seconds", "must be from 3600 to 2592000")
    return int(seconds)


def check_name_and_purpose(filename: str, purpose: str) -> None:
    if purpose not in PURPOSES:
        raise wrong_value("purpose", f"supported values are {', '.join(PURPOSES)}")
    if purpose in {"batch", "fine-tune"} and not filename.endswith(".jsonl"):
        raise invalid(f"Invalid file format for purpose '{purpose}'. Must be .jsonl", param="file")


def add(world: World, content: bytes, *, filename: str, purpose: str, expires_after: int | None = None) -> Json:
    check_name_and_purpose(filename, purpose)
    if len(content) > world.options.max_file_bytes:
        raise ApiError(413, f"File is too large: the limit is {world.options.max_file_bytes} bytes.", param="file")
    if not content:
        raise invalid("File is empty.", param="file")
    if purpose == "batch" and expires_after is None:
        expires_after = _BATCH_FILE_SECONDS
    file = write(world, content, filename=filename, purpose=purpose, expires_after=expires_after)
    world.ledger.count("files_created")
    return file


def write(world: World, content: bytes, *, filename: str, purpose: str, expires_after: int | None = None) -> Json:
    """Keep a file, also one the provider itself makes: batch output, training results."""
    now = int(world.clock.now())
    file = {
        "id": world.new_id("file-"),
        "object": "file",
        "bytes": len(content),
        "created_at": now,
        "filename": filename,
        "purpose": purpose,
        "status": "processed",
        "status_details": None,
        "expires_at": None if expires_after is None else now + expires_after,
    }
    world.store.put_content(str(file["id"]), content)
    world.store.put("file", str(file["id"]), file)
    return file


def find(world: World, file_id: str) -> Json:
    """Raises 404 for a file that never was, was deleted, or has expired."""
    file = world.store.get("file", file_id)
    if file is not None and file["expires_at"] is not None and file["expires_at"] <= world.clock.now():
        discard(world, file_id)
        file = None
    if file is None:
        raise not_found(f"No such File object: {file_id}", param="id")
    return file


def discard(world: World, file_id: str) -> None:
    world.store.drop("file", file_id)
    world.store.drop_content(file_id)


def usable(world: World, file_id: object, *, purpose: str, param: str) -> bytes:
    """The content of a file that a job names.  Raises 400 for a file that is unknown or meant for something else."""
    if not isinstance(file_id, str):
        raise missing(param)
    try:
        file = find(world, file_id)
    except ApiError:
        raise invalid(f"invalid {param}: {file_id}", param=param, code="invalid_file") from None
    if file["purpose"] != purpose:
        raise invalid(
            f"File '{file_id}' has purpose '{file['purpose']}' but '{purpose}' is needed.",
            param=param,
            code="invalid_file_purpose",
        )
    return world.store.content(file_id) or b""


async def list_all(request: Request) -> Response:
    world = world_of(request)
    limit, order = limit_of(request, default=10_000, most=10_000), order_of(request, default="desc")
    purpose, now = request.query_params.get("purpose"), world.clock.now()
    found = [
        file
        for file in world.store.table("file").values()
        if (purpose is None or file["purpose"] == purpose) and (file["expires_at"] is None or file["expires_at"] > now)
    ]
    return page(request, found if order == "asc" else reversed(found), limit=limit)


async def retrieve(request: Request) -> Response:
    return answer(find(world_of(request), request.path_params["file_id"]))


async def content(request: Request) -> Response:
    world = world_of(request)
    file = find(world, request.path_params["file_id"])
    return Response(world.store.content(file["id"]) or b"", media_type="application/octet-stream")


async def delete(request: Request) -> Response:
    world = world_of(request)
    file = find(world, request.path_params["file_id"])
    discard(world, file["id"])
    return answer({"id": file["id"], "object": "file", "deleted": True})

"""Files of prompts: uploaded, looked at, deleted."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends, Query, Request, Response

from api.deps import Caller, Wired, authenticate, known_query_only, requires
from api.idempotency import NOT_REPEATABLE
from api.problems import documented
from api.schemas.common import Deleted, Page, page_of
from api.schemas.files import FileOut
from api.uploads import FORM, LINES, upload_of

router = APIRouter(
    prefix="/v1/files",
    tags=["files"],
    dependencies=[Depends(authenticate), Depends(known_query_only)],
    responses=documented(401, 403, 422, 429, 503),
)

Writer = Annotated[Caller, requires("data:write")]
Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query(max_length=100, description="`last_id` of the page before")]
Order = Annotated[Literal["asc", "desc"], Query()]

_LINES_SCHEMA: Final = {
    "type": "string",
    "description": "one prompt per line: a JSON text, or an object with messages, key, tools, response_format,"
    " completion, reference",
}
_FORM_SCHEMA: Final = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": _LINES_SCHEMA | {"format": "binary"},
        "purpose": {"type": "string", "description": "of no effect; OpenAI's SDK insists on it"},
    },
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {FORM: {"schema": _FORM_SCHEMA}} | {kind: {"schema": _LINES_SCHEMA} for kind in LINES},
    }
}


@router.post(
    "", status_code=201, dependencies=[NOT_REPEATABLE], responses=documented(400, 413, 415), openapi_extra=_BODY
)
async def upload_file(request: Request, caller: Writer, services: Wired, response: Response) -> FileOut:
    """Upload prompts as JSON lines, for `source.file_id` of any number of jobs.  Checked to the last line, or refused
    with the lines that are wrong."""
    upload = upload_of(request, services.settings.file_max_bytes)
    file = await services.files.upload(caller.tenant, upload)
    response.headers["Location"] = f"/v1/files/{file.id}"
    return FileOut.of(file)


@router.get("", responses=documented(400))
async def list_files(
    caller: Writer, services: Wired, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> Page[FileOut]:
    """Your files, newest first."""
    files, more = await services.files.page(caller.tenant, limit=limit, after=after, newest_first=order == "desc")
    return page_of([FileOut.of(file) for file in files], has_more=more)


@router.get("/{file_id}", responses=documented(404))
async def get_file(file_id: str, caller: Writer, services: Wired) -> FileOut:
    """What is known of a file.  Its content cannot be read back."""
    return FileOut.of(await services.files.get(caller.tenant, file_id))


@router.delete("/{file_id}", responses=documented(404))
async def delete_file(file_id: str, caller: Writer, services: Wired) -> Deleted:
    """No new job can use the file.  Its prompts are gone at once, or with the last job that was made from them."""
    file = await services.files.delete(caller.tenant, file_id)
    return Deleted(id=file.id, object="distillation.file", deleted=True)

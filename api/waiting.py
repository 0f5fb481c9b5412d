"""`Prefer: wait=N` (RFC 7240): hold an answer until the job has ended, or N seconds have passed."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Depends, Header, Request

from api.deps import Caller, Services, key_held
from shared.errors import Unauthenticated
from shared.ids import JobId

LONGEST_SECONDS: Final = 60
_DIGITS: Final = 4  # more of them are more than that, and thousands would take long to read
_WAIT: Final = re.compile(r'wait\s*=\s*"?(\d+)"?', re.IGNORECASE)


async def wait_seconds(
    request: Request,
    _: Annotated[
        str | None, Header(alias="Prefer", description="`wait=N`: answer once the job has ended, or after N ≤ 60 s")
    ] = None,
) -> int:
    """0 when no wait is asked for.  A preference that cannot be read is one that is not met, and no error."""
    for part in ",".join(request.headers.getlist("prefer")).split(","):
        if found := _WAIT.fullmatch(part.partition(";")[0].strip()):
            digits = found[1].lstrip("0") or "0"
            return LONGEST_SECONDS if len(digits) > _DIGITS else min(int(digits), LONGEST_SECONDS)
    return 0


WaitSeconds = Annotated[int, Depends(wait_seconds)]


async def hold(services: Services, request: Request, caller: Caller, job_id: str, seconds: int) -> dict[str, str]:
    """The headers that say what was done about the preference.  The job must be the caller's.

    Raises Unauthenticated when the caller's key was revoked meanwhile."""
    if not seconds or not services.waits.free(caller.tenant):
        return {}
    with services.waits.taken(caller.tenant), key_held(services, caller) as allowed:

        async def in_vain() -> bool:
            return not allowed() or await request.is_disconnected()

        await services.watcher.until_ended(JobId(job_id), seconds=seconds, abandoned=in_vain)
        if not allowed():
            raise Unauthenticated("The API key is not known any more.", code="invalid_api_key")
    return {"Preference-Applied": f"wait={seconds}"}

"""`Prefer: wait=N` (RFC 7240): hold an answer until the job has ended, or N seconds have passed."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Depends, Header, Request

from api.deps import Caller, Services
from shared.ids import JobId

LONGEST_SECONDS: Final = 60
_WAIT: Final = re.compile(r'wait\s*=\s*"?(\d{1,9})"?', re.IGNORECASE)


async def wait_seconds(
    request: Request,
    _: Annotated[
        str | None, Header(alias="Prefer", description="`wait=N`: answer once the job has ended, or after N ≤ 60 s")
    ] = None,
) -> int:
    """0 when no wait is asked for.  A preference that cannot be read is one that is not met, and no error."""
    for part in ",".join(request.headers.getlist("prefer")).split(","):
        if found := _WAIT.fullmatch(part.partition(";")[0].strip()):
            return min(int(found[1]), LONGEST_SECONDS)
    return 0


WaitSeconds = Annotated[int, Depends(wait_seconds)]


async def hold(services: Services, request: Request, caller: Caller, job_id: str, seconds: int) -> dict[str, str]:
    """The headers that say what was done about the preference.  The job must be the caller's."""
    if not seconds or not services.waits.free(caller.tenant):
        return {}
    with services.waits.taken(caller.tenant):
        await services.watcher.until_ended(JobId(job_id), seconds=seconds, abandoned=request.is_disconnected)
    return {"Preference-Applied": f"wait={seconds}"}

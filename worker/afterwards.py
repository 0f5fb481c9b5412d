"""What becomes of calls that were out when their job ended.

Their answers are stored and paid as they come.  Those of a worker that vanished never come, and no other takes its
chunks over: they are counted as lost once its lease has run out."""

from __future__ import annotations

from typing import Final

import structlog

from shared.ids import JobId
from shared.lifecycle import TERMINAL
from shared.plan import pass_sizes
from shared.store import Store
from shared.store.passes import PassId

_log: Final = structlog.get_logger()
_COUNTED_TOGETHER: Final = 200


class Afterwards:
    """late_seconds: how long the answers of a worker that vanished are waited for."""

    def __init__(self, store: Store, *, late_seconds: float) -> None:
        self._store = store
        self._late_seconds = late_seconds

    async def look(self, job_id: JobId) -> None:
        """Count what is lost by now; the job stays due as long as a worker keeps a call of it."""
        job = await self._store.jobs.load(job_id)
        if job is None or job.status not in TERMINAL:
            await self._store.due.put("out", job_id, None)
            return
        waits: list[float] = []
        for name in pass_sizes(job):
            pass_id = PassId(job_id, name)
            lost, seconds = await self._store.passes.abandoned(pass_id, late_seconds=self._late_seconds)
            for start in range(0, len(lost), _COUNTED_TOGETHER):
                some = lost[start : start + _COUNTED_TOGETHER]
                await self._store.passes.tick(pass_id, job.tenant, "", some, [])
            if lost:
                _log.warning("calls_lost_with_their_worker", job_id=job_id, calls=len(lost))
            if seconds is not None:
                waits.append(seconds)
        await self._store.due.put("out", job_id, min(waits, default=None))

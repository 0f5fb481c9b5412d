"""What becomes of what was under way when its job ended.

Answers are stored and paid as they come.  Those of a worker that vanished never come, and no other takes its chunks
over: they are counted as lost once its lease has run out.  What is reserved then is of a training that the provider
would not cancel, and may be billed as well."""

from __future__ import annotations

from typing import Final

import structlog

from shared.ids import JobId
from shared.lifecycle import TERMINAL
from shared.plan import pass_sizes
from shared.store import Store
from shared.store.jobs import Change
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
        if not waits:
            await self._let_go(job_id)
        await self._store.due.put("out", job_id, min(waits, default=None))

    async def _let_go(self, job_id: JobId) -> None:
        """No call is out any more, and none begins: nobody else moves what is reserved."""
        job = await self._store.jobs.load(job_id)
        if job is not None and (left := job.money.reserved_nano):
            await self._store.jobs.change(job, Change(add={"reserved_nano": -left, "unconfirmed_nano": left}))

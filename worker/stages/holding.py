"""What the owner's pause means at the provider: fine-tuning jobs stand still where it can be, and go on when resumed.

Asking twice does no harm, so nothing is written before: a provider that refuses is asked how the job stands, and one
that is paused already has been asked before a crash."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from shared.models import FineTune
from worker.stages.student import StudentStep

_STANDING_STILL: Final = frozenset({"paused", "pausing"})


class Holding(StudentStep):
    """A submitted fine-tuning job, while its owner has paused the job and after."""

    async def pause(self, tune: FineTune) -> FineTune:
        """Ask for a pause, once.  A provider that pauses nothing trains on: it costs nothing more to wait for it."""
        assert tune.fine_tuning_job_id is not None
        if tune.hold == "resuming":  # it never did
            return await self._kept(replace(tune, hold="paused"))
        if tune.hold is not None:
            return tune
        if not await self._trainer.pause(tune.fine_tuning_job_id):
            job = await self._trainer.poll(tune.fine_tuning_job_id)
            if job is None or job.state in {"succeeded", "failed", "cancelled"}:
                return tune  # over; the next look says how
            if job.status not in _STANDING_STILL:
                self._say(
                    "warn",
                    f"The provider does not pause the training of student {self._number}: it goes on while the job "
                    "waits.",
                )
                return await self._kept(replace(tune, hold="refused"))
        self._say("info", f"The training of student {self._number} is paused at the provider.")
        return await self._kept(replace(tune, hold="paused"))

    async def resume(self, tune: FineTune) -> FineTune:
        """Let go on what was paused by `pause`.  A provider that does not yet is asked again at the next look."""
        assert tune.fine_tuning_job_id is not None
        if tune.hold == "refused":
            return await self._kept(replace(tune, hold=None))
        if tune.hold is None:
            return tune
        if not await self._trainer.resume(tune.fine_tuning_job_id):
            job = await self._trainer.poll(tune.fine_tuning_job_id)
            if job is not None and job.status in _STANDING_STILL:
                if tune.hold == "resuming":
                    return tune
                self._say(
                    "warn",
                    f"The provider does not resume the training of student {self._number} yet.  It is asked again.",
                )
                return await self._kept(replace(tune, hold="resuming"))
        self._say("info", f"The training of student {self._number} goes on.")
        return await self._kept(replace(tune, hold=None))

    async def adopt(self, tune: FineTune) -> FineTune:
        """A submission whose outcome nobody wrote down may train at the provider; what shows is followed."""
        found = await self._found(tune)
        if not found:
            return tune
        submitted = replace(tune, step="submitted", fine_tuning_job_id=found[0].id, status=found[0].status)
        return await self._kept(submitted)

    async def _kept(self, tune: FineTune) -> FineTune:
        await self._keep(tune)
        return tune

"""From a fine-tuning job that has succeeded to a model that answers: at once, from its last checkpoint, or after a
deployment that its owner makes and tells us of."""

from __future__ import annotations

from msgspec.structs import replace

from shared.errors import ProviderModelMissing, ProviderRejected
from shared.models import Checkpoint, FineTune
from shared.ports import TrainingJob
from worker.stages.deployments import AWAITING, AWAITING_SECONDS, take_up
from worker.stages.preflight import last_day
from worker.stages.recording import Recording
from worker.stages.student import StudentStep


class Landing(StudentStep):
    """The last step of one student's training."""

    async def land(self, tune: FineTune, job: TrainingJob) -> FineTune | None:
        """The student as it is kept: ended, or awaiting its deployment.  None: the provider names no model yet.

        tune: with what the look at `job` has shown."""
        way = self._tools.providers.settings(self._student.provider).tuned_model
        model, checkpoint = await self.model_of(job)
        if model is None and way != "deployment":
            return None
        others = await self._others_ended(tune)
        recording = Recording(self._job, self._number, self._tools, self._keep, self._events)
        tune = await recording.complete(tune, job)
        tune = replace(self._settled(tune, job, *others), fine_tuned_model=model)
        if model is not None:
            retires = await last_day(self._tools, self._student.provider, model, otherwise=tune.shutdown_date)
            tune = replace(tune, shutdown_date=retires)
        if way == "deployment":
            tune = replace(tune, step="awaiting", status=AWAITING)
            self._say(
                "warn",
                f"Student {self._number} is trained and waits for its deployment.  Deploy it at the provider, then "
                f"tell with POST /v1/jobs/{self._job.id}/students/{self._number}/endpoint where it answers.",
                {"status": AWAITING, "fine_tuned_model": model, "checkpoint": checkpoint and checkpoint.id},
            )
            await self._keep(tune)
            return tune
        self._say("info", f"Student {self._number} is trained.", {"fine_tuned_model": model})
        return await self._end(tune, status="succeeded", error=None)

    async def await_endpoint(self) -> float | None:
        """Seconds until the next look at the row, None when the student answers somewhere."""
        if self._job.untaken_endpoint(self._number) is None:
            return AWAITING_SECONDS
        await self._end(await take_up(self._job, self._number, self._tools), status="succeeded", error=None)
        return None

    async def model_of(self, job: TrainingJob) -> tuple[str | None, Checkpoint | None]:
        """The model that a training has made, None while the provider names none; and the last checkpoint, where the
        model is one or may be."""
        way = self._tools.providers.settings(self._student.provider).tuned_model
        checkpoint = await self._last_checkpoint(job.id) if way != "ready" else None
        if way != "checkpoint" and job.fine_tuned_model is not None:
            return job.fine_tuned_model, checkpoint
        return (checkpoint.model if checkpoint is not None else None), checkpoint

    async def _last_checkpoint(self, fine_tuning_job_id: str) -> Checkpoint | None:
        """None also where the provider has no list of them: a deployment needs none."""
        try:
            checkpoints = await self._trainer.checkpoints(fine_tuning_job_id)
        except (ProviderModelMissing, ProviderRejected):
            return None
        return max(checkpoints, key=lambda checkpoint: checkpoint.step, default=None)

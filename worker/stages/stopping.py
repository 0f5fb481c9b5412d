"""Stopping the training of a student whose job ends without it.

A training may end at the provider while it is being stopped, and some providers bill what was trained until then.  So
each is read back: one that has succeeded is paid and its model noted, and what may be billed without our knowing how
much stays unconfirmed."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from shared.models import FineTune, usd
from shared.ports import TrainingJob
from worker.stages.landing import Landing
from worker.stages.student import LOOK_FOR_LOST_SECONDS, StudentStep, given_up


class Stopping(StudentStep):
    """The end of one student with its job.  Done again after a crash, it finds the same or knows less."""

    async def stop(self, tune: FineTune) -> float | None:
        """Seconds until the next look for a submission whose answer was lost; None when nothing trains any more."""
        match tune.step:
            case "awaiting":  # trained and paid
                await self._end(tune, status="cancelled", error=None)
            case "submitted" | "intent" | "uploaded" if tune.submissions or tune.fine_tuning_job_id:
                return await self._stop(tune)
        return None

    async def leave(self, tune: FineTune) -> None:
        """The provider does not stop it, or does not say so.  Its step stays: by that a deletion finds and stops it."""
        if tune.step not in {"submitted", "intent"}:
            return
        tune = self._settled(tune, None)
        self._say(
            "error",
            f"The provider did not stop the training of student {self._number}, so it may go on there.  Up to "
            f"{usd(tune.unconfirmed_nano)} dollars that it may bill stay unconfirmed.",
            {"fine_tuning_job_id": tune.fine_tuning_job_id, "unconfirmed_usd": usd(tune.unconfirmed_nano)},
        )
        await self._keep(tune)

    async def _stop(self, tune: FineTune) -> float | None:
        ids = [tune.fine_tuning_job_id] if tune.fine_tuning_job_id else []
        is_lost = tune.step == "intent"
        if tune.training_file is not None and (is_lost or tune.submissions > 1):
            ids = list(dict.fromkeys([*ids, *(job.id for job in await self._looked_up(tune))]))
        if not ids:
            if is_lost and not given_up(tune, self._tools):
                return LOOK_FOR_LOST_SECONDS
            await self._end_unseen(tune, may_be_billed=is_lost)
            return None
        ends = [(id_, *await self._ended(id_)) for id_ in ids]
        # Of several the one that has made a model is the student.
        kept, training, _ = next((end for end in ends if end[1] is not None and end[1].state == "succeeded"), ends[0])
        begun = [training for _, training, had_begun in ends if had_begun]
        await self._end_stopped(replace(tune, fine_tuning_job_id=kept), training, begun)
        return None

    async def _end_unseen(self, tune: FineTune, *, may_be_billed: bool) -> None:
        """The provider shows no training of this student."""
        ended = self._settled(tune, None) if may_be_billed else replace(tune, reserved_nano=0)
        if ended.unconfirmed_nano:
            self._say(
                "warn",
                f"The provider does not show what became of the submission of student {self._number}.  Up to "
                f"{usd(ended.unconfirmed_nano)} dollars that it may bill stay unconfirmed.",
                {"unconfirmed_usd": usd(ended.unconfirmed_nano)},
            )
        await self._end(ended, status="cancelled", error=None)

    async def _end_stopped(
        self, tune: FineTune, training: TrainingJob | None, begun: Sequence[TrainingJob | None]
    ) -> None:
        """training: the one that is kept.  begun: all that may be billed."""
        tune = self._settled(tune, *begun)
        costs = {"cost_usd": usd(tune.cost_nano or 0), "unconfirmed_usd": usd(tune.unconfirmed_nano)}
        data = {"fine_tuning_job_id": tune.fine_tuning_job_id, **costs}
        unknown = (
            f"  Up to {costs['unconfirmed_usd']} dollars that the provider may bill for it stay unconfirmed."
            if tune.unconfirmed_nano
            else ""
        )
        if training is not None:
            tune = replace(tune, trained_tokens=training.trained_tokens)
        if training is None or training.state not in {"succeeded", "failed"}:
            self._say("info", f"The training of student {self._number} is stopped.{unknown}", data)
            await self._end(tune, status="cancelled", error=None)
        elif training.state == "failed":
            await self._end(tune, status=training.status, error=self._failure("failed at the provider", training))
        else:
            model, _ = await Landing(self._job, self._number, self._tools, self._keep, self._events).model_of(training)
            self._say(
                "warn",
                f"The training of student {self._number} had ended before it could be stopped.  It has succeeded and "
                f"is paid; its model stays at the provider.{unknown}",
                {**data, "fine_tuned_model": model},
            )
            await self._end(replace(tune, fine_tuned_model=model), status="succeeded", error=None)

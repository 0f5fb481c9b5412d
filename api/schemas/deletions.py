"""The receipt of a deleted job."""

from __future__ import annotations

from typing import Final, Literal, Self

from api.schemas.common import Response, seconds
from shared.cleanup import Cleanup, Kind
from shared.store.purging import Receipt


class DeletedAtProvider(Response):
    files: int
    stored_completions: int
    fine_tuned_models: int


class LeftAtProvider(Response):
    """Ids, to delete it there.  fine_tuning_jobs: no provider deletes the record of one.  stored_completions: some that
    were stored for this job may be there still.  unlisted_files: likewise, of files whose ids could not be found out;
    their names begin with `distill-` and the job's id, or a fine-tuning job names them.  unlisted_models: a fine-tuning
    job that could not be asked may have made more models than are listed."""

    files: list[str]
    fine_tuning_jobs: list[str]
    fine_tuned_models: list[str]
    stored_completions: bool
    unlisted_files: bool
    unlisted_models: bool


class PurgedOut(Response):
    """What was removed.  left_at_provider: while `cleaning`, what is still to go; then, what stays there."""

    prompts: int
    completions: int
    events: int
    webhook_deliveries: int
    deleted_at_provider: DeletedAtProvider
    left_at_provider: LeftAtProvider


class DeletedJobOut(Response):
    """The receipt: `purging`; `cleaning` once nothing of the job is left here; `purged` once nothing more will be
    deleted at its providers either.  content_purged_at: when it became `cleaning`.  purged_at: when `purged`."""

    id: str
    object: Literal["distillation.job.deleted"]
    deleted: Literal[True]
    status: Literal["purging", "cleaning", "purged"]
    deleted_at: int
    content_purged_at: int | None
    purged_at: int | None
    purged: PurgedOut | None

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        found = receipt.purged
        return cls(
            id=receipt.job_id,
            object="distillation.job.deleted",
            deleted=True,
            status="purging" if found is None else "purged" if receipt.complete else "cleaning",
            deleted_at=receipt.deleted_at_ms // 1000,
            content_purged_at=seconds(receipt.purged_at_ms),
            purged_at=seconds(receipt.completed_at_ms),
            purged=None
            if found is None
            else PurgedOut(
                prompts=found.prompts,
                completions=found.completions,
                events=found.events,
                webhook_deliveries=found.deliveries,
                deleted_at_provider=_deleted(receipt.cleanup),
                left_at_provider=_left(receipt.cleanup),
            ),
        )


def _deleted(cleanup: Cleanup | None) -> DeletedAtProvider:
    deleted = {} if cleanup is None else cleanup.deleted
    return DeletedAtProvider(
        files=deleted.get(Kind.FILE, 0) + deleted.get(Kind.BATCH_FILE, 0),
        stored_completions=deleted.get(Kind.STORED, 0),
        fine_tuned_models=deleted.get(Kind.MODEL, 0),
    )


_NAMING_FILES: Final = {Kind.FILES, Kind.BATCH_FILES, Kind.BATCHES, Kind.BATCH, Kind.TRAININGS, Kind.TRAINED}


def _left(cleanup: Cleanup | None) -> LeftAtProvider:
    left = [] if cleanup is None else cleanup.left
    kinds = {remnant.kind for remnant in left}
    return LeftAtProvider(
        files=[remnant.id for remnant in left if remnant.kind in {Kind.FILE, Kind.BATCH_FILE}],
        fine_tuning_jobs=[] if cleanup is None else cleanup.fine_tuning_jobs,
        fine_tuned_models=[remnant.id for remnant in left if remnant.kind is Kind.MODEL],
        stored_completions=Kind.STORED in kinds,
        unlisted_files=bool(kinds & _NAMING_FILES),
        unlisted_models=bool(kinds & {Kind.TRAININGS, Kind.TRAINED}),
    )

"""Deleting a job, for its owner or because its retention has ended: marked, told of, and named in a clean-up note."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec.structs import replace

from shared.cleanup import Cleanup, Kind, Remnant, with_models
from shared.models import FineTune, Job
from shared.notices import deliveries_for
from shared.plan import our_metadata, teacher_plan
from shared.store import Store
from shared.webhook_records import Delivery
from shared.webhooks import GONE

_CLOCK_SKEW_SECONDS: Final = 600  # between the provider's clock and ours, when older files are told from the job's own


async def mark_deleted(store: Store, job: Job, *, delete_models: bool, now_ms: int) -> None:
    """From now on nobody sees the job; workers purge it, clean up at its providers, and tell who asked to be told.

    Raises Conflict while it has not ended."""
    cleanup = cleanup_of(job, delete_models=delete_models, now_ms=now_ms)
    await store.purging.mark(job, cleanup, await _farewell(store, job, now_ms))


async def _farewell(store: Store, job: Job, now_ms: int) -> list[Delivery]:
    """`job.deleted`, without the metadata: that is content, and gone.  Not to a receiver that wants nothing more: the
    courier could not tell any longer, because the job's log goes as well."""
    without = replace(job, spec=replace(job.spec, metadata={}))
    if job.spec.webhook is not None and "job.deleted" in job.spec.webhook.events:
        log = await store.deliveries.of_job(job.id)
        if any(d.endpoint_id is None and d.attempts and d.attempts[-1].status == GONE for d in log):
            without = replace(without, spec=replace(without.spec, webhook=None))
    endpoints = await store.webhooks.all(job.tenant)
    return deliveries_for(without, "job.deleted", job.version + 1, endpoints=endpoints, now_ms=now_ms)


def cleanup_of(job: Job, *, delete_models: bool, now_ms: int) -> Cleanup:
    """What a job that has ended may have left, from its row alone."""
    remnants = list(dict.fromkeys([*_of_training(job), *_of_batches(job), *_of_store(job)]))
    cleanup = Cleanup(
        job_id=job.id,
        not_before=job.created_at_ms // 1000 - _CLOCK_SKEW_SECONDS,
        ended_at_ms=job.finished_at_ms or now_ms,
        remnants=remnants,
        models=list(dict.fromkeys(_models(job))),
        fine_tuning_jobs=[tune.fine_tuning_job_id for tune in job.fine_tunes if tune.fine_tuning_job_id],
        progressed_at_ms=now_ms,
        over=not remnants,
    )
    return with_models(cleanup, now_ms=now_ms) if delete_models else cleanup


def _models(job: Job) -> Iterator[Remnant]:
    """Those that the row names: the student, and its checkpoints.  Where the student is a checkpoint, the model that
    the training was to make is known to the provider alone, which is asked for it."""
    for student, tune in zip(job.spec.students, job.fine_tunes, strict=False):
        for model in (tune.fine_tuned_model, *(checkpoint.model for checkpoint in tune.checkpoints)):
            if model:
                yield Remnant(kind=Kind.MODEL, provider=student.provider, id=model)


def _may_be_lost(tune: FineTune) -> bool:
    """Whether a fine-tuning job may be at the provider whose id nobody has noted."""
    answered = tune.fine_tuning_job_id is not None or tune.status == "refused"
    return tune.submissions > answered


def _of_training(job: Job) -> Iterator[Remnant]:
    for student, tune in zip(job.spec.students, job.fine_tunes, strict=False):
        if tune.training_file and _may_be_lost(tune):
            yield Remnant(kind=Kind.TRAININGS, provider=student.provider, id=tune.training_file)
    for student, tune in zip(job.spec.students, job.fine_tunes, strict=False):
        if tune.fine_tuning_job_id and tune.step != "ended":
            yield Remnant(kind=Kind.TRAINING, provider=student.provider, id=tune.fine_tuning_job_id)
    for student, tune in zip(job.spec.students, job.fine_tunes, strict=False):
        if tune.fine_tuning_job_id:
            yield Remnant(kind=Kind.TRAINED, provider=student.provider, id=tune.fine_tuning_job_id)
    for student, tune in zip(job.spec.students, job.fine_tunes, strict=False):
        for file_id in (tune.training_file, tune.validation_file):
            if file_id:
                yield Remnant(kind=Kind.FILE, provider=student.provider, id=file_id)
    for student, tune in zip(job.spec.students, job.fine_tunes, strict=False):
        if tune.step != "new":
            yield Remnant(kind=Kind.FILES, provider=student.provider, id=f"distill-{job.id}-")


def _of_batches(job: Job) -> Iterator[Remnant]:
    provider = job.spec.teacher.provider
    for run in job.batches:
        answered = run.batch_id is not None or run.status == "refused"
        if run.input_file and run.submissions > answered:
            yield Remnant(kind=Kind.BATCHES, provider=provider, id=run.input_file)
    for run in job.batches:
        if run.batch_id and (run.step != "ended" or run.status == "left"):
            yield Remnant(kind=Kind.BATCH, provider=provider, id=run.batch_id)
        for file_id in (run.input_file, run.output_file, run.error_file):
            if file_id:
                yield Remnant(kind=Kind.BATCH_FILE, provider=provider, id=file_id)
    if any(run.step != "new" for run in job.batches):
        yield Remnant(kind=Kind.BATCHES, provider=provider, id=job.id)
        yield Remnant(kind=Kind.BATCH_FILES, provider=provider, id=f"distill-{job.id}-")


def _of_store(job: Job) -> Iterator[Remnant]:
    if our_metadata(job, teacher_plan(job), 0) is not None and job.stage is not None:
        yield Remnant(kind=Kind.STORED, provider=job.spec.teacher.provider, id=job.id)

"""Cleaners for tests: what a deleted job has left at its provider, and looks at it as the sweep would give them."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import msgspec
from accounts import Account
from builders import a_job, a_spec, accepted, loaded, now_ms, prompts, standing_at

from shared.cleanup import Cleanup
from shared.deletion import mark_deleted
from shared.lifecycle import JobStatus, Stage
from shared.models import BatchRun, FineTune, Job, Teacher
from shared.ports import Batch, TrainingJob
from shared.store import Store, keys
from shared.store.jobs import Change
from worker.cleaner import Cleaner, CleaningLimits


class Clock:
    """Of the worker, in front of the server's by what a test has let pass."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def __call__(self) -> float:
        return now_ms() / 1000 + self.ahead_seconds


def a_cleaner(store: Store, account: Any, clock: Clock | None = None, **limits: float) -> Cleaner:
    return Cleaner(store, account, CleaningLimits(**{"lag_seconds": 0.0, **limits}), clock=clock or Clock())


def kept_by(account: Account, job: Job, *, completions: int = 5) -> None:
    """What a job leaves behind, noted and not, and beside it what is not the job's."""
    account.files = {
        "file-train": f"distill-{job.id}-x-0-train.jsonl",
        "file-check": f"distill-{job.id}-x-0-validation.jsonl",
        "file-unnoted": f"distill-{job.id}-x-1-train.jsonl",
        "file-in": f"distill-{job.id}-batch-0.jsonl",
        "file-out": "batch_output.jsonl",
        "file-foreign": "distill-job_other-x-0-train.jsonl",
    }
    account.models = {"ft:ours", "ft:foreign"}
    account.batches = {
        "batch-1": Batch(
            id="batch-1", status="completed", state="over", created_at=2_000_000_000, input_file="file-in",
            metadata={"distillation_job_id": job.id, "batch": "0"}, output_file="file-out",
        )
    }  # fmt: skip
    account.stored = {"cmp-first": {"distillation_job": "job_other"}, "cmp-users": {}}
    account.stored |= {f"cmp-{n}": {"distillation_job": job.id, "prompt": str(n)} for n in range(completions)}
    account.stored |= {"cmp-last": {"distillation_job": "job_other"}}


FOREIGN = ({"file-foreign"}, {"ft:foreign"}, {"cmp-first", "cmp-users", "cmp-last"})


def left_in(account: Account) -> tuple[set[str], set[str], set[str]]:
    return set(account.files), account.models, set(account.stored)


async def a_deleted_job(
    store: Store,
    account: Account,
    *,
    delete_models: bool = False,
    completions: int = 5,
    tune: Any = MappingProxyType({}),
    batches: Sequence[BatchRun] = (),
) -> Job:
    """tune: what is different of its fine-tune.  batches: beside its first."""
    teacher = Teacher(provider="lab", model="gpt-4.1", mode="batch")
    job = await accepted(store, a_job(spec=a_spec(store=True, teacher=teacher)), prompts(3))
    job = await standing_at(store, job, JobStatus.SUCCEEDED)
    trained = FineTune(
        step="ended",
        training_file="file-train",
        validation_file="file-check",
        fine_tuning_job_id="ftjob-1",
        fine_tuned_model="ft:ours",
    )
    trained = msgspec.structs.replace(trained, **tune)
    run = BatchRun(step="ended", batch_id="batch-1", input_file="file-in")
    made = {"stage": Stage.EVALUATING, "finished_at_ms": now_ms(), "fine_tunes": [trained], "batches": [run, *batches]}
    await store.jobs.change(job, Change(set=made))
    kept_by(account, job, completions=completions)
    job = await loaded(store, job.id)
    await mark_deleted(store, job, delete_models=delete_models, now_ms=now_ms())
    return job


async def note_of(store: Store, job: Job) -> Cleanup:
    note = await store.cleanups.load(job.id)
    assert note is not None
    return note


async def make_due(client: Any, job: Job) -> None:
    """The time of the next look has come."""
    await client.hset(keys.cleanup(job.id), "until_ms", 0)


async def cleaned(client: Any, cleaner: Cleaner, store: Store, job: Job, *, looks: int = 200) -> Cleanup:
    for _ in range(looks):
        await make_due(client, job)
        await cleaner.clean(job.id)
        note = await note_of(store, job)
        if note.over:
            return note
    raise AssertionError(f"Not over: {note}")


def a_training(status: str, **changes: Any) -> TrainingJob:
    job = TrainingJob(
        id="ftjob-1", status=status, state=status, created_at=2_000_000_000, training_file="file-train", metadata={}
    )
    return msgspec.structs.replace(job, **changes)

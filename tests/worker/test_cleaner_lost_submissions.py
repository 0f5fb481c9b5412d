"""Cleaning up what a lost submission may have made: it is waited for, stopped once it shows, and told of."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from accounts import Account
from cleaners import FOREIGN, Clock, a_cleaner, a_deleted_job, a_training, cleaned, left_in, make_due, note_of

from shared.models import BatchRun
from shared.ports import Batch
from shared.store import Store

pytestmark = pytest.mark.anyio
LOST = {"fine_tuning_job_id": None, "fine_tuned_model": None, "submissions": 1}


@pytest.mark.parametrize("keeps_metadata", [True, False])
async def test_a_training_whose_submission_was_lost_is_stopped_and_told_of(
    store: Store, client: Any, keeps_metadata: bool
):
    account, clock = Account(), Clock()
    job = await a_deleted_job(store, account, delete_models=True, tune=LOST)
    cleaner = a_cleaner(store, account, clock, lag_seconds=60)
    await make_due(client, job)
    await cleaner.clean(job.id)
    assert "trainings" in [remnant.kind for remnant in (await note_of(store, job)).remnants], "it may yet show"

    metadata = {"distillation_job_id": job.id, "student": "0"} if keeps_metadata else {}
    lost = a_training("running", id="ftjob-lost", metadata=metadata, result_files=["file-metrics"])
    foreign = a_training("running", id="ftjob-foreign", training_file="file-foreign")
    account.trainings = {"ftjob-lost": lost, "ftjob-foreign": foreign}
    account.checkpoint_models = {"ftjob-lost": ["ft:ours"]}
    account.files["file-metrics"] = "step_metrics.csv"
    clock.ahead_seconds = 61
    note = await cleaned(client, cleaner, store, job)

    assert account.cancelled == ["ftjob-lost"]
    assert left_in(account) == FOREIGN
    assert (note.left, note.fine_tuning_jobs) == ([], ["ftjob-lost"])


async def test_a_batch_whose_submission_was_lost_is_stopped_once_it_shows_and_its_files_go(store: Store, client: Any):
    account, clock = Account(), Clock()
    job = await a_deleted_job(store, account)
    running = msgspec.structs.replace(account.batches["batch-1"], state="running", output_file=None)
    account.batches = {}
    del account.files["file-out"]
    cleaner = a_cleaner(store, account, clock, lag_seconds=60)
    await make_due(client, job)
    await cleaner.clean(job.id)
    assert "batches" in [remnant.kind for remnant in (await note_of(store, job)).remnants], "it may yet show"

    account.batches = {"batch-1": running}
    clock.ahead_seconds = 61
    await cleaned(client, cleaner, store, job)

    assert account.cancelled == ["batch-1"]
    assert set(account.files) == {"file-foreign"}


@pytest.mark.parametrize("status", ["not_shown", "left", "refused"])
async def test_it_is_waited_for_although_another_batch_of_the_job_shows(store: Store, client: Any, status: str):
    account, clock = Account(), Clock()
    lost = BatchRun(step="ended", status=status, input_file="file-in-1", submissions=1)
    job = await a_deleted_job(store, account, batches=[lost])
    cleaner = a_cleaner(store, account, clock, lag_seconds=60)
    await make_due(client, job)
    await cleaner.clean(job.id)
    is_awaited = "file-in-1" in [remnant.id for remnant in (await note_of(store, job)).remnants]
    assert is_awaited is (status != "refused")

    metadata = {"distillation_job_id": job.id, "batch": "1"} if status == "left" else {}
    account.batches["batch-2"] = Batch(
        id="batch-2", status="in_progress", state="running", created_at=2_000_000_000, input_file="file-in-1",
        metadata=metadata,
    )  # fmt: skip
    clock.ahead_seconds = 61
    await cleaned(client, cleaner, store, job)

    assert account.cancelled == (["batch-2"] if is_awaited else [])

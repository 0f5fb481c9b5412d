"""What a job may have left at its providers, told from its row alone; and how long it is tried to be rid of it."""

from __future__ import annotations

import pytest
from builders import a_job, a_spec
from msgspec.structs import replace

from shared.cleanup import Cleanup, Kind, Remnant, after_failed_look, gone, with_models
from shared.deletion import cleanup_of
from shared.ids import JobId
from shared.lifecycle import JobStatus, Stage
from shared.models import BatchRun, FineTune, Job, Student

WEEK_SECONDS = 7 * 86_400
FILE = Remnant(kind=Kind.FILE, provider="lab", id="file-1")


def kinds(job: Job, *, delete_models: bool = False) -> list[str]:
    return [str(remnant.kind) for remnant in cleanup_of(job, delete_models=delete_models, now_ms=1).remnants]


def test_a_job_that_never_started_has_left_nothing() -> None:
    cleanup = cleanup_of(a_job(status=JobStatus.CANCELLED, spec=a_spec(store=True)), delete_models=True, now_ms=1)
    assert (cleanup.remnants, cleanup.over) == ([], True)


def test_a_job_that_broke_off_in_an_upload_may_have_left_a_file_that_nobody_noted() -> None:
    assert kinds(a_job(status=JobStatus.FAILED, fine_tunes=[FineTune(step="uploading")])) == ["files"]


def test_a_batch_whose_submission_was_lost_is_looked_up() -> None:
    job = a_job(status=JobStatus.FAILED, batches=[BatchRun(step="intent", input_file="file-in")])
    assert kinds(job) == ["batch_file", "batches", "batch_files"]


@pytest.mark.parametrize(
    ("tune", "looked_up"),
    [
        (FineTune(step="intent", submissions=1), True),
        (FineTune(step="ended", status="cancelled", submissions=1), True),
        (FineTune(step="ended", status="succeeded", submissions=1, fine_tuning_job_id="ftjob-1"), False),
        (FineTune(step="ended", status="succeeded", submissions=2, fine_tuning_job_id="ftjob-1"), True),
        (FineTune(step="ended", status="refused", submissions=1), False),
        (FineTune(step="uploaded"), False),
    ],
)
def test_a_fine_tune_whose_submission_was_lost_is_looked_up_first(tune: FineTune, looked_up: bool) -> None:
    found = kinds(a_job(status=JobStatus.FAILED, fine_tunes=[replace(tune, training_file="file-1")]))
    assert ("trainings" in found) is looked_up
    assert found.index("trainings" if looked_up else "file") < found.index("files")


def test_what_may_still_train_is_stopped_before_anything_is_deleted() -> None:
    tune = FineTune(step="submitted", training_file="file-1", fine_tuning_job_id="ftjob-1")
    assert kinds(a_job(status=JobStatus.FAILED, fine_tunes=[tune])) == ["training", "trained", "file", "files"]


@pytest.mark.parametrize(("store", "wanted"), [(True, ["stored_completions"]), (False, [])])
def test_completions_are_looked_for_where_they_were_to_be_stored(store: bool, wanted: list[str]) -> None:
    assert kinds(a_job(status=JobStatus.SUCCEEDED, stage=Stage.EVALUATING, spec=a_spec(store=store))) == wanted


def test_models_stay_unless_they_are_asked_for_and_each_is_deleted_at_its_own_provider() -> None:
    students = [Student(provider=name, model="gpt-4.1-nano") for name in ("lab", "other")]
    tunes = [FineTune(step="ended", fine_tuned_model=f"ft:{n}", fine_tuning_job_id=f"ftjob-{n}") for n in range(2)]
    job = a_job(status=JobStatus.SUCCEEDED, spec=a_spec(students=students), fine_tunes=tunes)
    kept = cleanup_of(job, delete_models=False, now_ms=1)
    assert [(model.provider, model.id) for model in kept.models] == [("lab", "ft:0"), ("other", "ft:1")]
    assert Kind.MODEL not in {remnant.kind for remnant in kept.remnants}
    asked = cleanup_of(job, delete_models=True, now_ms=1)
    assert asked == with_models(kept, now_ms=1)
    assert [remnant.id for remnant in asked.remnants if remnant.kind is Kind.MODEL] == ["ft:0", "ft:1"]
    assert asked.models == []
    assert asked.fine_tuning_jobs == ["ftjob-0", "ftjob-1"]


def test_waits_double_up_to_an_hour_and_are_no_shorter_than_the_provider_asked() -> None:
    note = a_note()
    waits = []
    for _ in range(20):
        note, wait = after_failed_look(note, now_ms=0, patience_seconds=WEEK_SECONDS, jitter=1.0)
        assert wait is not None
        waits.append(wait)
    assert waits[:4] == [5, 10, 20, 40]
    assert waits[-1] == 3_600
    fresh = a_note()
    assert after_failed_look(fresh, now_ms=0, patience_seconds=1, jitter=0, wait_seconds=60)[1] == 60
    assert after_failed_look(fresh, now_ms=0, patience_seconds=1, jitter=0, wait_seconds=86_400)[1] == 3_600


def test_progress_renews_the_patience_and_its_end_lists_what_is_left() -> None:
    late = WEEK_SECONDS * 1000
    another = Remnant(kind=Kind.FILE, provider="lab", id="file-2")
    moved = gone(a_note(), FILE, now_ms=late - 1, found=[FILE, another, another], deleted=1)
    assert (moved.deleted, moved.remnants) == ({"file": 1}, [another])
    assert after_failed_look(moved, now_ms=late, patience_seconds=WEEK_SECONDS, jitter=0)[1] is not None
    over, wait = after_failed_look(a_note(), now_ms=late, patience_seconds=WEEK_SECONDS, jitter=0)
    assert (wait, over.over, over.left) == (None, True, [FILE])


def a_note() -> Cleanup:
    return Cleanup(job_id=JobId("job_1"), not_before=0, ended_at_ms=0, remnants=[FILE])

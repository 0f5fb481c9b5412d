"""Before a job spends anything its worker asks the providers: models, their last days, the key, the training."""

from __future__ import annotations

import pytest
from builders import a_job, a_spec, accepted, loaded, prompts
from doubles import Lab

from shared.errors import ProviderAuthFailed, ProviderTrainingClosed, ProviderUnavailable
from shared.lifecycle import JobStatus, Stage
from shared.models import Evaluation, FineTune, Student
from shared.ports import TrainingJob
from shared.pricing import Prices
from shared.settings import Settings
from shared.store.jobs import Change
from worker.engine import Engine
from worker.stages import Tools

pytestmark = pytest.mark.anyio
S = JobStatus


@pytest.fixture
def store(real_store):
    return real_store


@pytest.fixture
def lab():
    return Lab()


async def taken_up(store, lab, **fields):
    """The job once a worker has looked at it, with nobody there to buy completions."""
    spec = a_spec(
        **{"students": [Student(provider="lab", model="base-0"), Student(provider="lab", model="base-1")]} | fields
    )
    job = await accepted(store, a_job(spec=spec), prompts(2))
    settings = Settings(
        _env_file=None,
        redis_url="redis://unused",
        secret_key="s" * 32,
        retry_base_seconds=0.001,
        retry_cap_seconds=0.01,
    )
    await Engine(Tools(store, lab, Prices(), settings, lambda: None)).advance(job.id)
    return await loaded(store, job.id)


async def test_students_show_when_their_base_retires_and_the_owner_is_warned_once(store, lab):
    lab.the_models.retire = {"base-0": "2026-12-11", "gpt-4.1": "2026-11-30"}

    job = await taken_up(store, lab)

    assert (job.status, job.stage) == (S.RUNNING, Stage.GENERATING)
    assert [tune.shutdown_date for tune in job.fine_tunes] == ["2026-12-11", None]
    warned = [advice.message.split(" ")[0] for advice in job.warnings if advice.code == "model_retires_soon"]
    assert warned == ["teacher.model", "students.0.model"]
    version = job.version
    await Engine(Tools(store, lab, Prices(), _settings(), lambda: None)).advance(job.id)
    again = await loaded(store, job.id)
    assert again.warnings == job.warnings
    assert again.version == version + 1, "looked at, and nothing learned anew"


def _settings():
    return Settings(_env_file=None, redis_url="redis://unused", secret_key="s" * 32)


@pytest.mark.parametrize(
    ("retired", "param"),
    [("gpt-4.1", "teacher.model"), ("base-1", "students.1.model"), ("judge", "evaluation.graders.0.model")],
)
async def test_a_retired_model_ends_the_job_before_anything_is_bought(store, lab, retired, param):
    lab.the_models.retire = {retired: "2026-11-22"}
    judge = {"type": "score_model", "provider": "lab", "model": "judge"}

    job = await taken_up(store, lab, evaluation=Evaluation(graders=[judge]))

    assert (job.status, job.error.code, job.error.param) == (S.FAILED, "model_retired", param)
    assert "2026-11-22" in job.error.message
    assert lab.the_teacher.asked == []


async def test_a_missing_model_ends_the_job_and_says_which(store, lab):
    lab.the_models.missing = {"base-1"}
    job = await taken_up(store, lab)
    assert (job.status, job.error.code, job.error.param) == (S.FAILED, "model_unknown", "students.1.model")


@pytest.mark.parametrize(
    ("call", "error", "code"),
    [
        ("require_training", ProviderTrainingClosed("Closed.", status=404), "provider_training_closed"),
        ("require_training", ProviderAuthFailed("No.", status=403), "provider_auth_failed"),
        ("look_up", ProviderAuthFailed("No.", status=401), "provider_auth_failed"),
    ],
)
async def test_a_provider_that_cannot_do_it_ends_the_job_before_anything_is_bought(store, lab, call, error, code):
    lab.the_models.faults[call] = error
    job = await taken_up(store, lab)
    assert (job.status, job.error.code) == (S.FAILED, code)


async def test_a_provider_that_is_away_is_asked_again(store, lab):
    lab.the_models.faults["look_up"] = ProviderUnavailable("Away.")
    job = await taken_up(store, lab)
    assert (job.status, job.stage_attempts) == (S.RUNNING, 1)


async def test_what_a_model_is_named_for_twice_is_asked_once(store, lab):
    await taken_up(store, lab, students=[Student(provider="lab", model="gpt-4.1")])
    assert lab.the_models.asked == ["gpt-4.1"]


@pytest.mark.parametrize(("own", "shown"), [("2028-01-01", "2028-01-01"), (None, "2027-01-14")])
async def test_a_trained_model_shows_its_own_last_day_or_its_bases(store, lab, own, shown):
    job = await accepted(store, a_job(), prompts(2))
    tune = FineTune(
        step="submitted",
        training_file="file-0",
        intent_at_ms=1,
        fine_tuning_job_id="ftjob-0",
        shutdown_date="2027-01-14",
    )
    await store.jobs.change(job, Change(status=S.RUNNING, set={"stage": Stage.TRAINING, "fine_tunes": [tune]}))
    lab.the_trainer.jobs.append(
        TrainingJob(
            id="ftjob-0",
            status="running",
            state="running",
            created_at=2_000_000_000,
            training_file="file-0",
            metadata={},
        )
    )
    if own is not None:
        lab.the_models.retire = {"ft:ftjob-0": own}

    engine = Engine(Tools(store, lab, Prices(), _settings(), lambda: None))
    await engine.advance(job.id)

    [trained] = (await loaded(store, job.id)).fine_tunes
    assert (trained.fine_tuned_model, trained.shutdown_date) == ("ft:ftjob-0", shown)
    owners = await store.catalogues.all_owners("lab")
    assert owners == {"ft:ftjob-0": job.tenant}

"""Submitting exactly once: killed between any two calls to the provider and any two writes of the row, a job ends with
one file of each split and one fine-tuning job.  What is lost or shows late is found again; a definite no is final.

Over real HTTP the calls are not listed: an undisturbed run is recorded, and then killed at every point of it."""

import itertools

import httpx2
import pytest
from builders import accepted, loaded, prompts
from doubles import Lab, ScriptedTeacher, ScriptedTrainer
from engines import LOST, Killed, a_whole_job, an_engine, in_training, let_the_lease_run_out, rung, through_crashes
from pumps import pumping

from sandbox.testing import SandboxProcess
from shared.errors import ProviderAuthFailed, ProviderQuotaExhausted, ProviderRejected, ProviderTrainingClosed
from shared.lifecycle import JobStatus, PausedReason
from shared.models import FineTune, Student
from shared.settings import ProviderSettings
from shared.store import keys
from shared.store.jobs import Change
from worker.providers.openai import OpenAITrainer

pytestmark = pytest.mark.anyio
S = JobStatus
MODEL = "gpt-4.1-mini-2025-04-14"


@pytest.fixture
def store(real_store):
    return real_store


# --- exactly one fine-tuning job -------------------------------------------------------------------------------------

CALLS = [f"{call}{when}" for call in ("find_files", "upload", "submit", "find", "poll") for when in ("", "!")]


@pytest.mark.parametrize("fault", [Killed(), LOST], ids=["killed", "no answer"])
@pytest.mark.parametrize("call", CALLS)
async def test_a_crash_at_any_call_to_the_trainer_leaves_one_submission(store, call, fault):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults[call] = fault
    if call.startswith("find") and call != "find_files":
        trainer.faults["submit!"] = LOST

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [tune.step for tune in ended.fine_tunes] == ["ended"]
    assert len(trainer.files) == 1
    live = [found.id for found in trainer.jobs if found.id not in trainer.cancelled]
    assert live == [ended.fine_tunes[0].fine_tuning_job_id]
    assert len(trainer.submitted) == 1


async def test_of_two_files_of_one_name_the_newest_is_used_and_the_other_deleted(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    engine = an_engine(store, Lab(trainer=trainer))
    trainer.faults["upload!"] = LOST
    await engine.advance(job.id)
    trainer.files_unlisted = 1  # so that it is uploaded again
    trainer.faults["upload!"] = LOST
    await engine.advance(job.id)
    assert [file_id for file_id, *_ in trainer.files] == ["file-1", "file-2"]

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [file_id for file_id, *_ in trainer.files] == [ended.fine_tunes[0].training_file] == ["file-2"]


async def test_a_refused_file_ends_the_student_and_says_which(store):
    trainer, job = ScriptedTrainer(), await in_training(store, validation=1)
    upload = trainer.upload

    async def refuses_the_second(path, filename):
        if "validation" in filename:
            raise ProviderRejected("Too large.", status=413)
        return await upload(path, filename)

    trainer.upload = refuses_the_second
    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert (ended.status, ended.error.code) == (S.FAILED, "provider_rejected_training")
    assert "validation file" in ended.error.message
    assert ended.fine_tunes[0].training_file == "file-1"  # is still known, and can be deleted


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("save", range(1, 9))
async def test_a_crash_at_any_write_of_the_row_leaves_one_submission(store, save, when):
    trainer, job = ScriptedTrainer(), await in_training(store)
    change, count = store.jobs.change, itertools.count(1)

    async def killed_at_one(*args, **kwargs):
        number = next(count)
        if number == save and when == "before":
            raise Killed
        answer = await change(*args, **kwargs)
        if number == save:
            raise Killed
        return answer

    store.jobs.change = killed_at_one

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [tune.step for tune in ended.fine_tunes] == ["ended"]
    assert (len(trainer.files), len(trainer.submitted)) == (1, 1)


async def test_a_submission_that_shows_late_is_adopted_and_not_made_again(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 2

    ended = await through_crashes(store, Lab(trainer=trainer), job, unknown_outcome_wait_seconds=5)

    assert ended.fine_tunes[0].fine_tuning_job_id == "ftjob-0"
    assert len(trainer.submitted) == 1


async def test_a_submission_that_never_arrived_is_made_again(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit"] = LOST

    ended = await through_crashes(store, Lab(trainer=trainer), job, unknown_outcome_wait_seconds=0.05)

    assert (len(trainer.jobs), ended.fine_tunes[0].status) == (1, "succeeded")


async def test_a_provider_that_answers_no_submission_is_asked_a_bounded_number_of_times(store):
    class Deaf(ScriptedTrainer):
        async def submit(self, request):
            raise LOST

    job = await in_training(store)

    ended = await through_crashes(
        store, Lab(trainer=Deaf()), job, unknown_outcome_wait_seconds=0.01, stage_attempts_max=3
    )

    assert (ended.status, ended.error.code, ended.error.retryable) == (S.FAILED, "provider_unavailable", True)
    assert ended.fine_tunes[0].submissions == 3


async def test_of_two_submissions_the_one_that_is_followed_is_kept(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit!"] = LOST
    trainer.visible_after = 10

    async def look():
        ended = await through_crashes(store, Lab(trainer=trainer), job, unknown_outcome_wait_seconds=0.01, times=8)
        trainer.visible_after = 0
        return ended

    trainer.status = "running"
    await look()
    trainer.statuses = {"ftjob-1": "succeeded"}
    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert len(trainer.jobs) == 2
    assert ended.fine_tunes[0].fine_tuning_job_id not in trainer.cancelled
    assert len(trainer.cancelled) == 1


@pytest.mark.parametrize(
    "keeps_metadata",
    [True, False],
)
async def test_students_of_one_provider_do_not_take_each_others_jobs(store, keeps_metadata):
    trainer, job = ScriptedTrainer(keeps_metadata=keeps_metadata), await in_training(store, students=2)

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert [tune.fine_tuning_job_id for tune in ended.fine_tunes] == ["ftjob-0", "ftjob-1"]
    assert trainer.cancelled == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ProviderRejected("No.", status=400), "provider_rejected_training"),
        (ProviderTrainingClosed("Closed.", status=403), "provider_training_closed"),
        (ProviderAuthFailed("No.", status=401), "provider_auth_failed"),
    ],
)
async def test_a_definite_no_fails_the_job_and_is_not_asked_again(store, error, code):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit"] = error

    ended = await through_crashes(store, Lab(trainer=trainer), job)

    assert (ended.status, ended.error.code) == (S.FAILED, code)
    assert trainer.calls.count("submit") == 1


async def test_training_without_credit_pauses_the_job(store):
    trainer, job = ScriptedTrainer(), await in_training(store)
    trainer.faults["submit"] = ProviderQuotaExhausted("No credit.", status=429)

    paused = await rung(store, an_engine(store, Lab(trainer=trainer)), job, until_status=S.PAUSED)

    assert paused.paused_reason is PausedReason.PROVIDER_QUOTA
    assert paused.fine_tunes[0].step == "uploaded"


async def test_a_job_that_fails_in_training_leaves_no_training_behind(store):
    trainer, job = ScriptedTrainer(), await in_training(store, students=2)
    trainer.status = "running"
    engine = an_engine(store, Lab(trainer=trainer))
    await rung(store, engine, job, times=2)
    trainer.faults["poll"] = ProviderAuthFailed("No.", status=401)

    ended = await rung(store, engine, job)

    assert ended.status is S.FAILED
    assert sorted(trainer.cancelled) == ["ftjob-0", "ftjob-1"]


# --- at every point of the way, over HTTP ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox():
    with SandboxProcess(training_seconds=0.05, today="2026-11-22") as running:
        yield running


class Fate:
    """Kills the process at one point of its way: the points are the requests and the writes, each before and after."""

    def begin(self, at):
        self.at = at
        self.points = []

    def reach(self, point):
        self.points.append(point)
        if len(self.points) - 1 == self.at:
            raise Killed


class MortalTransport(httpx2.AsyncBaseTransport):
    """Real HTTP that ends before a request leaves, or once it was answered."""

    def __init__(self, fate):
        self._fate = fate
        self._inner = httpx2.AsyncHTTPTransport(verify=False)

    async def handle_async_request(self, request):
        what = f"{request.method} {request.url.path}"
        self._fate.reach(f"before {what}")
        response = await self._inner.handle_async_request(request)
        await response.aread()
        self._fate.reach(f"after {what}")
        return response

    async def aclose(self):
        await self._inner.aclose()


def a_lab(sandbox, fate):
    """Training files go up in parts, validation files in one request."""
    limits = {"upload_max_bytes": 4_000, "upload_part_bytes": 3_000}
    settings = ProviderSettings(base_url=sandbox.base_url, api_key="sk-test", **limits)
    lab = Lab()
    lab._settings = settings
    lab.the_trainer = OpenAITrainer(settings, timeout_seconds=5)
    transport = httpx2.AsyncClient(transport=MortalTransport(fate))
    lab.the_trainer._client = lab.the_trainer._client.with_options(http_client=transport)
    return lab


async def curated(store):
    """A job whose dataset is made and whose student's training has not begun."""
    lab = Lab(ScriptedTeacher(lambda text: [f"Answer to {text}"]))
    job = await accepted(store, a_whole_job(students=[Student(provider="lab", model=MODEL)]), prompts(60))
    engine = an_engine(store, lab)
    lab.the_trainer.faults["find_files"] = Killed()
    async with pumping(store, lab):
        with pytest.raises(Killed):
            await rung(store, engine, job)
    await let_the_lease_run_out(store, job)
    await store.jobs.change(job, Change(set={"fine_tunes": [FineTune()]}))
    return await loaded(store, job.id)


class Trials:
    """The same job's training again and again, each time killed elsewhere."""

    def __init__(self, store, sandbox, job, row):
        self._store, self._job, self._row = store, job, row
        self._fate = Fate()
        self._lab = a_lab(sandbox, self._fate)
        self._change = store.jobs.change
        self._provider = httpx2.Client(base_url=sandbox.root_url, headers={"Authorization": "Bearer sk-test"})
        store.jobs.change = self._mortal_change

    async def _mortal_change(self, *args, **kwargs):
        self._fate.reach("before a write")
        answer = await self._change(*args, **kwargs)
        self._fate.reach("after a write")
        return answer

    async def run(self, *, killed_at=None):
        """(the job once it is trained, the points of the way there)"""
        redis, job_id = self._store._redis, self._job.id
        self._provider.post("/_sandbox/reset", json={}).raise_for_status()
        await redis.delete(keys.job(job_id), keys.events(job_id))
        await redis.hset(keys.job(job_id), mapping=self._row)
        self._fate.begin(killed_at)
        ended = await through_crashes(self._store, self._lab, self._job, times=300)
        return ended, self._fate.points

    def left_at_provider(self):
        """(how many fine-tuning jobs were made, what the names of the files that there are end in)"""
        files = self._provider.get("/v1/files", params={"purpose": "fine-tune"}).raise_for_status().json()["data"]
        made = self._provider.get("/_sandbox/ledger").raise_for_status().json()["fine_tuning_jobs_created"]
        return made, sorted(file["filename"].rpartition("-")[2] for file in files)

    async def close(self):
        self._store.jobs.change = self._change
        self._provider.close()
        await self._lab.the_trainer.close()


@pytest.fixture
async def trials(real_store, sandbox):
    job = await curated(real_store)
    made = Trials(real_store, sandbox, job, await real_store._redis.hgetall(keys.job(job.id)))
    yield made
    await made.close()


async def test_killed_between_any_two_steps_of_a_submission_a_job_has_one_file_and_one_fine_tune(trials):
    _, points = await trials.run()
    submission = points[: points.index("after POST /v1/fine_tuning/jobs") + 5]
    assert {"before POST /v1/uploads", "before POST /v1/files", "before GET /v1/files"} <= set(submission)
    assert sum(point.endswith("/parts") for point in submission) >= 4

    wrong = []
    for number, point in enumerate(submission):
        ended, _ = await trials.run(killed_at=number)
        left = trials.left_at_provider()
        if (ended.fine_tunes[0].status, left) != ("succeeded", (1, ["train.jsonl", "validation.jsonl"])):
            wrong.append((point, left, ended.status, ended.fine_tunes[0]))

    assert wrong == []

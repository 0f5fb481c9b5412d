"""Submitting exactly once: killed between any two calls to the provider and any two writes of the row, a job ends with
one file of each split and one fine-tuning job.

The calls are not listed here: an undisturbed run is recorded, over real HTTP, and then killed at every point of it."""

import httpx2
import pytest
from builders import accepted, loaded, prompts
from doubles import Lab, ScriptedTeacher, pumping
from engines import Killed, a_whole_job, an_engine, let_the_lease_run_out, rung, through_crashes

from sandbox.testing import SandboxProcess
from shared.models import FineTune, Student
from shared.settings import ProviderSettings
from shared.store import keys
from shared.store.jobs import Change
from worker.providers.openai import OpenAITrainer

pytestmark = pytest.mark.anyio
MODEL = "gpt-4.1-mini-2025-04-14"


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

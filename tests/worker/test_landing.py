"""How a trained student is reached: at once, by its last checkpoint, or where its owner has deployed it."""

import asyncio
import time
from collections import Counter

import pytest
from builders import TENANT, accepted, loaded, now_ms, prompts
from doubles import Lab, ScriptedTeacher, ScriptedTrainer
from engines import a_whole_job, an_engine, in_training, rung
from msgspec.structs import replace
from pumps import pumping

from shared.deletion import mark_deleted
from shared.errors import ProviderModelMissing
from shared.lifecycle import JobStatus, Stage
from shared.models import StudentEndpoint, WebhookTarget
from shared.plan import evaluation_plans
from shared.pricing import Prices
from shared.store import keys
from shared.store.content import unpack_completion
from shared.store.jobs import Change
from worker.janitor import Janitor

pytestmark = pytest.mark.anyio
S = JobStatus
THERE = StudentEndpoint(provider="elsewhere", model="triage-ft", base_model="triage-base")


@pytest.fixture
def store(real_store):
    return real_store


async def awaiting(store, lab, job=None):
    """A job whose student is trained and has to be deployed."""
    job = job or await in_training(store)
    await rung(store, an_engine(store, lab), job, times=3)
    found = await loaded(store, job.id)
    assert found.fine_tunes[0].step == "awaiting"
    return found


async def told(store, job, number=0, endpoint=THERE):
    """What the API writes."""
    await store.jobs.change(job, Change(set={f"endpoint_{number}": endpoint}, due_in_seconds=0))


def a_lab(way="deployment", **fields):
    trainer = ScriptedTrainer()
    for name, value in fields.items():
        setattr(trainer, name, value)
    return Lab(ScriptedTeacher(lambda text: [f"Answer to {text}"]), trainer, tuned_model=way)


# --- the last checkpoint ---------------------------------------------------------------------------------------------


async def test_the_last_checkpoint_is_asked_where_the_provider_says_so(store):
    lab = a_lab("checkpoint", checkpoint_steps=[20, 60, 40], names_a_model=False)
    job = await in_training(store)

    ended = await rung(store, an_engine(store, lab), job, times=3)

    assert ended.stage is Stage.EVALUATING
    assert ended.fine_tunes[0].fine_tuned_model == "ft:ftjob-0:ckpt-step-60"
    assert evaluation_plans(ended)[1].model == "ft:ftjob-0:ckpt-step-60"


@pytest.mark.parametrize("way", ["ready", "checkpoint"])
async def test_a_success_without_a_model_is_looked_at_again(store, way):
    lab, job = a_lab(way, names_a_model=False), await in_training(store)
    engine = an_engine(store, lab)

    assert (await rung(store, engine, job, times=3)).fine_tunes[0].step == "submitted"

    lab.the_trainer.names_a_model, lab.the_trainer.checkpoint_steps = True, [7]
    assert (await rung(store, engine, job, times=3)).stage is Stage.EVALUATING


@pytest.mark.parametrize("steps", [[], [3, 9]])
async def test_whoever_deploys_is_told_which_checkpoint_is_the_last_where_no_model_is_named(store, steps):
    job = await awaiting(store, a_lab(names_a_model=False, checkpoint_steps=steps))

    [said] = [event for event in await store.jobs.events(job.id, after=0, limit=99) if "checkpoint" in event.data]
    assert said.data["checkpoint"] == ("ftckpt-9" if steps else None)
    assert job.fine_tunes[0].fine_tuned_model == ("ft:ftjob-0:ckpt-step-9" if steps else None)


async def test_a_provider_that_lists_no_checkpoints_can_be_deployed_from_all_the_same(store):
    lab = a_lab()
    lab.the_trainer.faults["checkpoints"] = ProviderModelMissing("There is no such route.", status=404)

    assert (await awaiting(store, lab)).fine_tunes[0].fine_tuned_model == "ft:ftjob-0"


# --- a deployment ----------------------------------------------------------------------------------------------------


async def test_a_student_to_be_deployed_waits_without_asking_the_provider(store):
    lab = a_lab()
    job = await awaiting(store, lab)
    asked = list(lab.the_trainer.calls)

    waiting = await rung(store, an_engine(store, lab), job, times=5)

    assert (waiting.status, waiting.stage) == (S.RUNNING, Stage.TRAINING)
    assert waiting.fine_tunes[0].status == "awaiting_deployment"
    assert lab.the_trainer.calls == asked
    assert await store._redis.zscore(keys.DUE, f"job:{job.id}") > (time.time() + 1_800) * 1000
    said = [e.message for e in await store.jobs.events(job.id, after=0, limit=99) if "deployment" in e.message]
    assert len(said) == 1
    assert f"POST /v1/jobs/{job.id}/students/0/endpoint" in said[0]


async def test_its_owner_is_told_by_webhook_once(store):
    hook = WebhookTarget(url="https://ci.example.com/x", events=["job.awaiting_deployment"])
    job = await in_training(store, webhook=hook)

    await awaiting(store, a_lab(), job)

    ids = await store._redis.zrange(keys.job_deliveries(job.id), 0, -1)
    deliveries = [await store.deliveries.get(TENANT, delivery_id.decode()) for delivery_id in ids]
    assert [delivery.event_type for delivery in deliveries] == ["job.awaiting_deployment"]


async def test_the_evaluation_asks_where_the_student_is_deployed(store):
    lab = a_lab()
    whole = a_whole_job()
    job = await accepted(store, whole, prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab):
        await rung(store, engine, job, times=100, until_step="awaiting")
        await told(store, job)
        ended = await rung(store, engine, job)

    assert ended.status is S.SUCCEEDED
    assert ended.fine_tunes[0].endpoint == THERE
    base, student = evaluation_plans(ended)
    assert (base.provider, base.model, base.priced_as) == ("elsewhere", "triage-base", "gpt-4.1-nano")
    assert (student.provider, student.model, student.priced_as) == ("elsewhere", "triage-ft", "ft:gpt-4.1-nano")
    results = await store.jobs.results(job.id)
    assert {row["model"] for row in results["rows"]} >= {"triage-ft", "triage-base"}


class Deployments(ScriptedTeacher):
    """Answers for every model but these."""

    def __init__(self, *missing: str) -> None:
        super().__init__(lambda text: [f"Answer to {text}"])
        self.missing = set(missing)
        self.asked_models: list[str] = []
        self.held: set[str] = set()  # models that keep everybody waiting

    async def complete(self, request):
        model = request.body["model"]
        self.asked_models.append(model)
        while model in self.held:
            await asyncio.sleep(0.01)
        if model in self.missing:
            raise ProviderModelMissing("There is no such model.", status=404, provider_code="DeploymentNotFound")
        return await super().complete(request)


async def evaluated_until(store, engine, job, wanted):
    """Looks at the job until it is as wanted."""
    for _ in range(200):
        found = await rung(store, engine, job, times=1)
        if wanted(found):
            return found
        await asyncio.sleep(0.01)
    raise AssertionError(found.status)


def is_awaiting(job):
    return job.fine_tunes[0].step == "awaiting"


@pytest.mark.parametrize(("missing", "named"), [("triage-tf", "model"), ("triage-sabe", "base_model")])
async def test_a_wrong_name_is_told_again_and_nothing_is_trained_or_bought_twice(store, missing, named):
    teacher = Deployments(missing)
    lab = Lab(teacher, ScriptedTrainer(), tuned_model="deployment")
    hook = WebhookTarget(url="https://ci.example.com/x", events=["job.awaiting_deployment"])
    job = await accepted(store, a_whole_job(webhook=hook), prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab):
        await rung(store, engine, job, times=100, until_step="awaiting")
        await told(store, job, endpoint=replace(THERE, **{named: missing}))
        await evaluated_until(store, engine, job, lambda job: job.stage is Stage.EVALUATING)
        waiting = await evaluated_until(store, engine, job, is_awaiting)

        assert (waiting.status, waiting.stage) == (S.RUNNING, Stage.TRAINING)
        assert (waiting.fine_tunes[0].status, waiting.endpoint(0)) == ("awaiting_deployment", None)
        [said] = [e for e in await store.jobs.events(job.id, after=0, limit=99) if e.data.get("code")]
        assert (said.data[named], said.data["provider_code"]) == (missing, "DeploymentNotFound")
        assert is_awaiting(await rung(store, engine, job, times=3))
        await told(store, job, endpoint=replace(THERE, told_at_ms=1))
        ended = await rung(store, engine, job)

    assert (ended.status, ended.endpoint(0)) == (S.SUCCEEDED, replace(THERE, told_at_ms=1))
    assert len(lab.the_trainer.submitted) == 1
    asked = Counter(teacher.asked_models)
    holdout = ended.manifest.holdout
    assert (asked["gpt-4.1"], asked["triage-ft"], asked["triage-base"]) == (40, holdout, holdout)
    results = await store.jobs.results(job.id)
    assert {row["model"] for row in results["rows"]} == {"gpt-4.1", "triage-ft", "triage-base"}
    assert len(await store._redis.zrange(keys.job_deliveries(job.id), 0, -1)) == 2  # of the first time and of this one


async def test_the_same_place_told_again_is_asked_again(store):
    teacher = Deployments("triage-ft")
    lab = Lab(teacher, ScriptedTrainer(), tuned_model="deployment")
    job = await accepted(store, a_whole_job(), prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab):
        await rung(store, engine, job, times=100, until_step="awaiting")
        await told(store, job)
        await evaluated_until(store, engine, job, lambda job: job.stage is Stage.EVALUATING)
        await evaluated_until(store, engine, job, is_awaiting)
        teacher.missing.clear()
        await told(store, job, endpoint=replace(THERE, told_at_ms=1))
        assert (await rung(store, engine, job)).status is S.SUCCEEDED


async def test_a_place_told_while_another_is_asked_replaces_it_with_all_its_answers(store):
    teacher = Deployments()
    teacher.held.add("somebody-elses")
    lab = Lab(teacher, ScriptedTrainer(), tuned_model="deployment")
    job = await accepted(store, a_whole_job(), prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab):
        await rung(store, engine, job, times=100, until_step="awaiting")
        await told(store, job, endpoint=replace(THERE, model="somebody-elses"))
        await evaluated_until(store, engine, job, lambda _: "somebody-elses" in teacher.asked_models)
        await told(store, job)
        await evaluated_until(store, engine, job, lambda job: job.fine_tunes[0].endpoint == THERE)
        teacher.held.clear()  # what was asked of it is answered now, too late
        ended = await rung(store, engine, job)

    assert ended.status is S.SUCCEEDED
    results = await store.jobs.results(job.id)
    assert {row["model"] for row in results["rows"]} == {"gpt-4.1", "triage-ft", "triage-base"}
    student = evaluation_plans(ended)[1]
    stored = [await store.content.completion_chunk(job.id, student.name, chunk) for chunk in range(2)]
    assert {kept.model for chunk in stored for kept in chunk.values()} == {"triage-ft"}

    # Nor does the job leave anything of either place, once it is deleted.
    assert "somebody-elses" in [kept.model for kept in await everything_stored(store, job)]
    await mark_deleted(store, ended, delete_models=False, now_ms=now_ms())
    await Janitor(store, Prices(), {}, secret=b"s" * 32).purge(job.id)
    left = [name.decode() async for name in store._redis.scan_iter() if job.id.encode() in name or b"ledger" in name]
    assert sorted(left) == [keys.cleanup(job.id), keys.job(job.id)]


async def everything_stored(store, job):
    """Every completion of the job, also in rounds of the evaluation that nobody reads any more."""
    found = []
    async for name in store._redis.scan_iter(match=keys.completions(job.id, "student-0*", "*").replace("{", "[{]")):
        found += [unpack_completion(blob) for blob in await store._redis.hvals(name)]
    return found


async def test_without_a_base_model_the_base_is_asked_at_the_students_provider(store):
    job = await awaiting(store, a_lab())
    await told(store, job, endpoint=StudentEndpoint(provider="elsewhere", model="triage-ft"))
    await rung(store, an_engine(store, a_lab()), job, times=1)

    base, student = evaluation_plans(await loaded(store, job.id))

    assert (base.provider, base.model, base.priced_as) == ("lab", "base-0", None)
    assert (student.provider, student.model) == ("elsewhere", "triage-ft")


async def test_a_bell_that_finds_the_lease_held_is_not_missed(store):
    """The owner tells while a worker is deciding to wait."""
    lab, job = a_lab(), await awaiting(store, a_lab())
    load, looks = store.jobs.load, 0

    async def told_after_the_look(job_id):
        nonlocal looks
        found = await load(job_id)
        looks += 1
        if looks == 1:
            await told(store, job)
        return found

    store.jobs.load = told_after_the_look
    await an_engine(store, lab).advance(job.id)
    store.jobs.load = load

    assert (await loaded(store, job.id)).fine_tunes[0].endpoint == THERE


async def test_one_student_is_followed_while_another_awaits_its_deployment(store):
    lab, job = a_lab(), await in_training(store, students=2)
    lab.the_trainer.statuses = {"ftjob-1": "running"}
    engine = an_engine(store, lab)
    waiting = await rung(store, engine, job, times=4)
    assert [tune.step for tune in waiting.fine_tunes] == ["awaiting", "submitted"]

    await told(store, job, 0)
    assert [tune.step for tune in (await rung(store, engine, job, times=1)).fine_tunes] == ["ended", "submitted"]
    lab.the_trainer.statuses = {}
    await rung(store, engine, job, times=3)
    await told(store, job, 1)
    ended = await rung(store, engine, job, times=2)

    assert [tune.step for tune in ended.fine_tunes] == ["ended", "ended"]
    assert ended.stage is Stage.EVALUATING


@pytest.mark.parametrize("end", ["cancel", "deadline"])
async def test_a_waiting_student_does_not_keep_its_job_from_ending(store, end):
    lab = a_lab()
    job = await awaiting(store, lab)
    if end == "cancel":
        await store.jobs.change(job, Change(status=S.CANCELLING, due_in_seconds=0))
    else:
        await store.jobs.change(job, Change(set={"deadline_at_ms": 1}))

    ended = await rung(store, an_engine(store, lab), job)

    assert ended.status is (S.CANCELLED if end == "cancel" else S.FAILED)
    assert (ended.error.code if ended.error else None) == (None if end == "cancel" else "deadline_exceeded")
    assert ended.fine_tunes[0].step == "ended"
    assert lab.the_trainer.cancelled == []  # there is nothing left to cancel at the provider


async def test_a_paused_job_takes_the_endpoint_once_it_is_resumed(store):
    lab = a_lab()
    job = await awaiting(store, lab)
    await store.jobs.change(job, Change(status=S.PAUSED))
    await store.jobs.change(job, Change(set={"endpoint_0": THERE}))
    engine = an_engine(store, lab)

    assert (await rung(store, engine, job, times=2)).fine_tunes[0].step == "awaiting"

    await store.jobs.change(await loaded(store, job.id), Change(status=S.RUNNING, due_in_seconds=0))
    assert (await rung(store, engine, job, times=2)).fine_tunes[0].step == "ended"


async def test_the_price_of_the_training_is_settled_when_the_training_ends(store, tmp_path):
    job = await awaiting(store, a_lab())

    assert job.fine_tunes[0].reserved_nano == job.money.reserved_nano == 0

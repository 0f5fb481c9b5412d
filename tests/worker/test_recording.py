"""What a provider reports of a training is written down once, and completed at its end."""

import base64

import pytest
from builders import a_job, accepted, loaded, prompts
from doubles import Lab, ScriptedTrainer

from shared.errors import ProviderUnavailable
from shared.models import Checkpoint, FineTune, MetricPoint
from shared.ports import TrainingEvent, TrainingJob
from shared.pricing import Prices
from shared.settings import Settings
from shared.store.jobs import Change
from worker.stages import Tools
from worker.stages.recording import Recording

pytestmark = pytest.mark.anyio


class Work:
    """One submitted student, and what was written of it."""

    def __init__(self, store, job, trainer):
        self.store, self.job, self.trainer = store, job, trainer
        self.tune = FineTune(step="submitted", fine_tuning_job_id="ftjob-0", training_file="file-0")
        self.events = []
        self.told = []
        settings = Settings(_env_file=None, redis_url="redis://unused", secret_key="s" * 32)
        self.tools = Tools(store, Lab(trainer=trainer), Prices(), settings, lambda: None)

    async def _keep(self, tune):
        self.tune = tune
        self.told += self.events
        self.events.clear()

    def _recording(self):
        return Recording(self.job, 0, self.tools, self._keep, self.events)

    async def read(self):
        await self._keep(await self._recording().read(self.tune))

    async def complete(self, results=()):
        for number, content in enumerate(results):
            self.trainer.results[f"file-r{number}"] = content
        ended = TrainingJob(
            id="ftjob-0",
            status="succeeded",
            state="succeeded",
            created_at=1000,
            training_file="file-0",
            metadata={},
            fine_tuned_model="ft:m",
            result_files=list(self.trainer.results),
        )
        await self._keep(await self._recording().complete(self.tune, ended))

    async def curve(self):
        return (await self.store.metrics.points(self.job.id)).get(0, [])


@pytest.fixture
async def work(real_store):
    trainer = ScriptedTrainer()
    job = await accepted(real_store, a_job(), prompts(2))
    return Work(real_store, job, trainer)


def a_metric(step, total=5, *, at=None, **measures):
    data = {"step": step, "total_steps": total, **({"train_loss": 1 / step} | measures)}
    return TrainingEvent(f"ftevent-{step}", at or 1000 + step, "info", f"Step {step}/{total}", "metrics", data)


def a_message(text, number=0):
    return TrainingEvent(f"ftevent-m{number}", 1000 + number, "info", text, "message", {})


async def test_every_event_is_written_once_however_often_they_are_read(work):
    work.trainer.training_events = [a_metric(1), a_metric(2)]
    await work.read()
    await work.read()
    work.trainer.training_events += [a_metric(3)]
    await work.read()

    assert [event.data["step"] for event in work.told] == [1, 2, 3]
    assert [point.step for point in await work.curve()] == [1, 2, 3]
    assert (work.tune.step_number, work.tune.total_steps) == (3, 5)


async def test_more_events_than_fit_one_write_are_all_written(work):
    work.trainer.training_events = [a_metric(step, 1_150) for step in range(1, 1_151)]

    await work.read()

    assert len(work.told) == len(await work.curve()) == 1_150


async def test_a_long_training_is_kept_in_a_bounded_number_of_points(work):
    work.trainer.training_events = [a_metric(step, 9_999) for step in range(1, 10_000)]

    await work.read()

    assert 1_900 < len(await work.curve()) <= 2_001
    assert len(work.told) == len(await work.curve())
    assert work.tune.step_number == 9_999


async def test_events_that_the_provider_no_longer_lists_are_not_told_again(work):
    work.trainer.training_events = [a_metric(1), a_metric(2), a_metric(3)]
    await work.read()
    work.trainer.training_events = [a_metric(2), a_metric(4), a_metric(5)]

    await work.read()

    assert [event.data["step"] for event in work.told] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("encode", [bytes, base64.b64encode], ids=["plain", "base64"])
async def test_what_the_events_leave_out_comes_from_the_result_file(work, encode):
    work.trainer.training_events = [a_metric(1), a_metric(5)]
    await work.read()
    rows = b"".join(b"%d,9.0,0.5,,\n" % step for step in range(1, 6))

    await work.complete([encode(b"step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n" + rows)])

    assert [(point.step, point.train_loss) for point in await work.curve()] == [
        (1, 1.0),
        (2, 9.0),
        (3, 9.0),
        (4, 9.0),
        (5, 0.2),
    ]


async def test_without_gaps_no_result_file_is_asked_for(work):
    work.trainer.training_events = [a_metric(step) for step in range(1, 6)]
    await work.read()

    await work.complete([b"step,train_loss\n1,7.0\n"])

    assert "result_file" not in work.trainer.calls


async def test_checkpoints_are_noted_when_they_are_told_of_and_at_the_end(work):
    first = Checkpoint(id="ftckpt_1", model="ft:m:ckpt-step-2", step=2, created_at=1002)
    last = Checkpoint(
        id="ftckpt_2",
        model="ft:m:ckpt-step-4",
        step=4,
        created_at=1004,
        metrics=MetricPoint(step=4, train_loss=1),
    )
    work.trainer.training_events = [a_metric(1)]
    await work.read()
    assert "checkpoints" not in work.trainer.calls
    work.trainer.training_events += [a_message("Checkpoint created at step 2", 2)]
    work.trainer.kept_checkpoints = [first]
    await work.read()
    assert work.tune.checkpoints == [first]
    work.trainer.kept_checkpoints = [last, first]

    await work.complete()

    assert work.tune.checkpoints == [first, last]
    await work.store.jobs.change(work.job, Change(set={"fine_tunes": [work.tune]}))
    assert (await loaded(work.store, work.job.id)).fine_tunes == [work.tune]


async def test_a_report_that_cannot_be_had_is_tried_again_a_few_times_and_does_not_cost_the_job(work):
    class Silent(ScriptedTrainer):
        async def checkpoints(self, job_id):
            raise ProviderUnavailable("Down.")

    work.trainer = Silent()
    work.tools = Tools(work.store, Lab(trainer=work.trainer), Prices(), work.tools.settings, lambda: None)
    with pytest.raises(ProviderUnavailable):
        await work.complete()
    await work.store.jobs.change(work.job, Change(set={"stage_attempts": 3}))
    work.job = await loaded(work.store, work.job.id)

    await work.complete()

"""Several answers to a prompt: bought once each, the best one kept, and the dataset the same whenever it is made."""

import contextlib
import hashlib
import json
from collections import Counter

import pytest
from builders import a_prompt, accepted, loaded, now_ms, prompts
from doubles import Lab, ScriptedTeacher, prices_of_a_nano
from engines import Killed, a_whole_job, an_engine, let_the_lease_run_out, rung
from msgspec.structs import replace
from pumps import pumping

from api.content import dataset_lines
from shared.deletion import mark_deleted
from shared.exports import formats_of
from shared.lifecycle import JobStatus, Stage
from shared.models import Curation, Evaluation, Split, Student, Teacher
from shared.plan import phases, plans, teacher_plans
from shared.pricing import Prices
from shared.store.jobs import Change
from shared.store.passes import PassId
from worker.janitor import Janitor

pytestmark = pytest.mark.anyio
S = JobStatus
JUDGE = {"type": "score_model", "provider": "lab", "model": "judge-1"}
SEED = 70


@pytest.fixture
def store(real_store):
    return real_store


class Sampler(ScriptedTeacher):
    """Answers `<question>: <n>`, n being the sample, and rates that answer by `rate(n)`."""

    def __init__(self, rate=lambda n: n / 10):
        super().__init__()
        self.rate = rate
        self.samples = []
        self.rated = []
        self.models = Counter()  # how often each was asked

    async def complete(self, request):
        self.models[request.body["model"]] += 1
        text = request.body["messages"][-1]["content"]
        material = json.loads(text) if text.startswith("{") else {}
        if "answer" in material:
            self.rated.append(material["answer"])
            rating = self.rate(int(material["answer"].rpartition(" ")[2]))
            said = {None: "I cannot say.", "": ""}
            self.script = [said[rating] if rating in said else json.dumps({"score": rating})]
        else:
            sample = request.body.get("seed", SEED) - SEED
            if request.body["model"] == "gpt-4.1":
                self.samples.append((text, sample))
            self.script = [f"{text[:12]}: {sample}"]
        return await super().complete(request)


def a_sampled_job(samples=3, **fields):
    teacher = Teacher(provider="lab", model="gpt-4.1", params={"seed": SEED}, samples=samples)
    curation = Curation(min_accepted=1, **fields.pop("curation", {}))
    job = a_whole_job(**{"teacher": teacher, **fields})
    return replace(job, spec=replace(job.spec, curation=curation, split=Split(holdout=0.2, validation=0.1)))


async def finished(store, lab, job, source):
    job = await accepted(store, job, source)
    async with pumping(store, lab):
        return await rung(store, an_engine(store, lab), job, times=500)


async def everything(store, job):
    """All decisions, by sample."""
    names = [plan.name for plan in teacher_plans(job)]
    return [decisions async for _, _, decisions in store.content.curated(job.id, names)]


async def test_the_sample_that_the_judge_likes_best_is_kept_and_every_one_is_bought_once(store):
    lab = Lab(Sampler(rate=lambda n: [0.3, 0.9, 0.6][n]))

    ended = await finished(store, lab, a_sampled_job(curation={"grader": JUDGE}), prompts(25))

    assert ended.status is S.SUCCEEDED, ended.error
    assert sorted(lab.the_teacher.samples) == sorted(
        (p.messages[-1]["content"], n) for p in prompts(25) for n in range(3)
    )
    assert len(lab.the_teacher.rated) == len(set(lab.the_teacher.rated)) == 75
    for decisions in await everything(store, ended):
        assert [decision.reason for decision in decisions] == ["not_best", None, "not_best"]
        assert [decision.score for decision in decisions] == [0.3, 0.9, 0.6]
    assert ended.manifest.rejected == {"not_best": 50}
    assert (ended.counters.prompts_total, ended.counters.settled) == (25, 75)
    sent = lab.the_trainer.files[0][2].decode()
    assert sent.count(': 1"') == ended.manifest.train


async def test_all_first_samples_are_there_before_any_other_is_asked(store):
    lab = Lab(Sampler())
    await finished(store, lab, a_sampled_job(), prompts(25))

    numbers = [sample for _, sample in lab.the_teacher.samples]
    assert max(numbers[:25]) == 0
    assert set(numbers[25:]) == {1, 2}


async def test_what_is_exported_is_what_the_manifest_names_in_every_format(store):
    ended = await finished(store, Lab(Sampler()), a_sampled_job(curation={"grader": JUDGE}), prompts(25))

    for split in ("train", "validation", "holdout"):
        for format in formats_of(ended.spec):
            content = b"".join([block async for block in dataset_lines(store, ended, split, format)])
            file = ended.manifest.file(split, format)
            assert file.sha256 == hashlib.sha256(content).hexdigest()
            assert (file.lines, file.bytes) == (content.count(b"\n"), len(content))
    raw = [
        json.loads(line) async for block in dataset_lines(store, ended, "train", "raw") for line in block.splitlines()
    ]
    assert {(line["sample"], line["score"], line["reason"]) for line in raw} == {
        (0, 0.0, "not_best"),
        (1, 0.1, "not_best"),
        (2, 0.2, None),
    }


@pytest.mark.parametrize("grader", [None, JUDGE], ids=["agreement", "judge"])
async def test_the_same_samples_give_the_same_dataset_again_and_cost_nothing(store, grader):
    lab = Lab(Sampler())
    first = await finished(store, lab, a_sampled_job(curation={"grader": grader}), prompts(25))
    bought = len(lab.the_teacher.samples), len(lab.the_teacher.rated)

    second = await finished(store, lab, a_sampled_job(curation={"grader": grader}), prompts(25))

    assert (len(lab.the_teacher.samples), len(lab.the_teacher.rated)) == bought
    assert second.counters.reused == 75
    assert second.manifest == first.manifest
    assert second.manifest.file("train", "raw").sha256


async def test_more_samples_of_what_was_bought_before_buy_only_the_further_ones(store):
    lab = Lab(Sampler())
    await finished(store, lab, a_sampled_job(samples=1), prompts(25))
    await finished(store, lab, a_sampled_job(samples=2), prompts(25))

    assert sorted(lab.the_teacher.samples) == sorted(
        (p.messages[-1]["content"], n) for p in prompts(25) for n in range(2)
    )


async def test_a_prompt_that_brought_its_answer_is_not_asked_at_all(store):
    own = [a_prompt(f"Own question {n}?", completion={"role": "assistant", "content": f"Own {n}: 0"}) for n in range(5)]
    lab = Lab(Sampler())

    ended = await finished(store, lab, a_sampled_job(curation={"grader": JUDGE}), [*own, *prompts(20)])

    assert len(lab.the_teacher.samples) == 60
    assert len(lab.the_teacher.rated) == 65
    for decisions in (await everything(store, ended))[:5]:
        assert [decision and decision.status for decision in decisions] == ["accepted", None, None]


@pytest.mark.parametrize(("rating", "reason"), [("", "empty"), (None, "ungradable")])
async def test_a_judge_that_gives_no_score_is_asked_no_further_than_its_trial(store, rating, reason):
    lab = Lab(Sampler())
    lab.the_teacher.rate = lambda n: rating
    job = await accepted(store, a_sampled_job(curation={"grader": JUDGE, "min_score": 0.5}), prompts(40))

    async with pumping(store, lab, smoke_completions=8):
        ended = await rung(store, an_engine(store, lab, smoke_completions=8), job, times=500)

    assert (ended.status, ended.stage, ended.error.code) == (S.FAILED, "curating", "smoke_test_failed")
    assert ended.error.param == "curation.grader"
    assert "judge's first 8 replies" in ended.error.message
    assert f"{reason}: 8" in ended.error.message
    assert len(lab.the_teacher.rated) == 8, "of 120 answers"


async def test_of_several_samples_the_first_is_tried_and_the_others_not_bought_when_they_miss_their_schema(store):
    lab = Lab(Sampler())
    job = a_sampled_job(curation={"response_schema": {"type": "object"}})
    job = await accepted(store, job, prompts(40))

    async with pumping(store, lab, smoke_completions=8):
        ended = await rung(store, an_engine(store, lab, smoke_completions=8), job, times=500)

    assert (ended.status, ended.stage, ended.error.code) == (S.FAILED, "generating", "smoke_test_failed")
    assert "invalid_schema: 8" in ended.error.message
    assert len(lab.the_teacher.samples) == 8, "of 120 answers"


async def test_a_threshold_above_what_the_judge_gives_ends_the_job_and_says_so(store):
    lab = Lab(Sampler(rate=lambda n: None if n == 2 else 0.4))

    ended = await finished(store, lab, a_sampled_job(curation={"grader": JUDGE, "min_score": 0.5}), prompts(25))

    assert (ended.status, ended.error.code) == (S.FAILED, "too_few_accepted")
    assert "50 below_threshold, 25 ungradable" in ended.error.message
    assert (ended.manifest.train, ended.manifest.rejected) == (0, {"below_threshold": 50, "ungradable": 25})
    assert not lab.the_trainer.submitted


async def test_the_verdict_is_about_the_sample_that_was_kept(store):
    lab = Lab(Sampler(rate=lambda n: float(n == 2)))
    ended = await finished(store, lab, a_sampled_job(curation={"grader": JUDGE}), prompts(25))

    samples = (await store.jobs.results(ended.id))["samples"]
    assert samples
    assert all(sample["teacher"].endswith(": 2") for sample in samples)


DPO = Student(provider="lab", model="gpt-4.1-nano", method="dpo", hyperparameters={"beta": 0.2})


async def test_a_student_learns_from_pairs_and_another_from_examples_in_the_same_job(store):
    lab = Lab(Sampler(rate=lambda n: [0.3, 0.9, 0.6][n]))
    students = [Student(provider="lab", model="gpt-4.1-nano"), DPO]

    ended = await finished(store, lab, a_sampled_job(students=students, curation={"grader": JUDGE}), prompts(25))

    assert ended.status is S.SUCCEEDED, ended.error
    files = {name: content for _, name, content in lab.the_trainer.files}
    sent = {request.method: request for request in lab.the_trainer.submitted}
    assert sent["dpo"].hyperparameters == {"beta": 0.2}
    of_id = {file_id: content for file_id, _, content in lab.the_trainer.files}
    pairs = [json.loads(line) for line in of_id[sent["dpo"].training_file].splitlines()]
    assert len(pairs) == ended.manifest.train
    assert {pair["preferred_output"][0]["content"][-1] for pair in pairs} == {"1"}
    assert {pair["non_preferred_output"][0]["content"][-1] for pair in pairs} == {"0"}
    examples = [json.loads(line) for line in of_id[sent["supervised"].training_file].splitlines()]
    assert {tuple(example) for example in examples} == {("messages",)}
    named = {ended.manifest.file("train", format).sha256 for format in ("openai_chat", "openai_dpo")}
    assert named <= {hashlib.sha256(content).hexdigest() for content in files.values()}
    assert sent["dpo"].validation_file is not None


async def test_too_few_pairs_end_the_job_before_anything_is_trained(store):
    lab = Lab(Sampler(rate=lambda n: 0.5))

    ended = await finished(store, lab, a_sampled_job(students=[DPO], curation={"grader": JUDGE}), prompts(25))

    assert (ended.status, ended.error.code, ended.error.param) == (S.FAILED, "too_few_accepted", "students.0.method")
    assert "25 no_worse_sample" in ended.error.message
    assert not lab.the_trainer.files
    assert ended.manifest.unpaired == {"no_worse_sample": 25}, "what was decided stays readable"
    content = b"".join([block async for block in dataset_lines(store, ended, "train", "openai_chat")])
    assert ended.manifest.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    ("student", "what"),
    [(Student(provider="lab", model="gpt-4.1-nano"), "examples were accepted"), (DPO, "preference pairs were found")],
)
async def test_fewer_examples_than_the_provider_trains_with_end_the_job_before_anything_is_uploaded(
    store, student, what
):
    lab = Lab(Sampler(), examples_min=21)

    ended = await finished(store, lab, a_sampled_job(students=[student], curation={"grader": JUDGE}), prompts(25))

    assert (ended.status, ended.error.code, ended.error.param) == (S.FAILED, "too_few_accepted", "students.0.provider")
    assert f"{ended.manifest.train} {what} for training" in ended.error.message
    assert "no fewer than 21" in ended.error.message
    assert 0 < ended.manifest.train < 21
    assert not lab.the_trainer.files


async def test_too_few_pairs_end_the_student_that_needs_them_and_no_other(store):
    lab = Lab(Sampler(rate=lambda n: 0.5))
    alone = replace(DPO, model="left-alone")
    students = [alone, Student(provider="lab", model="gpt-4.1-nano"), alone]

    ended = await finished(store, lab, a_sampled_job(students=students, curation={"grader": JUDGE}), prompts(25))

    assert ended.status is S.SUCCEEDED, ended.error
    first, other, last = ended.fine_tunes
    assert {(each.step, each.status, each.error.code) for each in (first, last)} == {
        ("ended", "not_submitted", "too_few_accepted")
    }
    assert [each.error.param for each in (first, last)] == ["students.0.method", "students.2.method"]
    assert other.status == "succeeded"
    assert [request.method for request in lab.the_trainer.submitted] == ["supervised"]
    assert lab.the_teacher.models["gpt-4.1-nano"] == ended.manifest.holdout
    assert "left-alone" not in lab.the_teacher.models, "nobody pays for a base without its student"


async def test_what_rating_costs_is_told_apart(store, tmp_path):
    lab = Lab(Sampler(), prices="lab")
    job = await accepted(store, a_sampled_job(curation={"grader": JUDGE}), prompts(25))
    async with pumping(store, lab, prices=prices_of_a_nano(tmp_path)):
        await rung(store, an_engine(store, lab), job, times=500)

    money = (await loaded(store, job.id)).money
    assert (money.generating_nano, money.curating_nano) == (75 * 15, 75 * 15)


async def test_a_deleted_job_takes_all_its_samples_with_it(store):
    lab = Lab(Sampler())
    ended = await finished(store, lab, a_sampled_job(curation={"grader": JUDGE}), prompts(25))

    await mark_deleted(store, ended, delete_models=False, now_ms=now_ms())
    await Janitor(store, Prices(), {}, secret=b"s" * 32).purge(ended.id)

    left = await store._redis.keys(f"d:{{{ended.id}}}:*")
    assert {key.rpartition(b":")[2] for key in left} <= {b"job", b"cleanup"}
    assert await store._redis.keys("d:t:acme:ledger:*") == []


async def test_a_job_without_samples_has_the_passes_it_always_had(store):
    job = await loaded(store, (await accepted(store, a_whole_job(), prompts(4))).id)

    assert [(plan.name, plan.number) for plan in plans(job)] == [("teacher", 0), ("base-0", 1)]
    assert [[plan.name for plan in phase] for phase in phases(replace(job, stage="generating"))] == [["teacher"], []]
    assert replace(job.spec.students[0]) == Student(provider="lab", model="gpt-4.1-nano")


@pytest.mark.parametrize(
    ("stage", "first", "then"),
    [
        (Stage.GENERATING, ["teacher"], ["teacher-1", "teacher-2"]),
        (Stage.CURATING, [], ["rating"]),
        (Stage.EVALUATING, ["base-0"], ["judge-0"]),
    ],
)
async def test_a_pass_that_ends_while_the_lease_is_held_is_looked_at_again(store, stage, first, then):
    job = a_sampled_job(curation={"grader": JUDGE}, evaluation=Evaluation(graders=[JUDGE]))
    job = await accepted(store, job, prompts(4))
    await store.jobs.change(job, Change(status=S.RUNNING, set={"stage": stage}))
    engine = an_engine(store)

    assert not await engine._bell_was_missed(job.id)
    for names in filter(None, (first, then)):
        for name in names:
            await store.passes.open(PassId(job.id, name), prompts=0, chunk_size=10, smoke=0)
        assert await engine._bell_was_missed(job.id), "all that was open is complete"
    assert len([plan for phase in phases(await loaded(store, job.id)) for plan in phase]) == len(first + then)


async def test_passes_that_are_still_open_ring_no_bell(store):
    job = await accepted(store, a_sampled_job(), prompts(4))
    await store.jobs.change(job, Change(status=S.RUNNING, set={"stage": Stage.GENERATING}))
    engine = an_engine(store)
    await store.passes.open(PassId(job.id, "teacher"), prompts=0, chunk_size=10, smoke=0)
    await store.passes.open(PassId(job.id, "teacher-1"), prompts=0, chunk_size=10, smoke=0)
    await store.passes.open(PassId(job.id, "teacher-2"), prompts=4, chunk_size=10, smoke=0)

    assert not await engine._bell_was_missed(job.id)


@pytest.mark.parametrize("at", ["before a chunk", "after a chunk", "before the pass opens"])
async def test_a_crash_while_the_questions_are_written_asks_none_of_them_twice(store, at):
    lab = Lab(Sampler())
    job = await accepted(store, a_sampled_job(curation={"grader": JUDGE}), prompts(25))
    put, open_, calls = store.content.put_prompt_chunk, store.passes.open, []

    async def put_or_die(job_id, prompt_set, chunk, some):
        dying = prompt_set == "rating" and chunk == 3 and not calls
        if dying and at == "before a chunk":
            calls.append(chunk)
            raise Killed
        await put(job_id, prompt_set, chunk, some)
        if dying and at == "after a chunk":
            calls.append(chunk)
            raise Killed

    async def open_or_die(pass_id, **fields):
        if pass_id.name == "rating" and at == "before the pass opens" and not calls:
            calls.append(0)
            raise Killed
        return await open_(pass_id, **fields)

    store.content.put_prompt_chunk, store.passes.open = put_or_die, open_or_die
    async with pumping(store, lab):
        with contextlib.suppress(Killed):
            await rung(store, an_engine(store, lab), job, times=500)
        assert calls
        await let_the_lease_run_out(store, job)
        ended = await rung(store, an_engine(store, lab), job, times=500)

    assert ended.status is S.SUCCEEDED, ended.error
    assert len(lab.the_teacher.rated) == len(set(lab.the_teacher.rated)) == 75

"""Judges: their calls are a pass like any other, and what they cannot say is no low score."""

import asyncio
import json

import pytest
from builders import accepted, loaded, now_ms, prompts
from doubles import Lab, ScriptedTeacher, an_answer, prices_of_a_nano
from engines import a_whole_job, an_engine, rung
from msgspec.structs import replace
from pumps import pumping, until

from shared.deletion import mark_deleted
from shared.errors import ProviderAuthFailed, ProviderModelMissing
from shared.ids import completion_id
from shared.lifecycle import JobStatus, PausedReason
from shared.models import Budget, Curation, Evaluation, Money, Teacher
from shared.plan import judge_plans, rating_plan
from shared.pricing import Prices
from shared.store.jobs import Change
from worker.janitor import Janitor

pytestmark = pytest.mark.anyio
S = JobStatus
JUDGE = {"type": "score_model", "provider": "lab", "model": "judge-1"}


@pytest.fixture
def store(real_store):
    return real_store


def is_judging(text):
    return text.startswith("{") and "answer_1" in text


def a_class(judge=lambda material: '{"score": 0.5}'):
    """Answers every model gives: the teacher by the number of the question, students by their own name."""

    class Class(ScriptedTeacher):
        async def complete(self, request):
            text = request.body["messages"][-1]["content"]
            if not is_judging(text):
                self.script = [f"{request.body['model']} says {text[:12]}"]
            else:
                said = judge(json.loads(text))
                self.script = [said if isinstance(said, str) else asyncio.sleep(0, said)]
            return await super().complete(request)

    return Class()


def a_judged_job(**fields):
    evaluation = Evaluation(graders=[{"type": "text_similarity"}, JUDGE])
    return a_whole_job(**{"evaluation": evaluation, **fields})


async def test_a_judge_is_asked_once_all_have_answered_and_its_rows_stand_in_the_verdict(store):
    lab = Lab(a_class(lambda material: '{"score": 0.9}' if "ft:" in json.dumps(material) else '{"score": 0.1}'))
    job = await accepted(store, a_judged_job(), prompts(40))

    async with pumping(store, lab):
        ended = await rung(store, an_engine(store, lab), job)

    assert ended.status is S.SUCCEEDED, ended.error
    rows = {row["role"]: row for row in (await store.jobs.results(job.id))["rows"] if row["grader"] == "score_model"}
    assert (rows["base"]["score"], rows["student"]["score"]) == (0.1, 0.9)
    assert rows["teacher"]["by_definition"]
    assert rows["student"]["complete"]
    judged = [text for text in lab.the_teacher.asked if is_judging(text)]
    assert len(judged) == len(set(judged)) == 2 * 2 * ended.manifest.holdout
    first_judged = next(n for n, text in enumerate(lab.the_teacher.asked) if is_judging(text))
    assert not [text for text in lab.the_teacher.asked[first_judged:] if not is_judging(text)]


async def test_the_provider_s_limit_of_calls_at_once_holds_for_evaluation_and_judge_too(store):
    lab = Lab(a_class(), max_in_flight=2)
    lab.the_teacher.seconds = 0.002
    job = await accepted(store, a_judged_job(), prompts(40))

    async with pumping(store, lab, in_flight=40):
        ended = await rung(store, an_engine(store, lab), job, times=300)

    assert ended.status is S.SUCCEEDED, ended.error
    assert lab.the_teacher.most_at_once == 2


async def test_a_reply_that_is_no_score_makes_the_row_incomplete_and_lowers_nothing(store):
    replies = iter(["I would rather not say."] + ['{"score": 0.8}'] * 1000)
    lab = Lab(a_class(lambda _: next(replies)))
    job = await accepted(store, a_judged_job(), prompts(40))

    async with pumping(store, lab, in_flight=1):
        await rung(store, an_engine(store, lab), job)

    rows = [row for row in (await store.jobs.results(job.id))["rows"] if row["grader"] == "score_model"]
    contestants = [row for row in rows if row["role"] != "teacher"]
    assert sorted(row["failures"] for row in contestants) == [0, 1]
    assert [row["score"] for row in contestants] == [0.8, 0.8]


@pytest.mark.parametrize(
    "error", [ProviderAuthFailed("No.", status=401), ProviderModelMissing("No.", status=404)], ids=["key", "model"]
)
async def test_a_judge_that_cannot_be_asked_leaves_the_other_rows_and_says_so(store, error):
    teacher = a_class()
    complete = teacher.complete

    async def refused(request):
        if request.body["model"] == "judge-1":
            raise error
        return await complete(request)

    teacher.complete = refused
    lab = Lab(teacher)
    job = await accepted(store, a_judged_job(), prompts(40))

    async with pumping(store, lab):
        ended = await rung(store, an_engine(store, lab), job)

    assert ended.status is S.SUCCEEDED, ended.error
    rows = (await store.jobs.results(job.id))["rows"]
    judged = {row["role"]: row for row in rows if row["grader"] == "score_model"}
    assert judged["student"]["score"] is None
    assert not judged["student"]["complete"]
    assert next(row for row in rows if row["role"] == "student" and row["grader"] == "text_similarity")["complete"]
    told = [event for event in await store.jobs.events(job.id, after=0, limit=99) if event.level == "warn"]
    assert [event.data["code"] for event in told] == [error.code]


@pytest.mark.parametrize(
    ("said", "reason"), [("I cannot say.", "ungradable"), ('{"verdict": 1}', "ungradable"), ("", "empty")]
)
async def test_a_judge_that_gives_no_score_is_asked_no_further_than_its_trial_and_the_other_rows_stand(
    store, said, reason
):
    lab = Lab(a_class(lambda _: said))
    job = await accepted(store, a_judged_job(), prompts(40))

    async with pumping(store, lab, smoke_completions=4):
        ended = await rung(store, an_engine(store, lab, smoke_completions=4), job, times=500)

    assert ended.status is S.SUCCEEDED, ended.error
    assert len([text for text in lab.the_teacher.asked if is_judging(text)]) == 4
    rows = {(row["grader"], row["role"]): row for row in (await store.jobs.results(job.id))["rows"]}
    assert not rows["score_model", "student"]["complete"]
    assert rows["text_similarity", "student"]["complete"]
    [told] = [event for event in await store.jobs.events(job.id, after=0, limit=99) if event.level == "warn"]
    assert told.data == {"grader": 1, "code": "smoke_test_failed"}
    assert f"Only 0 of the judge's first 4 replies can be used ({reason}: 4)" in told.message


async def test_a_trial_that_fails_while_the_stage_looks_at_it_ends_no_job(store, monkeypatch):
    lab = Lab(a_class(lambda _: "I cannot say."))
    job = await accepted(store, a_judged_job(), prompts(40))
    read, seen = store.passes.state, [None, None]

    async def late(pass_id):
        """The judge's pass as it was two looks ago: a halt comes to light in the middle of the stage."""
        if not pass_id.name.startswith("judge"):
            return await read(pass_id)
        seen.append(await read(pass_id))
        return seen[-3]

    monkeypatch.setattr(store.passes, "state", late)
    async with pumping(store, lab, smoke_completions=4):
        ended = await rung(store, an_engine(store, lab, smoke_completions=4), job, times=500)

    assert ended.status is S.SUCCEEDED, ended.error


async def test_a_judge_that_passes_its_trial_is_asked_about_all(store):
    replies = iter(["I cannot say.", '{"score": 0.8}'] * 1000)
    lab = Lab(a_class(lambda _: next(replies)))
    job = await accepted(store, a_judged_job(), prompts(40))

    async with pumping(store, lab, smoke_completions=4, in_flight=1):
        ended = await rung(store, an_engine(store, lab, smoke_completions=4), job, times=500)

    assert len([text for text in lab.the_teacher.asked if is_judging(text)]) == 2 * 2 * ended.manifest.holdout > 4


async def test_a_budget_that_ends_in_the_judges_pass_pauses_and_resuming_asks_only_the_rest(store, tmp_path):
    lab = Lab(a_class(lambda _: an_answer('{"score": 0.5}', prompt_tokens=2_000)), prices="lab")
    limit = 20_000
    teacher = Teacher(provider="lab", model="gpt-4.1", params={"max_completion_tokens": 100})
    budget = Budget(max_cost_nano=limit)
    job = a_judged_job(teacher=teacher, budget=budget)
    job = await accepted(store, replace(job, money=Money(limit_nano=limit)), prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab, prices=prices_of_a_nano(tmp_path)):
        paused = await rung(store, engine, job, times=500, until_status=S.PAUSED)
        assert paused.paused_reason is PausedReason.BUDGET
        assert paused.money.spent_nano <= limit
        assert any(is_judging(text) for text in lab.the_teacher.asked), "a judge's calls are reserved and settled"

        more = {"paused_reason": None, "limit_nano": 10**9}
        await store.jobs.change(paused, Change(status=S.RUNNING, set=more, due_in_seconds=0))
        ended = await rung(store, engine, job, times=500)

    assert ended.status is S.SUCCEEDED, ended.error
    judged = [text for text in lab.the_teacher.asked if is_judging(text)]
    assert len(judged) == len(set(judged)) == 2 * 2 * ended.manifest.holdout


async def _judged_some(store, engine, job, lab):
    await engine.advance(job.id)
    return any(is_judging(text) for text in lab.the_teacher.asked)


async def test_cancelling_in_the_judges_pass_stops_it(store):
    lab = Lab(a_class())
    lab.the_teacher.seconds = 0.02
    job = await accepted(store, a_judged_job(), prompts(40))
    engine = an_engine(store, lab)
    async with pumping(store, lab, in_flight=2):
        await until(lambda: _judged_some(store, engine, job, lab), seconds=20)
        await store.jobs.change(await loaded(store, job.id), Change(status=S.CANCELLING))
        ended = await rung(store, engine, job, times=500)
        await asyncio.sleep(0.1)
        asked = len(lab.the_teacher.asked)
        await asyncio.sleep(0.1)

    assert ended.status is S.CANCELLED
    assert len(lab.the_teacher.asked) == asked
    assert [str(found) for found in await store.passes.open_passes(limit=9)] == []


async def test_a_judges_completions_are_named_apart_from_all_others(store):
    job = await accepted(store, a_judged_job(), prompts(40))
    (plan,) = judge_plans(job)

    assert plan.number == 301, "grader 1; below 300 are teacher, bases and students"
    assert completion_id(b"s" * 32, job.id, plan.number, 0) != completion_id(b"s" * 32, job.id, 1, 0)
    assert plan.params == {"max_completion_tokens": 2_048}, "what is reserved for a reply stays small"


async def test_a_judge_is_asked_with_the_params_its_owner_gives(store):
    own = {"reasoning_effort": "low", "max_completion_tokens": 9_000, "seed": None}
    judge = {**JUDGE, "sampling_params": own}
    job = a_judged_job(evaluation=Evaluation(graders=[judge]))
    job = replace(job, spec=replace(job.spec, curation=Curation(grader=judge)))

    asked = [plan.params for plan in (rating_plan(job), *judge_plans(job))]

    assert asked == [{"max_completion_tokens": 9_000, "reasoning_effort": "low"}] * 2


async def test_a_deleted_job_takes_with_it_what_its_judges_were_asked(store):
    lab = Lab(a_class())
    job = await accepted(store, a_judged_job(), prompts(40))
    async with pumping(store, lab):
        ended = await rung(store, an_engine(store, lab), job)
    assert await store._redis.keys("d:t:acme:ledger:*")

    await mark_deleted(store, ended, delete_models=False, now_ms=now_ms())
    await Janitor(store, Prices(), {}, secret=b"s" * 32).purge(job.id)

    left = await store._redis.keys(f"d:{{{job.id}}}:*")
    assert {key.rpartition(b":")[2] for key in left} <= {b"job", b"cleanup"}
    assert await store._redis.keys("d:t:acme:ledger:*") == []

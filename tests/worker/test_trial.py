"""The trial of a teacher: its first answers are looked at before the rest is bought."""

from collections import Counter

import pytest
from builders import a_spec, loaded, prompts
from doubles import Lab, ScriptedTeacher
from msgspec.structs import replace
from passes import work
from pumps import pumping, until

from shared.errors import ProviderRejected, ProviderUnavailable
from shared.models import Curation, Teacher

pytestmark = pytest.mark.anyio
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "queue", "schema": {"required": ["queue"]}}}


@pytest.fixture
def store(real_store):
    return real_store


def asked_for_json(count=50):
    return [replace(prompt, response_format=JSON_SCHEMA) for prompt in prompts(count)]


async def test_a_failed_trial_stops_before_the_rest_is_bought(store):
    teacher, job = ScriptedTeacher([ProviderRejected("No.", status=400)]), await work(store, 50, smoke=4)

    async with pumping(store, Lab(teacher), smoke_completions=4):
        await until(job.halted)

    halt = (await job.state()).halt
    assert (halt.kind, halt.error.code) == ("fail", "smoke_test_failed")
    assert len(teacher.asked) == 4
    assert "All of the first 4 calls failed" in halt.error.message
    assert "A retry makes them anew" in halt.error.message


async def test_after_a_trial_that_passed_the_rest_is_bought(store):
    teacher, job = ScriptedTeacher(), await work(store, 50, smoke=4)

    async with pumping(store, Lab(teacher), smoke_completions=4):
        await until(job.complete)

    assert len(teacher.asked) == 50


@pytest.mark.parametrize(
    ("asked", "source", "answer"),
    [
        pytest.param(Curation(response_schema={"type": "object", "required": ["queue"]}), prompts(50), "{}", id="job"),
        pytest.param(Curation(response_schema={"type": "array"}), prompts(50), "Billing", id="no JSON"),
        pytest.param(Curation(), asked_for_json(), "{}", id="prompt"),
    ],
)
async def test_a_trial_whose_answers_miss_their_schema_stops_before_the_rest_is_bought(store, asked, source, answer):
    teacher = ScriptedTeacher([answer])
    job = await work(store, source=source, smoke=4, spec=a_spec(curation=asked))

    async with pumping(store, Lab(teacher), smoke_completions=4):
        await until(job.halted)

    halt = (await job.state()).halt
    assert (halt.kind, halt.error.code) == ("fail", "smoke_test_failed")
    assert "Only 0 of the first 4 completions can be used (invalid_schema: 4)." in halt.error.message
    assert len(teacher.asked) == 4
    assert (await job.state()).accepted == 4, "what counts on arrival is left to curating"


async def test_after_a_failed_trial_a_retry_is_given_the_same_answers_and_another_seed_new_ones(store):
    teacher = ScriptedTeacher([""])
    reseeded = Teacher(provider="lab", model="gpt-4.1", params={"seed": 3})
    async with pumping(store, Lab(teacher), smoke_completions=4):
        first = await work(store, 30, smoke=4)
        await until(first.halted)
        again = await work(store, 30, smoke=4)
        await until(again.halted)
        bought = teacher.calls
        teacher.script = ["Billing"]  # whatever it was at the provider is over
        other = await work(store, 30, smoke=4, spec=a_spec(teacher=reseeded))
        await until(other.complete)

    message = (await again.state()).halt.error.message
    assert set(bought.values()) == {1}, "nothing is bought twice"
    assert "A retry is given the same answers" in message
    assert "another `seed`" in message
    assert teacher.calls - bought == Counter(other.texts)


async def test_a_trial_of_which_half_the_answers_follow_their_schema_goes_on(store):
    teacher = ScriptedTeacher(lambda text: ['{"queue": 1}' if int(text.split()[1][:-1]) % 2 else "{}"])
    job = await work(store, source=asked_for_json(), smoke=4)

    async with pumping(store, Lab(teacher), smoke_completions=4):
        await until(job.complete)

    assert len(teacher.asked) == 50


async def test_a_trial_of_reused_answers_that_miss_the_new_schema_buys_nothing(store):
    teacher, schema = ScriptedTeacher(), Curation(response_schema={"type": "object"})
    bought = await work(store, 20)
    async with pumping(store, Lab(teacher)):
        await until(bought.complete)
    job = await work(store, 50, smoke=4, spec=a_spec(curation=schema))

    async with pumping(store, Lab(teacher), smoke_completions=4):
        await until(job.halted)

    assert (await job.state()).halt.error.code == "smoke_test_failed"
    assert len(teacher.asked) == 20


async def test_a_trial_ends_although_calls_of_it_were_lost(store):
    timeout = ProviderUnavailable("Too late.", provider_code="timeout")
    teacher, job = ScriptedTeacher([timeout, "Billing"]), await work(store, 30, smoke=4)

    async with pumping(store, Lab(teacher), smoke_completions=4):
        await until(job.complete)

    assert (await loaded(store, job.job.id)).counters.possibly_billed == 30

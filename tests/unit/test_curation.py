"""What becomes of a teacher's completion, and where a prompt ends up."""

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.completions import Decision
from shared.curation import (
    TEMPLATE_CONTEXTS,
    Curator,
    assistant_message,
    check_response_schema,
    reason_against,
    shortfall,
    split_of,
    summary,
    words_of,
)
from shared.errors import ProviderUnavailable, ValidationFailed
from shared.models import Curation, Prompt, Split

SCHEMA = {"type": "object", "required": ["category"], "properties": {"category": {"enum": ["billing", "login"]}}}


def ask(question, system=None):
    instructions = [{"role": "system", "content": system}] if system else []
    return [*instructions, {"role": "user", "content": question}]


def a_prompt(question="My invoice is wrong", system=None, **fields):
    return Prompt(messages=ask(question, system), **fields)


def an_answer(content="Billing.", **fields):
    return {"role": "assistant", "content": content, **fields}


def a_curator(split=None, **curation):
    return Curator(Curation(**curation), split or Split())


def reasons(curator, *prompts):
    return [curator.decide(prompt, an_answer()).reason for prompt in prompts]


def prompts_in(split_name, count, split, system=None):
    """The first questions whose prompts land in a split."""
    numbered = (f"question {number}" for number in range(10_000))
    found = (text for text in numbered if split_of(ask(text, system), None, split) == split_name)
    return [a_prompt(next(found), system) for _ in range(count)]


# --- reading an answer -----------------------------------------------------------------------------------------------


def test_the_first_choice_of_a_stored_answer_is_read():
    raw = b'{"id":"chatcmpl-1","choices":[{"message":{"role":"assistant","content":"4"},"finish_reason":"stop"}]}'

    assert assistant_message(raw) == ({"role": "assistant", "content": "4"}, "stop")
    assert assistant_message(msgspec.Raw(raw)) == assistant_message(raw)


@pytest.mark.parametrize(
    "raw", [b"", b"<html>", b"{}", b'{"choices":[]}', b'{"choices":[{"message":null}]}', b"[" * 100_000]
)
def test_what_is_no_chat_completion_is_the_providers_fault(raw):
    with pytest.raises(ProviderUnavailable):
        assistant_message(raw)


@pytest.mark.parametrize(
    ("message", "finish_reason", "reason"),
    [
        (an_answer(), "stop", None),
        (an_answer(None, refusal="I cannot help with that."), "stop", "refused"),
        (an_answer(None, refusal="I cannot"), "length", "refused"),
        (an_answer("The answer is"), "length", "truncated"),
        (an_answer(None), "length", "truncated"),  # hidden reasoning used up the tokens
        (an_answer("x" * 21), "stop", "truncated"),
        (an_answer("x" * 20), "stop", None),
        (an_answer("The"), "content_filter", "filtered"),
        (an_answer(None), "stop", "empty"),
        (an_answer(" \n\t"), "stop", "empty"),
        (an_answer([{"type": "text", "text": "Hello"}]), "stop", None),
        (an_answer(None, tool_calls=[{"function": {"name": "f", "arguments": ""}}]), "tool_calls", "truncated"),
    ],
)
def test_an_answer_is_judged_on_its_own_first(message, finish_reason, reason):
    assert reason_against(message, finish_reason, max_output_chars=20) == reason


def test_calling_a_tool_is_an_answer():
    calls = [{"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}]

    assert reason_against(an_answer(None, tool_calls=calls), "tool_calls") is None


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "seed", "expected"),
    [
        ("My invoice is wrong", 7, "holdout"),
        ("My invoice is wrong", 8, "train"),
        ("I cannot log in", 7, "validation"),
        ("Où est ma facture ?", 10, "validation"),
        ("発票が間違っています。", 11, "holdout"),
    ],
)
def test_the_split_of_a_prompt_is_the_same_in_every_version(question, seed, expected):
    """Pinned: a change here moves the prompts of every dataset ever made."""
    assert split_of(ask(question, "You triage."), None, Split(seed=seed)) == expected


def test_the_shares_are_kept_in_the_large():
    split = Split(validation=0.1, holdout=0.2, seed=3)
    names = [split_of(ask(f"question {number}"), None, split) for number in range(5_000)]

    assert names.count("holdout") / 5_000 == pytest.approx(0.2, abs=0.02)
    assert names.count("validation") / 5_000 == pytest.approx(0.1, abs=0.02)


@given(st.text(st.characters(codec="utf-8")), st.integers(), st.floats(0, 0.5), st.floats(0, 0.4))
def test_a_larger_validation_share_moves_no_prompt_into_or_out_of_the_holdout(question, seed, holdout, validation):
    narrow = split_of(ask(question), None, Split(seed=seed, holdout=holdout, validation=0.0))
    wide = split_of(ask(question), None, Split(seed=seed, holdout=holdout, validation=validation))

    assert (narrow == "holdout") == (wide == "holdout")


@given(st.text(st.characters(codec="utf-8")), st.integers(0, 9))
def test_a_near_copy_of_a_prompt_lands_in_the_same_split(question, seed):
    copy = f"  {question.upper().lower()} !\n"
    original = f"{question.upper().lower()}"

    assert split_of(ask(copy), None, Split(seed=seed)) == split_of(ask(original), [], Split(seed=seed))


@given(st.lists(st.text(st.characters(codec="utf-8")), unique=True, min_size=1), st.data())
def test_a_prompt_keeps_its_split_when_the_set_grows(questions, data):
    known = data.draw(st.integers(1, len(questions)))
    small, large = a_curator(), a_curator()

    before = [small.decide(a_prompt(text), an_answer()).split for text in questions[:known]]
    after = [large.decide(a_prompt(text), an_answer()).split for text in questions]

    assert after[:known] == before


# --- duplicates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy", ["My invoice is wrong", "my  invoice\nis WRONG!", "My invoice, is wrong…"])
def test_a_prompt_that_differs_in_case_space_or_sentence_marks_is_a_duplicate(copy):
    assert reasons(a_curator(), a_prompt("My invoice is wrong"), a_prompt(copy)) == [None, "duplicate"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("2*3", "2-3"), ("2 + 3", "2 * 3"), ("3.5", "35"), ("order 17", "order 18"), ("x != 3", "x = 3"), ("-3", "3")],
)
def test_numbers_and_symbols_are_part_of_the_question(one, other):
    assert words_of(one) != words_of(other)


def test_images_and_tools_are_part_of_the_prompt_and_ids_of_tool_calls_are_not():
    def with_image(url):
        return Prompt(
            messages=ask([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}])
        )

    def with_call(call_id):
        call = {"id": call_id, "type": "function", "function": {"name": "find", "arguments": "{}"}}
        return Prompt(messages=[*ask("Find it"), {"role": "assistant", "tool_calls": [call]}])

    found = reasons(a_curator(), with_image("a"), with_image("b"), with_call("call_1"), with_call("call_2"))

    assert found == [None, None, None, "duplicate"]


def test_the_first_usable_answer_is_kept_and_not_the_first_one():
    curator = a_curator()

    assert curator.decide(a_prompt(), None, failed=True).status == "failed"
    assert curator.decide(a_prompt(), an_answer(""), "stop").reason == "empty"
    assert curator.decide(a_prompt(), an_answer(), "stop").status == "accepted"
    assert curator.decide(a_prompt(), an_answer(), "stop").reason == "duplicate"


def test_duplicates_stay_where_the_customer_wants_them():
    assert reasons(a_curator(dedupe=False), a_prompt(), a_prompt()) == [None, None]


# --- the holdout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dedupe", [True, False])
def test_a_question_never_stands_on_both_sides_under_different_system_messages(dedupe):
    split = Split(seed=1)
    held = prompts_in("holdout", 1, split, "You triage.")[0]
    question = held.messages[-1]["content"]
    reworded = next(
        a_prompt(question, f"You triage, version {number}.")
        for number in range(100)
        if split_of(ask(question, f"You triage, version {number}."), None, split) == "train"
    )

    assert reasons(a_curator(split, dedupe=dedupe), held, reworded, reworded)[1:] == ["leaked_into_holdout"] * 2
    assert reasons(a_curator(split, dedupe=dedupe), reworded, held, held)[1:] == ["leaked_into_holdout"] * 2


def test_a_question_asked_of_many_documents_in_the_system_message_is_no_leak():
    prompts = [a_prompt("Summarise the text above.", f"Document {number}") for number in range(200)]

    assert reasons(a_curator(), *prompts).count("leaked_into_holdout") < TEMPLATE_CONTEXTS


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["", "S", "T"])), max_size=40))
def test_holdout_and_training_share_no_question(asked):
    split, curator = Split(holdout=0.5, validation=0.1, seed=5), a_curator(Split(holdout=0.5, validation=0.1, seed=5))
    sides = {"train": set(), "validation": set(), "holdout": set()}
    for question, system in asked:
        decision = curator.decide(a_prompt(question, system), an_answer())
        assert decision.split == split_of(ask(question, system), None, split)
        if decision.status == "accepted":
            sides[decision.split].add(question)

    assert not sides["holdout"] & (sides["train"] | sides["validation"])


def test_the_curator_remembers_no_text():
    short, long = a_curator(), a_curator()
    for number in range(50):
        short.decide(a_prompt(f"q {number}"), an_answer())
        long.decide(a_prompt(f"q {number} " + "long " * 2_000), an_answer("answer " * 2_000))

    remembered = [pickle.dumps(curator) for curator in (short, long)]
    assert abs(len(remembered[0]) - len(remembered[1])) < 1_000
    assert b"answer" not in remembered[1]
    assert b"long" not in remembered[1]


# --- schemas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"category": "billing"}', None),
        ('{"category": "other"}', "invalid_schema"),
        ("{}", "invalid_schema"),
        ('```json\n{"category": "billing"}\n```', "invalid_schema"),
        ("billing", "invalid_schema"),
        ('{"category": NaN}', "invalid_schema"),
    ],
)
def test_an_answer_has_to_follow_the_jobs_schema(content, reason):
    prompt = a_prompt(response_format={"type": "json_object"})

    assert a_curator(response_schema=SCHEMA).decide(prompt, an_answer(content)).reason == reason


@pytest.mark.parametrize(
    ("response_format", "content", "reason"),
    [
        ({"type": "json_schema", "json_schema": {"name": "t", "schema": SCHEMA}}, '{"category": "login"}', None),
        ({"type": "json_schema", "json_schema": {"name": "t", "schema": SCHEMA}}, "{}", "invalid_schema"),
        ({"type": "json_object"}, "{}", None),
        ({"type": "json_object"}, "[]", "invalid_schema"),
        ({"type": "text"}, "{", None),
        (None, "{", None),
    ],
)
def test_without_one_the_prompts_own_format_counts(response_format, content, reason):
    assert a_curator().decide(a_prompt(response_format=response_format), an_answer(content)).reason == reason


def test_a_call_of_a_tool_is_not_judged_by_the_schema_of_content():
    calls = [{"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": "{}"}}]

    assert a_curator(response_schema=SCHEMA).decide(a_prompt(), an_answer(None, tool_calls=calls)).reason is None


@pytest.mark.parametrize("depth", [129, 1_500, 200_000])
def test_an_answer_nested_beyond_reason_is_invalid_and_does_no_harm(depth):
    curator = a_curator(response_schema={"type": "array", "items": {"$ref": "#"}})

    assert curator.decide(a_prompt(), an_answer("[" * depth + "]" * depth)).reason == "invalid_schema"
    assert curator.decide(a_prompt(), an_answer("[" * 128 + "]" * 128)).reason is None


@pytest.mark.parametrize(
    "schema",
    [{"type": "objekt"}, {"pattern": "("}, {"$ref": "https://example.com/s"}, {"$ref": "file:///etc/passwd"}, 5],
)
def test_a_schema_that_is_wrong_or_points_outside_is_refused_at_the_door(schema):
    with pytest.raises(ValidationFailed) as refusal:
        check_response_schema(schema)

    assert refusal.value.faults[0].pointer == "/curation/response_schema"
    assert "passwd" not in str(refusal.value)
    assert (
        a_curator()
        .decide(a_prompt(response_format={"type": "json_schema", "json_schema": {"schema": schema}}), an_answer("1"))
        .reason
        == "invalid_schema"
    )


def test_a_pattern_made_to_run_for_ever_does_not():
    curator = a_curator(response_schema={"type": "string", "pattern": "^(?=a)(a+)+$"})

    assert curator.decide(a_prompt(), an_answer('"' + "a" * 60 + '!"')).reason == "invalid_schema"


# --- what came of it -------------------------------------------------------------------------------------------------


def a_tally(train=10, validation=1, holdout=2, **rejected):
    return {"accepted": {"train": train, "validation": validation, "holdout": holdout}, "rejected": rejected}


def test_what_was_found_on_arrival_stands_and_a_rejection_keeps_its_split():
    prompt = prompts_in("holdout", 1, Split())[0]

    decision = a_curator().decide(prompt, an_answer(), "stop", "filtered")

    assert decision == Decision(status="rejected", split="holdout", reason="filtered")


def test_the_summary_counts_examples_by_split_and_losses_by_reason():
    decisions = [
        Decision(status="accepted", split="train"),
        Decision(status="accepted", split="holdout"),
        Decision(status="rejected", split="train", reason="empty"),
        Decision(status="rejected", split="train", reason="duplicate"),
        Decision(status="rejected", split="holdout", reason="duplicate"),
        Decision(status="failed", split="train"),
    ]

    tally = summary(iter(decisions))

    assert tally["accepted"] == {"train": 1, "validation": 0, "holdout": 1}
    assert list(tally["rejected"].items()) == [("duplicate", 2), ("empty", 1), ("provider_error", 1)]


def test_a_dataset_that_is_large_enough_has_no_shortfall():
    assert shortfall(a_tally(), Curation(min_accepted=10), Split()) is None


def test_too_few_examples_end_the_job_and_say_where_the_others_went():
    failure = shortfall(a_tally(train=9, duplicate=4, refused=2), Curation(min_accepted=10), Split())

    assert failure.code == "too_few_accepted"
    assert "9 examples" in str(failure)
    assert "4 duplicate, 2 refused" in str(failure)


def test_an_empty_holdout_ends_the_job_unless_none_was_asked_for():
    empty = a_tally(holdout=0)

    assert shortfall(empty, Curation(), Split(holdout=0.2)).code == "holdout_too_small"
    assert shortfall(empty, Curation(), Split(holdout=0.0)) is None

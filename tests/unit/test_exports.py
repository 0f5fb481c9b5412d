"""What a curated prompt becomes in each format, and which prompts give no pair."""

import json

import pytest
from builders import a_prompt, a_spec

from shared.completions import Decision
from shared.exports import formats_of, lines_of, preference
from shared.models import Curation, Prompt, Teacher

TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {
    "role": "assistant",
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}


def a_sampled_spec(samples=3, **fields):
    return a_spec(teacher=Teacher(provider="lab", model="gpt-4.1", samples=samples), **fields)


def said(*texts):
    return [
        text if isinstance(text, dict) else {"role": "assistant", "content": text, "refusal": None} for text in texts
    ]


def decided(*fates):
    """(reason or None, score) of each sample."""
    return [
        Decision(status="rejected" if reason else "accepted", split="train", reason=reason, score=score)
        for reason, score in fates
    ]


CHOSEN = decided(("not_best", 0.5), (None, 0.9), ("not_best", 0.2))


def test_the_kept_sample_is_preferred_to_the_worst_usable_one():
    line = json.loads(lines_of(a_sampled_spec(), "openai_dpo", a_prompt("Hi?"), said("a", "b", "c"), CHOSEN))

    assert line == {
        "input": {"messages": [{"role": "user", "content": "Hi?"}]},
        "preferred_output": [{"role": "assistant", "content": "b"}],
        "non_preferred_output": [{"role": "assistant", "content": "c"}],
    }


def test_tools_that_were_offered_and_not_called_go_along():
    prompt = a_prompt("Hi?", tools=[TOOL])
    line = json.loads(lines_of(a_sampled_spec(), "openai_dpo", prompt, said("a", "b", "c"), CHOSEN))

    assert line["input"]["tools"] == [TOOL]
    assert line["input"]["parallel_tool_calls"] is True


@pytest.mark.parametrize(
    ("fates", "other"),
    [
        (decided((None, 0.9), ("below_threshold", 0.1), ("not_best", 0.4)), 1),
        (decided((None, 0.9), ("refused", None), ("not_best", 0.4)), 2),
        (decided((None, 0.9), ("ungradable", None), ("not_best", 0.4)), 2),
        (decided((None, 0.9), ("not_best", 0.4), ("not_best", 0.4)), 1),
    ],
)
def test_what_has_a_fault_of_its_own_or_no_score_is_nobodys_worse_answer(fates, other):
    messages = said("a", "b", "c")
    assert preference(a_prompt(), messages, fates) == (messages[0], messages[other])


CONVERSATION = Prompt(
    messages=[
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    ]
)
IMAGE = Prompt(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])
INSTRUCTED = Prompt(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    ("prompt", "messages", "fates", "reason"),
    [
        (CONVERSATION, said("a", "b", "c"), CHOSEN, "several_turns"),
        (IMAGE, said("a", "b", "c"), CHOSEN, "not_text"),
        (a_prompt(), said("a", CALL, "c"), CHOSEN, "tool_calls"),
        (
            a_prompt(),
            said("a", "b", "c"),
            decided((None, 0.5), ("not_best", 0.5), ("not_best", 0.5)),
            "no_worse_sample",
        ),
        (
            a_prompt(),
            said("a", "b", CALL),
            decided(("refused", None), (None, 0.9), ("not_best", 0.1)),
            "no_worse_sample",
        ),
        (a_prompt(), said("b", "b", "b"), CHOSEN, "no_worse_sample"),
        (a_prompt(), said("a", "b", "c"), decided((None, None), ("empty", None), ("empty", None)), "no_worse_sample"),
    ],
)
def test_what_cannot_be_trained_on_gives_no_pair_for_a_reason(prompt, messages, fates, reason):
    assert preference(prompt, messages, fates) == reason
    assert lines_of(a_sampled_spec(), "openai_dpo", prompt, messages, fates) == b""
    assert lines_of(a_sampled_spec(), "openai_chat", prompt, messages, fates).count(b"\n") == 1


def test_instructions_are_no_turn():
    assert not isinstance(preference(INSTRUCTED, said("a", "b", "c"), CHOSEN), str)


def test_raw_lines_have_samples_and_scores_where_there_are_any():
    messages = said("a", "b", "c")
    lines = lines_of(a_sampled_spec(), "raw", a_prompt(key="k"), messages, [*CHOSEN[:2], None]).splitlines()
    assert [(json.loads(line)["sample"], json.loads(line)["score"]) for line in lines] == [(0, 0.5), (1, 0.9)]
    scored = a_spec(curation=Curation(grader={"type": "string_check"}))
    assert "score" in json.loads(lines_of(scored, "raw", a_prompt(), messages[:1], CHOSEN[1:2]))


def test_the_lines_of_a_job_with_neither_are_what_they_were():
    line = lines_of(a_spec(), "raw", a_prompt("Hi?", key="k"), said("b"), decided((None, None)))
    assert line == (
        b'{"prompt_key":"k","messages":[{"role":"user","content":"Hi?"}],"tools":null,'
        b'"output":{"role":"assistant","content":"b","refusal":null},"split":"train","status":"accepted","reason":null}\n'
    )
    assert formats_of(a_spec()) == ("openai_chat", "raw")


def test_nothing_is_exported_of_a_prompt_without_a_kept_sample():
    fates = decided(("refused", None), ("not_best", 0.3))
    for format in ("openai_chat", "openai_dpo"):
        assert lines_of(a_sampled_spec(2), format, a_prompt(), said("a", "b"), fates) == b""

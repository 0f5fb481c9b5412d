"""Prompts of a request: counted and stored the same whether or not each of them is made."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.models import Curation, JobSpec, Prompt, PromptDefaults, Split, Student, Teacher
from shared.pricing import prompt_size
from shared.prompt_files import PromptReader
from shared.prompts import Texts, adds_nothing, bytes_with, counts_of, read_prompt, with_defaults
from shared.rules import beyond_doubt

RICH: list[Any] = [
    "A text.",
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]},
    {"messages": [{"role": "user", "content": "And?"}], "completion": "So.", "reference": "So."},
    {
        "messages": [{"role": "user", "content": "Call."}, {"role": "assistant", "content": "No."}],
        "tools": [{"type": "function", "function": {"name": "call", "parameters": {}}}],
    },
    {"messages": [{"role": "user", "content": "JSON!"}], "response_format": {"type": "json_object"}},
]


def made(values: list[Any]) -> list[Prompt]:
    prompts = [read_prompt(value) for value in values]
    assert all(isinstance(prompt, Prompt) for prompt in prompts)
    return prompts  # type: ignore[return-value]


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1), st.integers(0, 9))
def test_texts_are_the_prompts_that_each_of_them_would_be(values: list[str], start: int) -> None:
    texts = Texts.of(values)
    assert texts is not None

    assert list(texts) == made(values)
    assert list(texts[start:]) == made(values[start:])
    assert texts.lines() == msgspec.json.Encoder().encode_lines(made(values))
    assert texts.counts == counts_of(made(values))


@pytest.mark.parametrize("values", [["a", ""], ["a", {"messages": []}], [1], [None], []])
def test_anything_else_is_looked_at_one_by_one(values: list[Any]) -> None:
    assert Texts.of(values) is None


def test_prompts_count_the_same_in_a_request_and_in_a_file() -> None:
    reader = PromptReader(chunk_size=100, prompts_max=100, prompt_max_chars=1_000, line_max_bytes=10_000)
    reader.feed(b"\n".join(msgspec.json.encode(value) for value in RICH))
    reader.close()

    assert not reader.faults
    assert counts_of(made(RICH)) == reader.counts


@pytest.mark.parametrize(
    "defaults",
    [
        PromptDefaults(),
        PromptDefaults(system_prompt="You triage."),
        PromptDefaults(tools=[{"type": "function", "function": {"name": "x"}}], response_format={"type": "text"}),
    ],
)
@pytest.mark.parametrize("values", [RICH, RICH[1:2]])
def test_what_a_job_says_for_all_is_counted_as_if_each_prompt_said_it(
    values: list[Any], defaults: PromptDefaults
) -> None:
    prompts = made(values)
    complete = [with_defaults(prompt, defaults) for prompt in prompts]

    assert bytes_with(counts_of(prompts), defaults) == sum(map(prompt_size, complete))
    assert adds_nothing(defaults, counts_of(prompts)) == (complete == prompts)


@pytest.mark.parametrize(
    ("total", "holdout", "min_accepted", "expected"),
    [(100, 0.2, 10, True), (50, 0.2, 10, False), (100, 0.1, 10, False), (100, 0.2, 60, False), (60, 0.0, 10, True)],
)
def test_words_are_taken_apart_only_where_chance_could_leave_a_split_short(
    total: int, holdout: float, min_accepted: int, expected: bool
) -> None:
    spec = JobSpec(
        teacher=Teacher(provider="openai", model="gpt-4.1"),
        students=[Student(provider="openai", model="gpt-4.1-mini")],
        source="inline",
        split=Split(validation=0.1, holdout=holdout),
        curation=Curation(min_accepted=min_accepted),
    )

    assert beyond_doubt(spec, total) is expected

"""A file of prompts, read as it arrives: plain functions over bytes."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from shared.exports import may_give_a_pair
from shared.models import Prompt, PromptCounts
from shared.pricing import prompt_size
from shared.prompt_files import KeySet, LineSplitter, PromptReader
from shared.prompts import chars_of, read_prompt


def lines(*prompts: Any) -> bytes:
    return b"".join(json.dumps(prompt).encode() + b"\n" for prompt in prompts)


def saying(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_a_line_is_held_only_up_to_its_limit():
    splitter = LineSplitter(10)
    assert list(splitter.feed(b"a\nbc")) == [b"a"]
    assert list(splitter.feed(b"d\n" + b"x" * 8)) == [b"bcd"]
    assert list(splitter.feed(b"xxx")) == []
    assert list(splitter.feed(b"x" * 1_000)) == []
    assert list(splitter.feed(b"x\nok\n")) == [None, b"ok"]
    assert splitter.close() == b""


def test_a_million_keys_are_told_apart_in_few_bytes():
    keys, count = KeySet(), 100_000
    assert all(keys.add(f"key-{n}") for n in range(count))
    assert not any(keys.add(f"key-{n}") for n in range(0, count, 7))
    assert sum(table.itemsize * len(table) for table in keys._tables) <= 28 * count


@pytest.mark.parametrize(
    "prompt",
    [
        "Hé",
        saying("Hé"),
        saying("Hé", key="k"),
        {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
        saying("x", key=None),
        saying("x", reference="y", key="k"),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        {"messages": [{"role": "user", "name": "n", "content": "x"}]},
        {"messages": [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]},
        {"messages": [{"role": role, "content": "x"} for role in ("system", "user", "developer")]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/a.png"}}]}]},
    ],
)
def test_a_line_is_stored_and_counted_as_the_prompt_it_is(prompt: Any):
    reader = PromptReader(chunk_size=1, prompts_max=1, prompt_max_chars=100, line_max_bytes=1_000)
    [chunk] = reader.feed(lines(prompt))
    whole = read_prompt(prompt)
    assert isinstance(whole, Prompt)
    assert chunk == msgspec.json.encode(whole) + b"\n"
    assert reader.counts == PromptCounts(
        prompts=1,
        asked=1,
        bytes=prompt_size(whole),
        bare=whole.is_bare,
        toolless=1,
        formatless=1,
        longest_chars=chars_of(whole),
        longest_bare_chars=chars_of(whole) if whole.is_bare else 0,
        unreferenced=int(whole.reference is None),
        unpairable=int(not may_give_a_pair(whole)),
    )


def test_long_prompts_make_small_chunks():
    reader = PromptReader(chunk_size=100, prompts_max=1_000, prompt_max_chars=400_000, line_max_bytes=5_000_000)
    chunks = [chunk for n in range(40) for chunk in reader.feed(lines("x" * 399_990 + str(n)))]
    chunks += reader.close()
    assert reader.chunk_size == 10
    assert [chunk.count(b"\n") for chunk in chunks] == [10, 10, 10, 10]
    assert reader.counts.prompts == 40

"""A customer's schema may not cost more time than its size is worth."""

from __future__ import annotations

import pytest

from shared.curation import Curator
from shared.models import Curation, Prompt, Split
from shared.schema_bounds import is_tame


def doubling(levels, keyword="anyOf"):
    chain = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**chain, f"d{levels}": {"type": "object"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    "schema",
    [
        True,
        {},
        {"type": "object", "properties": {"category": {"enum": ["billing", "login"]}}, "required": ["category"]},
        {"type": "object", "properties": {"$ref": {"type": "string"}, "$id": {"type": "string"}}},
        {"$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
        {"properties": {"children": {"items": {"$ref": "#"}}}},
        doubling(8),
    ],
)
def test_what_people_write_is_accepted(schema):
    assert is_tame(schema)


@pytest.mark.parametrize(
    "schema",
    [
        doubling(20),
        doubling(40, "allOf"),
        {"properties": {"a": {"$ref": "#"}, "b": {"$ref": "#"}}},
        {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(500)} | {"d500": {}}, "$ref": "#/$defs/d0"},
        {"$ref": "https://schemas.example.com/ticket"},
        {"$ref": "#/$defs/nowhere"},
        {"$dynamicRef": "#node"},
        {"properties": {"a": {"$id": "https://schemas.example.com/a"}}},
    ],
)
def test_what_could_take_for_ever_is_refused_unread(schema):
    assert not is_tame(schema)


def test_an_answer_under_such_a_schema_is_rejected_and_not_checked():
    form = {"type": "json_schema", "json_schema": {"name": "trap", "schema": doubling(40)}}
    prompt = Prompt(messages=[{"role": "user", "content": "Hello"}], response_format=form)

    decision = Curator(Curation(), Split()).decide(prompt, {"role": "assistant", "content": "{}"}, "stop")

    assert decision.reason == "invalid_schema"

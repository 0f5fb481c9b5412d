"""The bytes a student is trained on."""

import hashlib
import json

from hypothesis import given
from hypothesis import strategies as st

from shared.completions import Decision
from shared.dataset import Digest, chat_line, raw_line, text_of
from shared.models import Prompt

TOOL = {
    "type": "function",
    "function": {"name": "lookup", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}},
}
TEXT = st.text(st.characters(codec="utf-8"))


def a_call(arguments='{"id": 7}', call_id="call_1"):
    return {"id": call_id, "type": "function", "function": {"name": "lookup", "arguments": arguments}, "index": 0}


def a_prompt(**fields):
    return Prompt(messages=[{"role": "user", "content": "Où est ma facture ?"}], **fields)


def test_a_training_line_is_pinned_byte_for_byte():
    answer = {"content": "Facturation", "role": "assistant", "refusal": None, "annotations": []}

    line = chat_line(a_prompt(key="t-1", reference="x"), answer)

    assert line.decode() == (
        '{"messages":[{"role":"user","content":"Où est ma facture ?"},{"role":"assistant","content":"Facturation"}]}\n'
    )


def test_tools_travel_as_the_customer_wrote_them():
    line = chat_line(a_prompt(tools=[TOOL]), {"role": "assistant", "content": None, "tool_calls": [a_call()]})

    assert list(json.loads(line)) == ["messages", "tools", "parallel_tool_calls"]
    assert json.loads(line)["tools"] == [TOOL]
    assert json.loads(line)["parallel_tool_calls"] is True
    assert b'"properties":{"b":{},"a":{}}' in line
    assert json.loads(line)["messages"][-1] == {
        "role": "assistant",
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "lookup", "arguments": '{"id": 7}'}}],
    }
    assert b'"parallel_tool_calls":false' in chat_line(
        a_prompt(tools=[TOOL]), {"content": "No."}, parallel_tool_calls=False
    )


def test_only_the_teachers_words_are_learnt():
    earlier = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!", "refusal": None},
        {"role": "assistant", "content": "Learn this too", "weight": 1},
        {"role": "user", "content": "Bye"},
    ]

    messages = json.loads(chat_line(Prompt(messages=earlier), {"role": "assistant", "content": "Bye!"}))["messages"]

    assert [message.get("weight") for message in messages] == [None, 0, 1, None, None]
    assert "refusal" not in messages[1]


@given(st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": TEXT, "name": TEXT}), min_size=1), TEXT)
def test_the_same_example_gives_the_same_line_in_whatever_order_its_keys_came(messages, answer):
    turned = [dict(reversed(message.items())) for message in messages]

    line = chat_line(Prompt(messages=messages), {"role": "assistant", "content": answer})

    assert line == chat_line(Prompt(messages=turned), {"content": answer, "role": "assistant"})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")


def test_a_raw_line_tells_all_of_a_completion_kept_or_not():
    lost = json.loads(raw_line(a_prompt(), None, Decision(status="failed", split="train")))
    dropped = raw_line(
        a_prompt(key="t-1"),
        {"content": "", "refusal": None},
        Decision(status="rejected", split="holdout", reason="empty"),
    )

    assert list(lost) == ["prompt_key", "messages", "tools", "output", "split", "status", "reason"]
    assert lost["output"] is None
    assert json.loads(dropped)["output"] == {"content": "", "refusal": None}
    assert json.loads(dropped)["reason"] == "empty"


@given(st.lists(TEXT.map(lambda text: text.replace("\n", "").encode() + b"\n")))
def test_a_digest_is_that_of_all_lines_together(lines):
    digest = Digest()
    for line in lines:
        digest.update(line)

    assert digest.sha256 == hashlib.sha256(b"".join(lines)).hexdigest()
    assert (digest.lines, digest.bytes) == (len(lines), sum(map(len, lines)))


def test_tool_calls_compare_without_ids_spaces_and_key_order():
    one = {"content": "Let me see.", "tool_calls": [a_call('{"a": 1, "b": 2}', "call_1")]}
    other = {"content": None, "tool_calls": [a_call('{"b":2,"a":1}', "call_2")]}

    assert text_of(one) == text_of(other) == '[{"arguments":{"a":1,"b":2},"name":"lookup"}]'


def test_what_is_compared_is_the_content_or_else_the_refusal():
    assert text_of({"content": "4"}) == "4"
    assert text_of({"content": [{"type": "text", "text": "4"}, {"type": "text", "text": "2"}]}) == "42"
    assert text_of({"content": None, "refusal": "I cannot."}) == "I cannot."
    assert text_of({"tool_calls": [a_call("not JSON")]}) == '[{"arguments":"not JSON","name":"lookup"}]'
    assert text_of({}) == ""

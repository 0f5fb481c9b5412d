"""POST /chat/completions: who answers, what it costs, and what of it is kept."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox import base_model, stored, teacher
from sandbox.catalog import REASONING_TOKENS, Model
from sandbox.errors import missing, wrong_type
from sandbox.params import check
from sandbox.schema import filled
from sandbox.speech import Answer, text_of
from sandbox.store import Json
from sandbox.student import Mind
from sandbox.web import answer, json_object, request_id_of, world_of
from sandbox.world import World


def tokens_in(text: str) -> int:
    """About four characters to the token, as a rule of thumb has it."""
    return -(-len(text) // 4)


def prompt_tokens(messages: Sequence[Json]) -> int:
    """The words, and four tokens around each message."""
    return sum(4 + tokens_in(text_of(message)) for message in messages) + 3


async def create(request: Request) -> Response:
    world = world_of(request)
    body = await json_object(request)
    model = checked(world, body)
    asked = max(prompt_tokens(body["messages"]), body.get("max_completion_tokens") or 0)
    headers = world.limits.take(model.id, asked)
    mind = await world.mind_of(model)
    await asyncio.sleep(world.options.latency_seconds * model.pace)
    return answer(complete(world, body, model, mind, request_id=request_id_of(request)), headers=headers)


def checked(world: World, body: Json) -> Model:
    """The model the request names.  Raises what the provider would answer to a request that is wrong."""
    name = body.get("model")
    if name is None:
        raise missing("model")
    if not isinstance(name, str):
        raise wrong_type("model", "a string")
    model = world.find_model(name)
    check(body, model)
    return model


def complete(world: World, body: Json, model: Model, mind: Mind | None, *, request_id: str) -> Json:
    """One completion, billed, and kept when asked to.  The same body always gets the same choices."""
    drafts = [_draft(world, body, model, mind, sample) for sample in range(body.get("n") or 1)]
    effort = body.get("reasoning_effort") or model.default_effort
    reasoning = REASONING_TOKENS[effort] if model.reasons else 0
    cap = body.get("max_completion_tokens") or body.get("max_tokens")
    cuts = [_cut(draft, cap, reasoning, body.get("stop")) for draft in drafts]
    asked = prompt_tokens(body["messages"])
    written = sum(cut.tokens for cut in cuts)
    usage = {
        "prompt_tokens": asked,
        "completion_tokens": written,
        "total_tokens": asked + written,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": sum(min(reasoning, cut.tokens) for cut in cuts),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }
    world.ledger.bill(body, model.id, usage)
    tier = body.get("service_tier") or "default"
    completion = {
        "id": world.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": int(world.clock.now()),
        "model": model.id,
        "choices": [cut.choice(index) for index, cut in enumerate(cuts)],
        "usage": usage,
        "service_tier": "default" if tier == "auto" else tier,
        "system_fingerprint": "fp_" + hashlib.sha256(model.id.encode()).hexdigest()[:10],
    }
    if body.get("store"):
        stored.keep(world, body, completion, request_id=request_id)
    return completion


def _draft(world: World, body: Json, model: Model, mind: Mind | None, sample: int) -> Answer:
    seed = f"{world.options.seed}/{sample}"
    if (given := body.get("seed")) is not None:
        seed += f"/{given}"
    if body.get("tools") and (call := _tool_call(body, seed)) is not None:
        return Answer(tool_calls=[call])
    if mind is not None and (said := mind.answer(body["messages"])) is not None:
        return _in_format(Answer(said), body, seed)
    if model.role == "teacher" and mind is None:
        return teacher.answer(body, seed=seed)
    return _in_format(base_model.answer(body, seed=seed), body, seed)


def _in_format(said: Answer, body: Json, seed: str) -> Answer:
    """Constrained decoding: where JSON is demanded even a poor model writes JSON, though not wise JSON."""
    wanted = (body.get("response_format") or {}).get("type")
    if wanted not in {"json_object", "json_schema"}:
        return said
    try:
        if isinstance(msgspec.json.decode(said.text), dict):
            return said
    except msgspec.DecodeError:
        pass
    schema = body["response_format"].get("json_schema", {}).get("schema", {"type": "object"})
    return Answer(msgspec.json.encode(filled(schema, seed)).decode())


def _tool_call(body: Json, seed: str) -> Json | None:
    """A call, when the request insists on one; its arguments satisfy the tool's schema and mean nothing."""
    wanted: Any = body.get("tool_choice")
    if wanted not in ("required",) and not isinstance(wanted, dict):
        return None
    name = (wanted.get("function") or {}).get("name") if isinstance(wanted, dict) else None
    functions = [tool["function"] for tool in body["tools"]]
    function = next((f for f in functions if f["name"] == name), functions[0])
    arguments = msgspec.json.encode(filled(function.get("parameters") or {"type": "object"}, seed)).decode()
    key = hashlib.sha256(f"{seed}{function['name']}{arguments}".encode()).hexdigest()[:24]
    return {"id": f"call_{key}", "type": "function", "function": {"name": function["name"], "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class _Cut:
    answer: Answer
    finish_reason: str
    tokens: int

    def choice(self, index: int) -> Json:
        said = self.answer
        silent = said.refusal is not None or said.tool_calls
        message: Json = {
            "role": "assistant",
            "content": None if silent else said.text,
            "refusal": said.refusal,
            "annotations": [],
        }
        if said.tool_calls:
            message["tool_calls"] = said.tool_calls
        return {"index": index, "message": message, "finish_reason": self.finish_reason, "logprobs": None}


def _cut(said: Answer, cap: int | None, reasoning: int, stop: str | list[str] | None) -> _Cut:
    """Cut an answer at a stop sequence and at the cap; hidden reasoning eats from the cap first."""
    if said.tool_calls:
        return _Cut(said, "tool_calls", reasoning + tokens_in(str(said.tool_calls)))
    if said.refusal is not None:
        return _Cut(said, "stop", reasoning + tokens_in(said.refusal))
    text = said.text
    for mark in [stop] if isinstance(stop, str) else stop or []:
        text = text.split(mark, 1)[0]
    room = None if cap is None else max(0, cap - reasoning)
    if room is not None and tokens_in(text) > room:
        return _Cut(Answer(text[: room * 4]), "length", cap or 0)
    reason = "length" if said.cut_short else "content_filter" if said.filtered else "stop"
    return _Cut(Answer(text), reason, reasoning + tokens_in(text))

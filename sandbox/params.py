"""What a chat completion request may say, and what each model refuses (openai-contract §1.1 and §6)."""

from __future__ import annotations

from typing import Any

from sandbox.catalog import Model
from sandbox.errors import ApiError, invalid, missing, wrong_type, wrong_value
from sandbox.speech import text_of
from sandbox.store import Json
from sandbox.web import checked_metadata

_KNOWN = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "stream",
        "stream_options",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_CHOICES = {
    "service_tier": ("auto", "default", "flex", "scale", "priority", "fast"),
    "verbosity": ("low", "medium", "high"),
}
_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
_INTEGERS: dict[str, tuple[int, int]] = {
    "n": (1, 128),
    "max_completion_tokens": (1, 1_000_000),
    "max_tokens": (1, 1_000_000),
    "top_logprobs": (0, 20),
    "seed": (-(2**63), 2**63 - 1),
}


def check(body: Json, model: Model) -> None:
    """Raises the provider's 400 for the first thing that is wrong."""
    unknown = next((name for name in body if name not in _KNOWN), None)
    if unknown is not None:
        raise invalid(f"Unknown parameter: '{unknown[:64]}'.", param=unknown[:64], code="unknown_parameter")
    check_messages(body.get("messages"))
    checked_metadata(body.get("metadata"))
    _check_values(body)
    _check_response_format(body)
    _check_tools(body)
    _check_refusals(body, model)


def check_messages(messages: object) -> None:
    if messages is None:
        raise missing("messages")
    if not isinstance(messages, list):
        raise wrong_type("messages", "an array")
    if not messages:
        raise invalid("Invalid 'messages': empty array.", param="messages", code="empty_array")
    for n, message in enumerate(messages):
        place = f"messages[{n}]"
        if not isinstance(message, dict):
            raise wrong_type(place, "an object")
        if message.get("role") not in _ROLES:
            raise wrong_value(f"{place}.role", f"supported values are {', '.join(_ROLES)}")
        content = message.get("content")
        if content is None and not (message["role"] == "assistant" and _speaks_otherwise(message)):
            raise invalid(
                f"Invalid value for 'content': expected a string, got null in {place}.", param=f"{place}.content"
            )
        if content is not None and not isinstance(content, str) and not _is_parts(content):
            raise wrong_type(f"{place}.content", "a string or an array of content parts")


def _speaks_otherwise(message: Json) -> bool:
    return any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio"))


def _is_parts(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(part, dict) and "type" in part for part in content)


def _check_values(body: Json) -> None:
    for name, choices in _CHOICES.items():
        if body.get(name) is not None and body[name] not in choices:
            raise wrong_value(name, f"supported values are {', '.join(choices)}")
    for name, (low, high) in _NUMBERS.items():
        _check_number(body, name, (int, float), low, high)
    for name, (least, most) in _INTEGERS.items():
        _check_number(body, name, (int,), least, most)
    for name in ("store", "parallel_tool_calls", "logprobs", "stream"):
        if body.get(name) is not None and not isinstance(body[name], bool):
            raise wrong_type(name, "a boolean")
    if body.get("stream"):
        raise invalid("The sandbox does not stream.", param="stream", code="unsupported_value")
    stop = body.get("stop")
    if stop is not None and not isinstance(stop, str) and not (isinstance(stop, list) and len(stop) <= 4):
        raise wrong_value("stop", "must be a string or an array of at most 4 strings")
    if len(body.get("safety_identifier") or "") > 128:
        raise invalid("Invalid 'safety_identifier': longer than 128 characters.", param="safety_identifier")


def _check_number(body: Json, name: str, types: tuple[type[int] | type[float], ...], low: float, high: float) -> None:
    value = body.get(name)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, types):
        raise wrong_type(name, "an integer" if types == (int,) else "a number")
    if not low <= value <= high:
        raise wrong_value(name, f"must be from {low} to {high}")


def _check_response_format(body: Json) -> None:
    wanted: Any = body.get("response_format")
    if wanted is None:
        return
    if not isinstance(wanted, dict) or wanted.get("type") not in {"text", "json_object", "json_schema"}:
        raise wrong_value("response_format.type", "supported values are text, json_object, json_schema")
    if wanted["type"] == "json_object" and not any("json" in text_of(m).lower() for m in body["messages"]):
        raise invalid(
            "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'.",
            param="messages",
        )
    if wanted["type"] == "json_schema":
        schema = wanted.get("json_schema")
        if not isinstance(schema, dict) or not isinstance(schema.get("name"), str):
            raise missing("response_format.json_schema.name")
        if not isinstance(schema.get("schema", {}), dict):
            raise wrong_type("response_format.json_schema.schema", "an object")


def _check_tools(body: Json) -> None:
    for n, tool in enumerate(body.get("tools") or []):
        if not isinstance(tool, dict) or tool.get("type") != "function" or not (tool.get("function") or {}).get("name"):
            raise missing(f"tools[{n}].function.name")


def _check_refusals(body: Json, model: Model) -> None:
    if (effort := body.get("reasoning_effort")) is not None:
        if not model.reasons:
            raise _unsupported("reasoning_effort")
        if effort not in model.efforts:
            raise _unsupported_value("reasoning_effort", f"Supported values are: {', '.join(model.efforts)}.")
    if not model.reasons:
        return
    if body.get("max_tokens") is not None:
        raise _unsupported("max_tokens", " Use 'max_completion_tokens' instead.")
    reasoning = (effort or model.default_effort) != "none"
    if model.sampling == "never" or (model.sampling == "without_reasoning" and reasoning):
        for name in ("temperature", "top_p"):
            if body.get(name) not in {None, 1}:
                raise _unsupported_value(name, "Only the default (1) value is supported.")
        if body.get("logprobs"):
            raise _unsupported("logprobs")
    if not model.stop and body.get("stop") is not None:
        raise _unsupported("stop")
    if body.get("tools") and (model.tools == "never" or (model.tools == "without_reasoning" and effort != "none")):
        raise invalid(
            f"Function tools with reasoning_effort are not supported for {model.id} in /v1/chat/completions. "
            "To use function tools, use /v1/responses or set reasoning_effort to 'none'.",
            param="reasoning_effort",
        )


def _unsupported(name: str, hint: str = "") -> ApiError:
    message = f"Unsupported parameter: '{name}' is not supported with this model.{hint}"
    return invalid(message, param=name, code="unsupported_parameter")


def _unsupported_value(name: str, hint: str) -> ApiError:
    message = f"Unsupported value: '{name}' does not support this value with this model. {hint}"
    return invalid(message, param=name, code="unsupported_value")

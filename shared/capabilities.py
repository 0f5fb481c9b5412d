"""What Chat Completions parameters mean to us, and what each model family is known to refuse.

Asked before anything is spent: one answer at submit instead of ten thousand failed calls.  Only what is known counts;
a model that is not in the table is left to its provider.  The refusals are those of openai-contract §6."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

from shared.errors import Fault
from shared.models import JsonObject

UNSUPPORTED: Final = "unsupported_param"
INVALID: Final = "invalid_value"
_WORD_CHARS: Final = 100

Check = Callable[[Any], str | None]
"""Says what a value must be when it is not, in words that do not repeat it."""


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"must be a number from {low} to {high}"

    return check


def _integer(low: int, high: int) -> Check:
    def check(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return None if fits else f"must be {low}" if low == high else f"must be a whole number from {low} to {high}"

    return check


def _one_of(*choices: str) -> Check:
    return lambda value: None if value in choices else f"must be one of {', '.join(choices)}"


def _boolean(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false"


def _text(longest: int) -> Check:
    detail = f"must be a text of 1 to {longest} characters"
    return lambda value: None if isinstance(value, str) and 0 < len(value) <= longest else detail


def _object(value: Any) -> str | None:
    return None if isinstance(value, dict) else "must be an object"


def _scalar(value: Any) -> str | None:
    fits = isinstance(value, bool | int | float) or (isinstance(value, str) and 0 < len(value) <= _WORD_CHARS)
    return None if fits else f"must be a number, true, false or a text of at most {_WORD_CHARS} characters"


def _stop(value: Any) -> str | None:
    texts = value if isinstance(value, list) else [value]
    fits = 1 <= len(texts) <= 4 and all(isinstance(text, str) and text for text in texts)
    return None if fits else "must be a text or 1 to 4 texts"


def _tool_choice(value: Any) -> str | None:
    fits = value in {"none", "auto", "required"} if isinstance(value, str) else isinstance(value, dict)
    return None if fits else "must be none, auto, required or an object"


def check_response_format(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        return "must be an object whose type is text, json_object or json_schema"
    named = value.get("json_schema")
    if kind == "json_schema" and not (isinstance(named, dict) and isinstance(named.get("name"), str)):
        return "must have json_schema with a name and a schema"
    return None


def check_tools(value: Any) -> str | None:
    def is_function(tool: Any) -> bool:
        function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
        return isinstance(function, dict) and isinstance(function.get("name"), str)

    fits = isinstance(value, list) and 1 <= len(value) <= 128 and all(map(is_function, value))
    return None if fits else "must be 1 to 128 function tools, each with a name"


EFFORTS: Final = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
PARAMS: Final[Mapping[str, Check]] = {
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _object,
    "logprobs": _boolean,
    "max_completion_tokens": _integer(1, 1_000_000),
    "max_tokens": _integer(1, 1_000_000),
    "n": _integer(1, 1),
    "parallel_tool_calls": _boolean,
    "presence_penalty": _number(-2, 2),
    "prompt_cache_key": _text(128),
    "reasoning_effort": _one_of(*EFFORTS),
    "response_format": check_response_format,
    "safety_identifier": _text(128),
    "seed": _integer(-(2**63), 2**63 - 1),
    "service_tier": _one_of("auto", "default", "flex", "scale", "priority", "fast"),
    "stop": _stop,
    "temperature": _number(0, 2),
    "tool_choice": _tool_choice,
    "tools": check_tools,
    "top_logprobs": _integer(0, 20),
    "top_p": _number(0, 1),
    "user": _text(512),
    "verbosity": _one_of("low", "medium", "high"),
}
#: What open-weight trainers take besides OpenAI's three (docs/providers.md names the documents).
HYPERPARAMETERS: Final[Mapping[str, Check]] = {
    "checkpoint_steps": _integer(1, 1_000_000),
    "context_length": _integer(1, 10_000_000),
    "early_stopping_patience": _integer(1, 1_000_000),
    "eval_steps_per_epoch": _number(1, 1_000_000),
    "learning_rate": _number(1e-12, 1),
    "lora": _boolean,
    "lora_alpha": _integer(1, 4_096),
    "lora_dropout": _number(0, 1),
    "lora_r": _integer(1, 1_024),
    "lora_rank": _integer(1, 1_024),
    "lora_variant": _one_of("lora", "rslora"),
    "lr_scheduler": _one_of("cosine", "constant", "constant_with_warmup", "linear"),
    "max_grad_norm": _number(0, 1_000),
    "overlong_row_behavior": _one_of("error", "drop"),
    "packing": _boolean,
    "top_k_gating": _integer(1, 1_024),
    "warmup_ratio": _number(0, 1),
    "weight_decay": _number(0, 1_000),
}
STANDARD_HYPERPARAMETERS: Final = ("n_epochs", "batch_size", "learning_rate_multiplier", "beta")  # beta: of dpo
_ELSEWHERE: Final[Mapping[str, str]] = {
    "messages": "is not taken here: prompts are in `source`",
    "metadata": "is not taken here: it is a field of the job",
    "model": "is not taken here: it is a field of the teacher",
    "store": "is not taken here: it is a field of the job",
    "stream": "is not taken: answers are read whole",
    "stream_options": "is not taken: answers are read whole",
}


@dataclass(frozen=True)
class Family:
    """sampling: when temperature and top_p other than 1, and log probabilities, are taken.  tools: when function
    tools are.  default_effort: the reasoning effort of a request that names none."""

    sampling: Literal["without_reasoning", "never"]
    default_effort: str
    tools: Literal["always", "without_reasoning", "never"] = "always"
    stop: bool = True
    efforts: tuple[str, ...] = EFFORTS


#: By prefix of the model's name, ended by a dash or nothing; the longest wins.
FAMILIES: Final[Mapping[str, Family]] = {
    "o1": Family("never", "medium", stop=False, efforts=("low", "medium", "high")),
    "o3": Family("never", "medium", stop=False, efforts=("low", "medium", "high")),
    "o4-mini": Family("never", "medium", stop=False, efforts=("low", "medium", "high")),
    "gpt-5": Family("never", "medium", efforts=("minimal", "low", "medium", "high")),
    "gpt-5.1": Family("without_reasoning", "none"),
    "gpt-5.2": Family("without_reasoning", "none"),
    "gpt-5.4": Family("without_reasoning", "none"),
    "gpt-5.6": Family("without_reasoning", "medium", tools="without_reasoning"),
    "gpt-6-sol": Family("without_reasoning", "medium", tools="without_reasoning"),
    "gpt-6-astra": Family("never", "medium", tools="never", stop=False, efforts=("low", "medium", "high", "xhigh")),
}


def hyperparameter_faults(given: JsonObject, extra: Sequence[str], *, pointer: str) -> Iterator[Fault]:
    """extra: what the student's provider takes besides the standard ones, which the request's schema has checked."""
    for name, value in given.items():
        if name in STANDARD_HYPERPARAMETERS:
            continue
        place = f"{pointer}/{name[:64].replace('~', '~0').replace('/', '~1')}"
        if name not in extra:
            takes = [*STANDARD_HYPERPARAMETERS[:3], *extra]
            near = difflib.get_close_matches(name[:64], takes, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(takes)}"
            yield Fault(place, UNSUPPORTED, "is not a hyperparameter of this student's provider" + hint)
        elif value != "auto" and (wrong := HYPERPARAMETERS.get(name, _scalar)(value)):
            yield Fault(place, INVALID, wrong)


@lru_cache(maxsize=1_024)
def family_of(model: str) -> Family | None:
    """None for a model that refuses nothing we know of.  `…-chat-latest` models do not reason."""
    if model.endswith("-chat-latest"):
        return None
    prefixes = [prefix for prefix in FAMILIES if model == prefix or model.startswith(prefix + "-")]
    return FAMILIES[max(prefixes, key=len)] if prefixes else None


def params_faults(model: str, params: JsonObject, *, tools: bool, pointer: str) -> list[Fault]:
    """What is wrong with `params` for this model.  tools: whether any prompt brings function tools."""
    faults = []
    for name, value in params.items():
        check = PARAMS.get(name)
        if check is None:
            place = f"{pointer}/{name[:64].replace('~', '~0').replace('/', '~1')}"
            faults.append(Fault(place, UNSUPPORTED, _unknown(name)))
        elif value is not None and (wrong := check(value)):
            faults.append(Fault(f"{pointer}/{name}", INVALID, wrong))
    return faults or list(_refusals(model, params, tools=tools or bool(params.get("tools")), pointer=pointer))


def _unknown(name: str) -> str:
    if name in _ELSEWHERE:
        return _ELSEWHERE[name]
    near = difflib.get_close_matches(name[:64], list(PARAMS), n=1)
    return "is not a parameter of Chat Completions" + (f"; did you mean {near[0]}?" if near else "")


def _refusals(model: str, params: JsonObject, *, tools: bool, pointer: str) -> list[Fault]:
    family = family_of(model)
    if family is None:
        return []
    faults = []

    def refuse(name: str, why: str) -> None:
        faults.append(Fault(f"{pointer}/{name}", UNSUPPORTED, f"is not supported by this model{why}"))

    effort = params.get("reasoning_effort")
    if effort is not None and effort not in family.efforts:
        refuse("reasoning_effort", f" at this value; it takes {', '.join(family.efforts)}")
    if params.get("max_tokens") is not None:
        refuse("max_tokens", "; use max_completion_tokens")
    if family.sampling == "never" or (effort or family.default_effort) != "none":
        hint = "" if family.sampling == "never" else " unless reasoning_effort is none"
        for name in ("temperature", "top_p"):
            if params.get(name) not in {None, 1}:
                refuse(name, f": it takes the default, 1, only{hint}")
        for name in ("logprobs", "top_logprobs"):
            if params.get(name):
                refuse(name, hint)
    if not family.stop and params.get("stop") is not None:
        refuse("stop", "")
    if tools and family.tools == "never":
        refuse("tools", " on Chat Completions")
    if tools and family.tools == "without_reasoning" and effort != "none":
        refuse("reasoning_effort", " beside function tools unless it is none")
    return faults

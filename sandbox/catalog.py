"""The models the sandbox offers, what each refuses, and the day each retires (openai-contract, deprecations)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Literal

Role = Literal["teacher", "base", "student"]
Sampling = Literal["always", "without_reasoning", "never"]
Tools = Literal["always", "without_reasoning", "never"]

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
#: Hidden tokens that count against max_completion_tokens, by effort.
REASONING_TOKENS = {"none": 0, "minimal": 0, "low": 16, "medium": 48, "high": 128, "xhigh": 256, "max": 512}


@dataclass(frozen=True, slots=True)
class Model:
    id: str
    role: Role
    shutdown_date: date | None = None
    trainable: bool = False
    reasons: bool = False
    default_effort: str = "none"
    efforts: tuple[str, ...] = EFFORTS
    sampling: Sampling = "always"  #: whether temperature, top_p and log probabilities may be set
    tools: Tools = "always"
    stop: bool = True
    alias_of: str | None = None
    knowledge: str | None = None  #: id of the examples a student has learned
    owned_by: str = "system"
    created: int = 1_767_225_600

    @property
    def pace(self) -> float:
        """Share of `latency_seconds` one completion takes: small models are quicker."""
        return 1.0 if self.role == "teacher" else 0.4


def _reasoning(name: str, retires: date | None = None, *, effort: str = "medium", alias_of: str | None = None) -> Model:
    return Model(
        name,
        "teacher",
        retires,
        reasons=True,
        default_effort=effort,
        efforts=EFFORTS[:6],
        sampling="without_reasoning",
        tools="without_reasoning" if effort != "none" else "always",
        alias_of=alias_of,
    )


_JANUARY = date(2027, 1, 14)
_OCTOBER = date(2026, 10, 23)
_DECEMBER = date(2026, 12, 11)

_MODELS = (
    # Version 6.1 is assumed to answer without reasoning unless asked, as 5.1 to 5.4 do.
    _reasoning("gpt-6.1-sol", effort="none"),
    _reasoning("gpt-6-sol"),
    Model(
        "gpt-6-astra",
        "teacher",
        reasons=True,
        default_effort="medium",
        efforts=("low", "medium", "high", "xhigh"),
        sampling="never",
        tools="never",
        stop=False,
    ),
    _reasoning("gpt-5.6-sol"),
    _reasoning("gpt-5.4", effort="none"),
    _reasoning("gpt-5.1", date(2027, 4, 1), effort="none"),
    Model("gpt-6-luna", "base"),
    Model("gpt-5", "teacher", _DECEMBER, reasons=True, default_effort="medium", efforts=EFFORTS[1:5], sampling="never"),
    Model(
        "o3",
        "teacher",
        _DECEMBER,
        reasons=True,
        default_effort="medium",
        efforts=EFFORTS[2:5],
        sampling="never",
        stop=False,
    ),
    Model("gpt-4.1-2025-04-14", "teacher", _JANUARY, trainable=True),
    Model("gpt-4.1", "teacher", _JANUARY, trainable=True, alias_of="gpt-4.1-2025-04-14"),
    Model("gpt-4.1-mini-2025-04-14", "base", _JANUARY, trainable=True),
    Model("gpt-4.1-mini", "base", _JANUARY, trainable=True, alias_of="gpt-4.1-mini-2025-04-14"),
    Model("gpt-4o-2024-08-06", "teacher", _JANUARY, trainable=True),
    Model("gpt-4o", "teacher", _JANUARY, trainable=True, alias_of="gpt-4o-2024-08-06"),
    Model("gpt-4o-mini-2024-07-18", "base", _JANUARY, trainable=True),
    Model("gpt-4o-mini", "base", _JANUARY, trainable=True, alias_of="gpt-4o-mini-2024-07-18"),
    Model("gpt-4.1-nano-2025-04-14", "base", _OCTOBER, trainable=True),
    Model("o4-mini", "teacher", _OCTOBER, reasons=True, default_effort="medium", sampling="never", stop=False),
    Model("gpt-3.5-turbo", "base", _OCTOBER, trainable=True),
    Model("qwen3-8b", "base", trainable=True, owned_by="open-weights"),
    Model("llama-3.1-8b-instruct", "base", trainable=True, owned_by="open-weights"),
)

CATALOG = {model.id: model for model in _MODELS}

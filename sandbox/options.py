"""What can be set when the sandbox starts: `--latency-seconds 0.2`, or `SANDBOX_LATENCY_SECONDS=0.2`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    host: str = "127.0.0.1"
    port: int = 8790  #: 0 takes any free port; the first line on stdout names it
    data_dir: Path | None = None  #: where state outlives the process; None keeps it in memory
    latency_seconds: float = 0.05  #: of a teacher's completion; small models take 0.4 of it
    training_seconds: float = 3.0  #: from the creation of a fine-tuning job to its end
    batch_seconds: float = 2.0  #: from the creation of a batch to its end
    fresh_model_404_seconds: float = 0.5  #: a model just trained is not found for so long
    visibility_delay_seconds: float = 0.0  #: a stored completion is not found for so long
    api_key: str | None = None  #: the one key accepted; None accepts all but `sk-invalid…`
    requests_per_minute: int = 30_000  #: as told in x-ratelimit-limit-requests
    tokens_per_minute: int = 150_000_000  #: as told in x-ratelimit-limit-tokens
    enforce_limits: bool = False  #: refuse what is above the two limits, instead of only counting it down
    max_file_bytes: int = 512 * 1024 * 1024
    seed: int = 7  #: another seed, other (still deterministic) answers
    until_stdin_closes: bool = False  #: end with the process that holds the other end of stdin
    today: date | None = None  #: the calendar that retires models starts here; None is the real date


_PARSERS: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": lambda text: str(text).lower() in {"1", "true", "yes", "on"},
    "Path | None": lambda text: Path(text) if text else None,
    "str | None": lambda text: text or None,
    "date | None": lambda text: date.fromisoformat(text) if text else None,
}


def read_options(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Options:
    """Flags win over `SANDBOX_*`, which win over the defaults."""
    parser = argparse.ArgumentParser(prog="python -m sandbox", description=__doc__)
    for field in fields(Options):
        parser.add_argument(
            "--" + field.name.replace("_", "-"), default=environment.get("SANDBOX_" + field.name.upper())
        )
    given = {name: text for name, text in vars(parser.parse_args(arguments)).items() if text is not None}
    return Options(**{f.name: _PARSERS[str(f.type)](given[f.name]) for f in fields(Options) if f.name in given})

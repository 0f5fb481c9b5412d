"""Loads the settings of a process, and tells its operator which of them are wrong or misspelt."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from typing import Final

from dotenv import dotenv_values
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shared.settings import Settings
from shared.settings_sources import ENV_PREFIX

#: Said to the CLI, and to docker compose, which reads the same `.env`.
_NAMES_OF_OTHERS: Final = frozenset({"DISTILL_URL", "DISTILL_API_KEY", "DISTILL_PUBLISH", "DISTILL_STORE_MAXMEMORY"})


def load_settings() -> Settings:
    """From the environment.  Raises WrongSettings."""
    try:
        return Settings()
    except (ValueError, OSError) as error:
        raise WrongSettings(wrong(error)) from None


class WrongSettings(ValueError):
    """The process cannot start with these settings; says which, and never what a secret is."""


def wrong(error: ValueError | OSError) -> str:
    """What building `Settings` complains of, each setting by the name that its operator knows."""
    if isinstance(error, UnicodeDecodeError):  # of that file alone: the others we read ourselves
        return ".env cannot be read: it is not UTF-8"
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_input=False)
    places = {fault["loc"] for fault in faults}
    return "; ".join(_fault(fault) for fault in faults if not _may_stand_in_a_file(fault, places))


def _may_stand_in_a_file(fault: ErrorDetails, places: set[tuple[int | str, ...]]) -> bool:
    """Whether what is missing in a table may be in the file of tables, which cannot be read and is told of."""
    return fault["type"] == "missing" and fault["loc"][0] == "providers" and ("providers_file",) in places


def _fault(fault: ErrorDetails) -> str:
    place, said = fault["loc"], fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "named":
        return said
    said = said[:1].lower() + said[1:] if said.startswith(("Input", "Field", "String", "Extra")) else said
    name, *rest = map(str, place)
    if rest and not rest[0].isdecimal():
        return f"{'.'.join((name, *rest))}: {said}"  # a table's: it may come from a file
    return f"{_known_as(name)}{''.join(f'[{number}]' for number in rest)}: {said}"


def _known_as(field: str) -> str:
    known = Settings.model_fields.get(field)
    return str(known.validation_alias or f"{ENV_PREFIX}{field.upper()}") if known is not None else field


def unknown_names(environ: Mapping[str, str] | None = None) -> Iterator[tuple[str, str | None]]:
    """What carries our prefix and is no setting, each with the setting that may have been meant.

    environ: this process's, and what `.env` says, unless given."""
    named = {*dotenv_values(".env"), *os.environ} if environ is None else {*environ}
    fields = {
        f"{ENV_PREFIX}{name.upper()}" for name, field in Settings.model_fields.items() if not field.validation_alias
    }
    files = {f"{ENV_PREFIX}{name.upper()}_FILE" for name in Settings.model_fields}  # of OPENAI_API_KEY, too
    known = fields | files | _NAMES_OF_OTHERS
    for name in sorted(named):
        of_table = name.upper().startswith((f"{ENV_PREFIX}PROVIDERS__", f"{ENV_PREFIX}TENANTS__"))
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known and not of_table:
            near = difflib.get_close_matches(_bare(name.upper()), map(_bare, known), n=1, cutoff=0.8)
            yield name, f"{ENV_PREFIX}{near[0]}" if near else None


def _bare(name: str) -> str:
    """What two names are compared by: all begin alike."""
    return name.removeprefix(ENV_PREFIX)

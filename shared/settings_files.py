"""Reads the files that settings name, and says in one sentence, as a ValueError, why it cannot."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} cannot be read: it is not UTF-8") from None


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a TOML file by name."""
    try:
        tables = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    if stray := [name for name, table in tables.items() if not isinstance(table, dict)]:
        raise ValueError(f"{path}: {', '.join(stray)} must be a table")
    return tables

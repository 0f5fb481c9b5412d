"""The operator's own prices, read from their TOML file; shared/pricing.py shows one, and says what its fields mean."""

from __future__ import annotations

import tomllib
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from shared.settings_files import read_text

PriceTables = dict[str, dict[str, dict[str, Decimal]]]
_FIELDS: Final = frozenset({"input", "cached_input", "cache_write", "output", "training", "request"})


def read_prices(path: Path) -> PriceTables:
    """Dollars by price list, model and field.  Raises ValueError, with the file and the place in it."""
    try:
        content = tomllib.loads(read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: {error}") from None
    tables: PriceTables = {}
    for price_list, models in content.items():
        if not isinstance(models, dict):
            raise ValueError(f"{path}: {price_list} must be a table of models")  # noqa: TRY004  (wrong content)
        for model, fields in models.items():
            tables.setdefault(price_list, {})[model] = _read_table(fields, f"{path}: {price_list}.{model}")
    return tables


def _read_table(fields: Any, place: str) -> dict[str, Decimal]:
    if not isinstance(fields, dict) or not {"input", "output"} <= fields.keys() or fields.keys() - _FIELDS:
        raise ValueError(f"{place} must have input and output, and may have {', '.join(sorted(_FIELDS))}")
    read = {}
    for name, value in fields.items():
        try:
            read[name] = Decimal(str(value))
        except ArithmeticError:
            raise ValueError(f"{place}.{name} is not a number") from None
        if not read[name].is_finite() or read[name] < 0:
            raise ValueError(f"{place}.{name} must be 0 or more")
    return read

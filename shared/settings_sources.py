"""Where settings come from beside the environment and `.env`: files of secrets, and tables of providers."""

from __future__ import annotations

import os
from datetime import date
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

from shared.settings_files import read_tables, read_text

ENV_PREFIX: Final = "DISTILL_"
_OPENAI_EXAMPLES_MIN: Final = 10  # https://developers.openai.com/api/docs/guides/supervised-fine-tuning
_OPENAI_TRAINING_CLOSES: Final = date(2027, 1, 6)  # https://developers.openai.com/api/docs/deprecations


class SecretFiles(PydanticBaseSettingsSource):
    """`DISTILL_<SETTING>_FILE` names a file whose content is the setting: how container secrets arrive."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        setting = f"{ENV_PREFIX}{field_name.upper()}_FILE"
        path = os.environ.get(setting)
        try:
            return (read_text(Path(path)).strip() if path else None), field_name, False
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        # `DISTILL_PROVIDERS_FILE` is a setting itself, and not the value of `DISTILL_PROVIDERS`.
        secret = {name: field for name, field in fields.items() if f"{name}_file" not in fields}
        found = {name: self.get_field_value(field, name)[0] for name, field in secret.items()}
        return {name: value for name, value in found.items() if value is not None}


class ProviderTables(PydanticBaseSettingsSource):
    """Providers that are built in, completed field by field by the file of tables; what the environment says of them
    completes both."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """What the environment says."""
        said = self.current_state
        return said.get(field_name, said.get(str(field.validation_alias))), field_name, False

    def __call__(self) -> dict[str, Any]:
        told = self._told("providers") or {}
        has_key = str(self._told("openai_api_key") or "").strip()
        tables = {"openai": self._openai()} if has_key else {}
        if path := self._told("providers_file"):
            for name, table in read_tables(Path(path), "DISTILL_PROVIDERS_FILE").items():
                tables[name] = _completed(tables.get(name, {}), table)
        return {"providers": {name: _completed(table, told.get(name, {})) for name, table in tables.items()}}

    def _told(self, name: str) -> Any:
        return self.get_field_value(self.settings_cls.model_fields[name], name)[0]

    def _openai(self) -> dict[str, Any]:
        return {
            "base_url": self._told("openai_base_url") or self.settings_cls.model_fields["openai_base_url"].default,
            "api_key": self._told("openai_api_key"),
            "webhook_secret": self._told("openai_webhook_secret") or None,
            "prices": "openai",
            "can_store": True,
            "can_batch": True,
            "training_closes": _OPENAI_TRAINING_CLOSES,
            "examples_min": _OPENAI_EXAMPLES_MIN,
        }


def _completed(table: dict[str, Any], by: Any) -> dict[str, Any]:
    """A secret in a file is told instead of one in the table, and the other way round."""
    if not isinstance(by, dict):
        return table  # a provider given whole, or no table at all: whoever checks the settings says so
    kept = {
        name: value
        for name, value in table.items()
        if f"{name}_file" not in by and (not name.endswith("_file") or name.removesuffix("_file") not in by)
    }
    return kept | by

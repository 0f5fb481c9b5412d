"""Where settings come from: the environment, `.env`, files of secrets, and tables of providers and tenants.

No source refuses what it reads; the settings do, so that all that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, Self, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, PydanticBaseSettingsSource

from shared.settings_files import read_tables, read_text
from shared.settings_types import NO_TABLE

ENV_PREFIX: Final = "DISTILL_"
_OPENAI_EXAMPLES_MIN: Final = 10  # https://developers.openai.com/api/docs/guides/supervised-fine-tuning
_OPENAI_TRAINING_CLOSES: Final = date(2027, 1, 6)  # https://developers.openai.com/api/docs/deprecations


@dataclass(frozen=True)
class Unread:
    """Stands in for what a file should have said: why it cannot be read is told beside whatever else is wrong."""

    why: str


class _MarkedTables(PydanticBaseSettingsSource):
    """A text that is no table becomes one with a mark, which the setting refuses beside whatever else is wrong.

    As a table it is merged with what other sources say of it, where a text would give way to them in silence."""

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        is_table = field is not None and get_origin(field.annotation) is dict
        try:
            decoded = super().decode_complex_value(field_name, field, value)  # type: ignore[arg-type]  # None is passed
        except ValueError:
            if not is_table:
                raise
            decoded = value
        return {NO_TABLE: decoded} if is_table and not isinstance(decoded, dict | None) else decoded


class Environment(_MarkedTables, EnvSettingsSource):
    """`DISTILL_<SETTING>`."""


class DotEnv(_MarkedTables, DotEnvSettingsSource):
    """The same in a file `.env`."""

    @classmethod
    def instead_of(cls, usual: PydanticBaseSettingsSource) -> Self:
        """Reads the file that it would have read, which whoever builds the settings may have chosen."""
        assert isinstance(usual, DotEnvSettingsSource)
        return cls(usual.settings_cls, env_file=usual.env_file)


class SecretFiles(PydanticBaseSettingsSource):
    """`DISTILL_<SETTING>_FILE` names a file whose content is the setting: how container secrets arrive.

    said: the variables of the environment or of `.env`, by their names in lower case."""

    def __init__(self, settings_cls: type[BaseSettings], said: Mapping[str, str | None]) -> None:
        super().__init__(settings_cls)
        self._said = said

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        known_as = str(field.validation_alias or field_name)  # a second name beside it would be a second value
        setting = f"{ENV_PREFIX}{field_name.upper()}_FILE"
        path = self._said.get(setting.lower())
        try:
            return (read_text(Path(path)).strip() if path else None), known_as, False
        except ValueError as error:
            return Unread(f"{setting}: {error}"), known_as, False

    def __call__(self) -> dict[str, Any]:
        fields = self.settings_cls.model_fields
        # `DISTILL_PROVIDERS_FILE` is a setting itself, and not the value of `DISTILL_PROVIDERS`.
        secret = {name: field for name, field in fields.items() if f"{name}_file" not in fields}
        found = (self.get_field_value(field, name) for name, field in secret.items())
        return {known_as: value for value, known_as, _ in found if value is not None}


class UnreadFiles(SecretFiles):
    """Those of them that cannot be read, which is told whatever another source says of the setting."""

    def __call__(self) -> dict[str, Any]:
        return {known_as: why for known_as, why in super().__call__().items() if isinstance(why, Unread)}


class Tables(PydanticBaseSettingsSource):
    """Providers that are built in, completed field by field by the file of tables, and tenants by theirs; what the
    environment says of either completes them in the same way."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """What the environment says."""
        said = self.current_state
        return said.get(field_name, said.get(str(field.validation_alias))), field_name, False

    def __call__(self) -> dict[str, Any]:
        return {"providers": self._providers(), "tenants": self._in_file("tenants_file")}

    def _providers(self) -> dict[str, Any]:
        told = self._told("providers") or {}
        key = self._value("openai_api_key")
        tables = {"openai": self._openai()} if isinstance(key, Unread) or str(key or "").strip() else {}
        for name, table in self._in_file("providers_file").items():
            tables[name] = _completed(tables.get(name, {}), table)
        return {name: _completed(table, told.get(name, {})) for name, table in tables.items()}

    def _in_file(self, name: str) -> dict[str, Any]:
        path = self._told(name)
        try:
            return read_tables(Path(path)) if path else {}
        except ValueError:
            return {}  # the setting that names the file says why

    def _value(self, name: str) -> Any:
        return self.get_field_value(self.settings_cls.model_fields[name], name)[0]

    def _told(self, name: str) -> Any:
        value = self._value(name)
        return None if isinstance(value, Unread) else value

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

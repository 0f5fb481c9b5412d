"""The README keeps its promises: it names every setting, status and error code."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.capabilities import HYPERPARAMETERS
from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.settings import ProviderSettings, Settings, TenantSettings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROVIDERS = (ROOT / "docs" / "providers.md").read_text(encoding="utf-8")
ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")

SETTINGS = [str(field.validation_alias or f"DISTILL_{name.upper()}") for name, field in Settings.model_fields.items()]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_readme_lists_the_setting_with_its_meaning(name: str) -> None:
    field = next(f for n, f in Settings.model_fields.items() if name in {f.validation_alias, f"DISTILL_{n.upper()}"})
    assert re.search(rf"^\| `{name}` \| .* \| {re.escape(str(field.description))} \|$", README, re.MULTILINE)


@pytest.mark.parametrize("name", ProviderSettings.model_fields)
def test_the_providers_page_lists_what_a_provider_can_be_told(name: str) -> None:
    description = ProviderSettings.model_fields[name].description
    assert re.search(rf"^\| `{name}` \| .* \| {re.escape(str(description))} \|$", PROVIDERS, re.MULTILINE)


def test_the_readme_leads_to_the_providers_page() -> None:
    assert "](docs/providers.md)" in README


EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", PROVIDERS, re.MULTILINE | re.DOTALL)
TABLES = [(name, table) for example in EXAMPLES for name, table in tomllib.loads(example).items()]
SHIPPED = tomllib.loads((ROOT / "deploy" / "providers.toml").read_text(encoding="utf-8"))


def read_with_a_key(table: dict[str, Any], tmp_path: Path) -> ProviderSettings:
    """Secrets come from a file that is there."""
    secret = tmp_path / "key"
    secret.write_text("sk-test\n", encoding="utf-8")
    return ProviderSettings.model_validate(
        {name: str(secret) if name == "api_key_file" else value for name, value in table.items()}
    )


@pytest.mark.parametrize(("name", "table"), [*TABLES, *SHIPPED.items()])
def test_every_table_that_is_shown_or_shipped_can_be_read(name: str, table: dict[str, Any], tmp_path: Path) -> None:
    provider = read_with_a_key(table, tmp_path)
    assert [known for known in provider.hyperparameters if known not in HYPERPARAMETERS] == []
    assert not {"api_key", "webhook_secret"} & set(table) or name == "sandbox"


def test_there_is_a_worked_example_of_each_kind_of_provider(tmp_path: Path) -> None:
    shown = {name: read_with_a_key(table, tmp_path) for name, table in TABLES}
    assert {"openai", "azure", "nebius", "crusoe", "local"} <= set(shown)
    assert {provider.tuned_model for provider in shown.values()} == {"ready", "checkpoint", "deployment"}


def test_the_openai_of_the_page_of_compose_and_of_the_environment_are_the_same(tmp_path: Path) -> None:
    settings = {"redis_url": "redis://x", "secret_key": "s" * 32, "OPENAI_API_KEY": "sk-test"}
    built_in = Settings(_env_file=None, **settings).providers["openai"]  # type: ignore[arg-type]  # values of all kinds
    for table in (dict(TABLES)["openai"], SHIPPED["openai"]):
        told = read_with_a_key(table, tmp_path).model_copy(update={"api_key_file": None, "headers": {}})
        assert told == built_in


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"headers": {"Authorization": "Bearer x"}}, "the key goes into api_key"),
        ({"training_extra": {"model": "x"}}, "must not name model"),
        ({"statuses": {"done": "finished"}}, "succeeded"),
        ({"tuned_model": "somewhere"}, "deployment"),
        ({"upload_part_bytes": 65 * 1024**2}, "less than or equal"),
    ],
)
def test_a_table_that_cannot_work_is_refused_at_start(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ProviderSettings.model_validate({"base_url": "https://x/v1"} | table)


@pytest.mark.parametrize("name", TenantSettings.model_fields)
def test_the_readme_lists_what_may_differ_for_a_tenant(name: str) -> None:
    description = TenantSettings.model_fields[name].description
    assert re.search(rf"^\| `{name}` \| .* \| {re.escape(str(description))} \|$", README, re.MULTILINE)


@pytest.mark.parametrize("word", [*JobStatus, *Stage, *PausedReason])
def test_the_readme_names_every_status_stage_and_reason(word: str) -> None:
    assert f"`{word}`" in README


def test_the_readme_lists_every_error_code() -> None:
    codes = re.findall(r"^## `(\w+)`", ERRORS, re.MULTILINE)
    assert len(codes) > 30
    assert [code for code in codes if f"| `{code}` |" not in README] == []

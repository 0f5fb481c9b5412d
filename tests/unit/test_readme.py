"""The README keeps its promises: it names every setting, status and error code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shared.lifecycle import JobStatus, PausedReason, Stage
from shared.settings import ProviderSettings, Settings, TenantSettings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
ERRORS = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")

SETTINGS = [str(field.validation_alias or f"DISTILL_{name.upper()}") for name, field in Settings.model_fields.items()]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_readme_lists_the_setting_with_its_meaning(name: str) -> None:
    field = next(f for n, f in Settings.model_fields.items() if name in {f.validation_alias, f"DISTILL_{n.upper()}"})
    assert re.search(rf"^\| `{name}` \| .* \| {re.escape(str(field.description))} \|$", README, re.MULTILINE)


@pytest.mark.parametrize("name", ProviderSettings.model_fields)
def test_the_readme_lists_what_a_provider_can_be_told(name: str) -> None:
    description = ProviderSettings.model_fields[name].description
    assert re.search(rf"^\| `{name}` \| .* \| {re.escape(str(description))} \|$", README, re.MULTILINE)


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

"""Where settings come from, and which source wins."""

from __future__ import annotations

import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cli import doctor, stack
from shared.settings import ProviderSettings, Settings
from shared.settings_loading import load_settings

pytestmark = pytest.mark.usefixtures("alone")
ROOT = Path(__file__).parents[2]


def told(monkeypatch: pytest.MonkeyPatch, tables: str, **environ: str) -> dict[str, ProviderSettings]:
    Path("providers.toml").write_text(tables, encoding="utf-8")
    monkeypatch.setenv("DISTILL_PROVIDERS_FILE", "providers.toml")
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    return Settings().providers


def test_a_table_of_openai_completes_what_is_built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    openai = told(monkeypatch, "[openai]\nmax_in_flight = 5\ncan_batch = false", OPENAI_API_KEY="sk-built-in")["openai"]

    assert (openai.max_in_flight, openai.can_batch) == (5, False)
    assert (openai.base_url, openai.prices, openai.can_store) == ("https://api.openai.com/v1", "openai", True)
    assert openai.api_key is not None
    assert openai.api_key.get_secret_value() == "sk-built-in"
    assert openai.examples_min == 10


def test_the_key_that_a_table_names_is_taken_before_the_built_in_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-of-the-table\n")
    openai = told(monkeypatch, '[openai]\napi_key_file = "key"', OPENAI_API_KEY="sk-built-in")["openai"]

    assert openai.api_key is not None
    assert openai.api_key.get_secret_value() == "sk-of-the-table"


def test_the_environment_completes_a_table_and_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = '[lab]\nbase_url = "http://lab/v1"\nmax_in_flight = 5\ncan_train = false'
    lab = told(monkeypatch, tables, DISTILL_PROVIDERS__LAB__MAX_IN_FLIGHT="7")["lab"]

    assert (lab.base_url, lab.max_in_flight, lab.can_train) == ("http://lab/v1", 7, False)


def test_a_partial_table_of_nobody_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"providers\.lab\.base_url"):
        told(monkeypatch, "[lab]\nmax_in_flight = 5")


def test_a_file_that_is_no_toml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"providers\.toml"):
        told(monkeypatch, "[lab")

    settings, complaint = doctor.read_settings(tmp_path, None)
    assert settings is None
    assert "providers.toml" in complaint


@pytest.mark.parametrize("source", ["environment", ".env"])
@pytest.mark.parametrize("name", ["ADMIN_KEY_FILE", "PROVIDERS_FILE", "PRICES_FILE", "TENANTS_FILE"])
def test_an_empty_text_names_no_file(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "environment":
        monkeypatch.setenv(f"DISTILL_{name}", "")
    else:
        Path(".env").write_text(f"DISTILL_{name}=\n", encoding="utf-8")
    settings = load_settings()
    assert (settings.admin_key, settings.providers_file, settings.prices_file, settings.tenants_file) == (None,) * 4


@pytest.mark.parametrize(
    ("environment", "in_file", "taken"),
    [
        ({}, {"file": "c"}, "c"),
        ({}, {"value": "d", "file": "c"}, "d"),
        ({"file": "b"}, {"value": "d", "file": "c"}, "b"),
        ({"file": "b"}, {"file": "nope"}, "b"),
        ({"value": "a", "file": "b"}, {"value": "d", "file": "c"}, "a"),
        ({"file": ""}, {"file": "c"}, None),
    ],
)
@pytest.mark.parametrize("name", ["DISTILL_ADMIN_KEY", "OPENAI_API_KEY"])
def test_the_environment_wins_over_the_file_of_settings_and_in_each_a_value_over_the_file_that_holds_it(
    name: str,
    environment: dict[str, str],
    in_file: dict[str, str],
    taken: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def said(source: dict[str, str]) -> dict[str, str]:
        """A value of 40 letters, and the name of the file that holds such a one."""
        names = {"value": name, "file": f"DISTILL_{name.removeprefix('DISTILL_')}_FILE"}
        return {names[kind]: letter * (40 if kind == "value" else 1) for kind, letter in source.items()}

    for letter in "bc":
        Path(letter).write_text(letter * 40 + "\n", encoding="utf-8")
    for variable, value in said(environment).items():
        monkeypatch.setenv(variable, value)
    Path(".env").write_text("\n".join("=".join(line) for line in said(in_file).items()), encoding="utf-8")
    told = load_settings()

    if name == "OPENAI_API_KEY":
        found = told.openai_api_key
        assert taken is None or told.providers["openai"].api_key == found
    else:
        found = told.admin_key
        Path("made").write_text("made", encoding="utf-8")
        of_the_command_line = stack.secret(name, os.environ, tmp_path, made=Path("made"))
        assert of_the_command_line == (taken * 40 if taken else "made")
    assert (found and found.get_secret_value()) == (taken and taken * 40)


def test_the_environment_completes_a_table_of_a_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("tenants.toml").write_text("[acme]\nactive_jobs_max = 1\nrequests_per_minute = 2\n", encoding="utf-8")
    monkeypatch.setenv("DISTILL_TENANTS_FILE", "tenants.toml")
    monkeypatch.setenv("DISTILL_TENANTS__ACME__REQUESTS_PER_MINUTE", "3")
    acme = load_settings().tenants["acme"]
    assert (acme.active_jobs_max, acme.requests_per_minute) == (1, 3)


@pytest.mark.parametrize("source", ["environment", "file", ".env"])
@pytest.mark.parametrize(
    ("setting", "text", "items"),
    [
        ("WEBHOOK_PORTS", "443", [443]),
        ("WEBHOOK_PORTS", "80, 443", [80, 443]),
        ("WEBHOOK_PORTS", "[80, 443]", [80, 443]),
        ("WEBHOOK_PORTS", "[]", []),
        ("WEBHOOK_ALLOW_NETWORKS", "10.0.0.0/8", [ip_network("10.0.0.0/8")]),
        ("WEBHOOK_ALLOW_NETWORKS", "10.0.0.0/8,fd00::/8", [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]),
        ("WEBHOOK_ALLOW_NETWORKS", '["10.0.0.0/8"]', [ip_network("10.0.0.0/8")]),
    ],
)
def test_a_list_is_one_item_or_several_with_commas_or_json(
    setting: str, text: str, items: list[Any], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        monkeypatch.setenv(f"DISTILL_{setting}", text)
    elif source == "file":
        Path("list").write_text(f"{text}\n", encoding="utf-8")
        monkeypatch.setenv(f"DISTILL_{setting}_FILE", "list")
    else:
        Path(".env").write_text(f"DISTILL_{setting}={text}\n", encoding="utf-8")
    assert list(getattr(load_settings(), setting.lower())) == items


@pytest.mark.parametrize("text", ["one", "one,two", '["one", "two"]', "[]"])
def test_a_list_in_a_table_is_written_in_the_same_ways(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        monkeypatch.setenv(f"DISTILL_PROVIDERS__{name}__BASE_URL", "http://x/v1")
    monkeypatch.setenv("DISTILL_PROVIDERS__ONE__HYPERPARAMETERS", text)
    monkeypatch.setenv("DISTILL_TENANTS__ACME__PROVIDERS", text)
    settings = load_settings()

    names = tuple(re.findall("[a-z]+", text))
    assert settings.providers["one"].hyperparameters == settings.tenants["acme"].providers == names


def test_null_in_the_environment_is_no_list_of_a_tenants_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TENANTS__ACME__PROVIDERS", "null")
    assert load_settings().tenants["acme"].providers is None


def test_white_space_around_the_admin_key_is_no_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_ADMIN_KEY", "dk_0123456789abcdefghij\n")
    admin_key = Settings().admin_key
    assert admin_key is not None
    assert admin_key.get_secret_value() == "dk_0123456789abcdefghij"


def test_no_key_is_no_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for nothing in ("", " "):
        monkeypatch.setenv("OPENAI_API_KEY", nothing)
        assert Settings().providers == {}
        assert stack.wants_sandbox({"OPENAI_API_KEY": nothing})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read_somewhere(name: str) -> None:
    sources = [path for package in ("api", "worker", "shared", "cli") for path in (ROOT / package).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(re.findall(rf"\b{name}\b", text)) > 1, "declared, and nothing more"

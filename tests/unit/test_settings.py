"""Where settings come from, and which source wins."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from cli import doctor, keys, stack
from shared.settings import ProviderSettings, Settings


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what a test sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_REDIS_URL", "redis://127.0.0.1/0")
    monkeypatch.setenv("DISTILL_SECRET_KEY", "s" * 32)


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


def test_a_partial_table_of_the_sandbox_completes_the_stacks_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("providers.toml").write_text("[sandbox]\nmax_in_flight = 20\ncan_batch = false", encoding="utf-8")
    address = stack.Address(1, "http://127.0.0.1:8600", "http://127.0.0.1:8601/v1", "unix:///x?db=0")
    children = stack.children_environment(
        {"DISTILL_PROVIDERS_FILE": "providers.toml"},
        options=stack.Options(tmp_path),
        redis_url=address.redis_url,
        key_files=keys.ensure(tmp_path / "data"),
        address=address,
    )
    for name, value in children.items():
        monkeypatch.setenv(name, value)
    sandbox = Settings().providers["sandbox"]

    assert (sandbox.max_in_flight, sandbox.can_batch) == (20, False)
    assert (sandbox.base_url, sandbox.prices, sandbox.can_store) == ("http://127.0.0.1:8601/v1", "openai", True)


def test_a_partial_table_of_nobody_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"providers\.lab\.base_url"):
        told(monkeypatch, "[lab]\nmax_in_flight = 5")


def test_a_file_that_is_no_toml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"providers\.toml"):
        told(monkeypatch, "[lab")

    settings, complaint = doctor.read_settings(tmp_path, None)
    assert settings is None
    assert "providers.toml" in complaint

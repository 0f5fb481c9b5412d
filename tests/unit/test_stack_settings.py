"""What `distill up` tells its services, and what it leaves as its user has said it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli import keys, stack
from shared.settings import Settings
from shared.settings_loading import load_settings

pytestmark = pytest.mark.usefixtures("alone")


def children_of_a_stack(folder: Path, environ: dict[str, str]) -> dict[str, str]:
    """What its services are told."""
    address = stack.Address(1, "http://127.0.0.1:8600", "http://127.0.0.1:8601/v1", "unix:///x?db=0")
    return stack.children_environment(
        environ,
        folder=folder,
        options=stack.Options(folder),
        redis_url=address.redis_url,
        key_files=keys.ensure(folder / "data"),
        address=address,
    )


def test_a_partial_table_of_the_sandbox_completes_the_stacks_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("providers.toml").write_text("[sandbox]\nmax_in_flight = 20\ncan_batch = false", encoding="utf-8")
    for name, value in children_of_a_stack(tmp_path, {"DISTILL_PROVIDERS_FILE": "providers.toml"}).items():
        monkeypatch.setenv(name, value)
    sandbox = Settings().providers["sandbox"]

    assert (sandbox.max_in_flight, sandbox.can_batch, sandbox.examples_min) == (20, False, 10)
    assert (sandbox.base_url, sandbox.prices, sandbox.can_store) == ("http://127.0.0.1:8601/v1", "openai", True)


def test_what_stands_in_the_file_of_settings_is_left_as_it_is_by_a_local_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("DISTILL_SECRET_KEY")
    lines = {
        "DISTILL_ADMIN_KEY": "dk_" + "a" * 40,
        "DISTILL_SECRET_KEY": "b" * 40,
        "DISTILL_LOG_FORMAT": "console",
        "DISTILL_WEBHOOK_PORTS": "8443",
        "DISTILL_PROVIDERS__SANDBOX__CAN_BATCH": "false",
    }
    Path(".env").write_text("\n".join(f"{name}={value}" for name, value in lines.items()), encoding="utf-8")
    children = children_of_a_stack(tmp_path, {})
    for name, value in children.items():
        monkeypatch.setenv(name, value)
    told = load_settings()

    assert told.admin_key is not None
    assert told.admin_key.get_secret_value() == lines["DISTILL_ADMIN_KEY"]
    assert told.secret_key.get_secret_value() == lines["DISTILL_SECRET_KEY"]
    assert (told.log_format, told.webhook_ports, told.webhook_allow_http) == ("console", (8443,), True)
    assert not told.providers["sandbox"].can_batch
    assert not any(lines["DISTILL_SECRET_KEY"] in value for value in children.values())


def test_secrets_in_files_that_the_file_of_settings_names_are_left_as_they_are_by_a_local_stack(tmp_path: Path) -> None:
    Path(".env").write_text("DISTILL_ADMIN_KEY_FILE=a\nDISTILL_SECRET_KEY_FILE=b\n", encoding="utf-8")
    assert not {"DISTILL_ADMIN_KEY_FILE", "DISTILL_SECRET_KEY_FILE"} & children_of_a_stack(tmp_path, {}).keys()


@pytest.mark.parametrize(
    ("environ", "tables", "wanted"),
    [
        ({"DISTILL_PROVIDERS__SANDBOX__MAX_IN_FLIGHT": "5"}, "", True),
        ({}, "[sandbox]\nmax_in_flight = 5", True),
        ({"DISTILL_PROVIDERS__SANDBOX__BASE_URL": "http://127.0.0.1:9/v1"}, "", False),
        ({}, '[sandbox]\nbase_url = "http://127.0.0.1:9/v1"', False),
        ({}, '[lab]\nbase_url = "http://127.0.0.1:9/v1"\n[sandbox]\nmax_in_flight = 5', False),
    ],
)
def test_what_completes_the_sandbox_is_no_provider_of_ones_own(
    environ: dict[str, str], tables: str, wanted: bool, tmp_path: Path
) -> None:
    (tmp_path / "tables.toml").write_text(tables)
    file = {"DISTILL_PROVIDERS_FILE": str(tmp_path / "tables.toml")} if tables else {}
    assert stack.wants_sandbox(environ | file) is wanted

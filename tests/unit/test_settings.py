"""Where settings come from, which source wins, and what is said of those that are wrong."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cli import doctor, keys, stack
from shared.settings import ProviderSettings, Settings
from shared.settings_loading import WrongSettings, load_settings, unknown_names

ROOT = Path(__file__).parents[2]


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


def test_a_partial_table_of_nobody_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match=r"providers\.lab\.base_url"):
        told(monkeypatch, "[lab]\nmax_in_flight = 5")


def test_a_file_that_is_no_toml_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"providers\.toml"):
        told(monkeypatch, "[lab")

    settings, complaint = doctor.read_settings(tmp_path, None)
    assert settings is None
    assert "providers.toml" in complaint


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("mine = ", "Invalid value"),
        ('[mine."x"]\ninput = "1"\noutput = "-1"', "must be 0 or more"),
    ],
)
def test_a_wrong_price_file_is_told_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str, fault: str
) -> None:
    Path("prices.toml").write_text(content, encoding="utf-8")
    monkeypatch.setenv("DISTILL_PRICES_FILE", "prices.toml")
    with pytest.raises(WrongSettings, match=r"DISTILL_PRICES_FILE: prices\.toml: ") as wrong:
        load_settings()
    assert fault in str(wrong.value)
    assert "DISTILL_PRICES_FILE: prices.toml" in doctor.read_settings(tmp_path, None)[1]


PORT = "must be a port from 1 to 65535, with a comma between two"
PORTS = "must be a list such as 80,443 or [80, 443]; [] is the empty one"
NAMES = 'must be a list such as one,another or ["one", "another"]; [] is the empty one'
TABLE = "must be a table, which is a JSON object in the environment"
WRONG = [
    ({"DISTILL_PROVIDERS": "notjson"}, f"DISTILL_PROVIDERS: {TABLE}"),
    ({"DISTILL_PROVIDERS": "x", "DISTILL_PROVIDERS__LAB__BASE_URL": "http://x"}, f"DISTILL_PROVIDERS: {TABLE}"),
    ({"DISTILL_TENANTS": "[]"}, f"DISTILL_TENANTS: {TABLE}"),
    (
        {"DISTILL_PROVIDERS__LAB__BASE_URL": "http://x", "DISTILL_PROVIDERS__LAB__STATUSES": "notjson"},
        f"providers.lab.statuses: {TABLE}",
    ),
    ({"DISTILL_WEBHOOK_PORTS": "abc"}, f"DISTILL_WEBHOOK_PORTS[0]: {PORT}"),
    ({"DISTILL_WEBHOOK_PORTS": "80 443"}, f"DISTILL_WEBHOOK_PORTS[0]: {PORT}"),
    ({"DISTILL_WEBHOOK_PORTS": "80,65536"}, f"DISTILL_WEBHOOK_PORTS[1]: {PORT}"),
    ({"DISTILL_WEBHOOK_PORTS": "[0, true]"}, f"DISTILL_WEBHOOK_PORTS[0]: {PORT}; DISTILL_WEBHOOK_PORTS[1]: {PORT}"),
    *[({"DISTILL_WEBHOOK_PORTS": text}, f"DISTILL_WEBHOOK_PORTS: {PORTS}") for text in ("", "80,", "[80", '{"80": 1}')],
    (
        {"DISTILL_PROVIDERS__LAB__BASE_URL": "http://x", "DISTILL_PROVIDERS__LAB__HYPERPARAMETERS": "[lora_rank]"},
        f"providers.lab.hyperparameters: {NAMES}",
    ),
    ({"DISTILL_TENANTS__ACME__PROVIDERS": ""}, f"tenants.acme.providers: {NAMES}"),
    ({"DISTILL_TENANTS": '{"acme": {"providers": 5}}'}, f"tenants.acme.providers: {NAMES}"),
    ({"DISTILL_ADMIN_KEY_FILE": "nope"}, "DISTILL_ADMIN_KEY_FILE: nope cannot be read: No such file or directory"),
    ({"DISTILL_PROVIDERS_FILE": "nope"}, "DISTILL_PROVIDERS_FILE: nope cannot be read: No such file or directory"),
    ({"DISTILL_TENANTS_FILE": "nope"}, "DISTILL_TENANTS_FILE: nope cannot be read: No such file or directory"),
    ({"DISTILL_PRICES_FILE": "nope"}, "DISTILL_PRICES_FILE: nope cannot be read: No such file or directory"),
    (
        {"DISTILL_PROVIDERS": '{"lab": {"base_url": "http://x", "api_key_file": "nope"}}'},
        "providers.lab: nope cannot be read: No such file or directory",
    ),
    (
        {"DISTILL_WEBHOOK_ALLOW_NETWORKS": '["10.0.0.0/8", "office"]'},
        "DISTILL_WEBHOOK_ALLOW_NETWORKS[1]: must be a network as CIDR, such as 10.0.0.0/8, with a comma between two",
    ),
    (
        {"DISTILL_PROVIDERS__LAB__BASE_URL": "ftp://x"},
        "providers.lab.base_url: must be an address that starts with http:// or https://",
    ),
    (
        {"DISTILL_PROVIDERS": '{"lab": {"base_url": "http://x", "webhook_secret": "whsec_c2hvcnQ="}}'},
        "providers.lab.webhook_secret: must be whsec_ and base64, as the provider shows it",
    ),
    ({"OPENAI_BASE_URL": "garbage"}, "OPENAI_BASE_URL: must be an address that starts with http:// or https://"),
    (
        {"DISTILL_POLL_MIN_SECONDS": "31"},
        "DISTILL_POLL_MIN_SECONDS must not be above DISTILL_POLL_MAX_SECONDS",
    ),
    (
        {"DISTILL_METRICS_PORT": "8600"},
        "DISTILL_METRICS_PORT must be another than DISTILL_API_PORT",
    ),
    (
        {"DISTILL_TENANTS": '{"acme": {"providers": ["opneai"]}}', "DISTILL_PROVIDERS__LAB__BASE_URL": "http://x/v1"},
        "tenants.acme.providers names opneai; configured: lab",
    ),
    (
        {"DISTILL_ADMIN_KEY": "dk_" + "é" * 20},
        "DISTILL_ADMIN_KEY: must be printable ASCII on one line, as a header carries it",
    ),
    ({"DISTILL_SECRET_KEY": "s"}, "DISTILL_SECRET_KEY: must have at least 32 characters"),
    (
        {"DISTILL_API_PORT": "x", "DISTILL_LOG_LEVEL": "loud"},
        "DISTILL_API_PORT: input should be a valid integer, unable to parse string as an integer; "
        "DISTILL_LOG_LEVEL: input should be 'debug', 'info', 'warning' or 'error'",
    ),
]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:Sup3r/Secret@127.0.0.1:6379/0",
        "redis://:Sup3r#Secret@127.0.0.1:6379/0",
        "redis://:Sup3r?Secret@127.0.0.1:6379/0",
        "redis://:Sup3r[Secret@127.0.0.1:6379/0",
        "redis://:1234/Secret@127.0.0.1:6379/0",  # 1234 is a port, and the rest a database
        "redis://:1234#Secret@127.0.0.1:6379/0",
        "redis://:1234?Secret=@127.0.0.1:6379/0",
        "redis://Sup3r/Secret@127.0.0.1:6379/0",
        "rediss://127.0.0.1:Secret/0",
        "redis://127.0.0.1:99999/0",
        "redis://127.0.0.1/Secret",
        "redis://127.0.0.1?db=Secret",
        "redis://127.0.0.1?db=",
        "unix://:Sup3r/Secret@/run/redis.sock",
        "unix://Secret",
    ],
)
def test_an_address_of_the_store_that_cannot_be_read_is_told_without_any_part_of_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_REDIS_URL", url)
    with pytest.raises(WrongSettings, match=r"^DISTILL_REDIS_URL: must be .* percent-encoded$") as refused:
        load_settings()
    assert not [part for part in ("Sup3r", "Secret", "1234") if part in str(refused.value)]


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis://127.0.0.1?foo=Secret", "takes no option after the [?] but db$"),
        ("redis://127.0.0.1?socket_timeout=3", "takes no option after the [?] but db$"),
        ("redis://127.0.0.1?decode_responses=True", "takes no option after the [?] but db$"),
        ("redis://127.0.0.1?ssl_cert_reqs=none", "takes no option after the [?] but db$"),
        (
            "rediss://127.0.0.1?ssl=Secret",
            "but db, ssl_ca_certs, .*, ssl_check_hostname, ssl_keyfile$",
        ),
        ("rediss://127.0.0.1?ssl_cert_reqs=Secret", "must have one of required, optional, none as ssl_cert_reqs$"),
        ("unix:///run/redis.sock?timeout=3", "takes no option after the [?] but db$"),
    ],
)
def test_options_of_the_store_are_those_that_both_of_its_clients_understand(
    url: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_REDIS_URL", url)
    with pytest.raises(WrongSettings, match=f"^DISTILL_REDIS_URL: .*{complaint}") as refused:
        load_settings()
    assert "Secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "spelt"),
    [
        ("redis://user:p%2Fss@lab:7000/3", "redis://user:p%2Fss@lab:7000/3"),
        ("redis://lab?db=3", "redis://lab/3"),
        ("rediss://:pass@lab/3", "rediss://:pass@lab/3?ssl_cert_reqs=required"),
        ("rediss://lab?db=2&ssl_cert_reqs=none", "rediss://lab/2?ssl_cert_reqs=none"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock?virtual_host=0"),
        ("unix://:pass@/run/redis.sock?db=4", "redis+socket://:pass@/run/redis.sock?virtual_host=4"),
    ],
)
def test_celery_reaches_the_same_database_and_looks_at_the_same_certificate(
    url: str, spelt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_REDIS_URL", url)
    assert load_settings().broker_url == spelt


@pytest.mark.parametrize("command", [["api"], ["worker"], ["cli", "up"], ["cli", "doctor"]])
def test_no_process_shows_an_address_of_the_store_that_it_cannot_read(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_REDIS_URL", "redis://:Sup3r/Secret@127.0.0.1:6379/0")
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", *command], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode in {1, 2}
    assert "DISTILL_REDIS_URL: must be" in said
    assert not [part for part in ("Traceback", "Sup3r", "Secret") if part in said]


@pytest.mark.parametrize(
    "url",
    [
        "redis://lab",
        "redis://:Sup3r%2FSecret%23@127.0.0.1:6379/0",
        "redis://user:pass@[::1]:6379/15",
        "rediss://store.internal?db=2",
        "unix:///run/redis.sock",
        "unix://:pass@/run/a%23folder/redis.sock?db=1",
    ],
)
def test_an_address_that_names_a_store_is_taken_as_it_is(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_REDIS_URL", url)
    assert load_settings().redis_url == url


@pytest.mark.parametrize(("environ", "sentence"), WRONG)
def test_a_setting_that_cannot_be_used_is_named_in_one_sentence(
    environ: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    assert str(refused.value) == sentence
    assert doctor.read_settings(tmp_path, None) == (None, sentence)


def test_wrong_settings_of_all_sources_are_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path(".env").write_text("DISTILL_PROVIDERS=notjson\nDISTILL_CHUNK_SIZE=0\n", encoding="utf-8")
    Path("tenants.toml").write_text("[acme]\nactive_jobs_max = -1\n", encoding="utf-8")
    Path("prices.toml").write_text("mine = 1\n", encoding="utf-8")
    for name, value in {
        "API_PORT": "70000",
        "WEBHOOK_PORTS": "0",
        "POLL_MIN_SECONDS": "31",
        "ADMIN_KEY_FILE": "nowhere",
        "PROVIDERS_FILE": "nothing",
        "TENANTS_FILE": "tenants.toml",
        "PRICES_FILE": "prices.toml",
    }.items():
        monkeypatch.setenv(f"DISTILL_{name}", value)
    with pytest.raises(WrongSettings) as refused:
        load_settings()

    assert str(refused.value).split("; ") == [
        "DISTILL_ADMIN_KEY_FILE: nowhere cannot be read: No such file or directory",
        f"DISTILL_PROVIDERS: {TABLE}",
        "DISTILL_PROVIDERS_FILE: nothing cannot be read: No such file or directory",
        "DISTILL_PRICES_FILE: prices.toml: mine must be a table of models",
        "tenants.acme.active_jobs_max: input should be greater than or equal to 0",
        "DISTILL_API_PORT: input should be less than or equal to 65535",
        "DISTILL_CHUNK_SIZE: input should be greater than or equal to 1",
        "DISTILL_POLL_MIN_SECONDS must not be above DISTILL_POLL_MAX_SECONDS",
        f"DISTILL_WEBHOOK_PORTS[0]: {PORT}",
    ]
    assert doctor.read_settings(tmp_path, None) == (None, str(refused.value))


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        (
            {
                "DISTILL_PROVIDERS_FILE": "nope",
                "DISTILL_PROVIDERS__LAB__MAX_IN_FLIGHT": "5",
                "DISTILL_TENANTS": '{"acme": {"providers": ["lab"]}}',
            },
            "DISTILL_PROVIDERS_FILE: nope cannot be read: No such file or directory",
        ),
        (
            {
                "DISTILL_OPENAI_API_KEY_FILE": "nope",
                "DISTILL_PROVIDERS__OPENAI__MAX_IN_FLIGHT": "5",
                "DISTILL_TENANTS": '{"acme": {"providers": ["openai"]}}',
            },
            "DISTILL_OPENAI_API_KEY_FILE: nope cannot be read: No such file or directory",
        ),
        (
            {"OPENAI_API_KEY": "sk-x", "DISTILL_OPENAI_BASE_URL_FILE": "nope"},
            "DISTILL_OPENAI_BASE_URL_FILE: nope cannot be read: No such file or directory",
        ),
        (
            {"DISTILL_PROVIDERS__LAB__BASE_URL": "x", "DISTILL_TENANTS": '{"acme": {"providers": ["lab"]}}'},
            "providers.lab.base_url: must be an address that starts with http:// or https://",
        ),
    ],
)
def test_what_only_follows_from_a_wrong_setting_is_not_told(
    environ: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    assert str(refused.value) == sentence


@pytest.mark.parametrize("source", ["environment", ".env"])
@pytest.mark.parametrize("name", ["ADMIN_KEY_FILE", "PROVIDERS_FILE", "PRICES_FILE", "TENANTS_FILE"])
def test_an_empty_text_names_no_file(name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if source == "environment":
        monkeypatch.setenv(f"DISTILL_{name}", "")
    else:
        Path(".env").write_text(f"DISTILL_{name}=\n", encoding="utf-8")
    settings = load_settings()
    assert (settings.admin_key, settings.providers_file, settings.prices_file, settings.tenants_file) == (None,) * 4


@pytest.mark.parametrize("source", ["environment", ".env"])
@pytest.mark.parametrize(
    ("name", "value", "file"),
    [
        ("DISTILL_ADMIN_KEY", "dk_0123456789abcdefghij", "DISTILL_ADMIN_KEY_FILE"),
        ("OPENAI_API_KEY", "sk-x", "DISTILL_OPENAI_API_KEY_FILE"),
        ("OPENAI_BASE_URL", "http://x/v1", "DISTILL_OPENAI_BASE_URL_FILE"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_also_where_another_source_has_the_setting(
    name: str, value: str, file: str, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if source == "environment":
        monkeypatch.setenv(name, value)
    else:
        Path(".env").write_text(f"{name}={value}\n", encoding="utf-8")
    monkeypatch.setenv(file, "nope")
    with pytest.raises(WrongSettings, match=f"^{file}: nope cannot be read: No such file or directory$"):
        load_settings()


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


def test_a_file_that_the_file_of_settings_names_and_nobody_can_read_is_told() -> None:
    Path(".env").write_text("DISTILL_LOG_LEVEL_FILE=nope\n", encoding="utf-8")
    with pytest.raises(WrongSettings, match=r"^DISTILL_LOG_LEVEL_FILE: nope cannot be read: No such file"):
        load_settings()


def test_secrets_in_files_that_the_file_of_settings_names_are_left_as_they_are_by_a_local_stack(tmp_path: Path) -> None:
    Path(".env").write_text("DISTILL_ADMIN_KEY_FILE=a\nDISTILL_SECRET_KEY_FILE=b\n", encoding="utf-8")
    assert not {"DISTILL_ADMIN_KEY_FILE", "DISTILL_SECRET_KEY_FILE"} & children_of_a_stack(tmp_path, {}).keys()


@pytest.mark.parametrize("text", ["notjson", "[]", "5"])
def test_what_is_no_table_is_told_also_where_a_stronger_source_completes_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text(f"DISTILL_TENANTS={text}\nDISTILL_PROVIDERS__LAB__STATUSES={text}\n", encoding="utf-8")
    monkeypatch.setenv("DISTILL_TENANTS__ACME__ACTIVE_JOBS_MAX", "1")
    monkeypatch.setenv("DISTILL_PROVIDERS__LAB__BASE_URL", "http://x/v1")
    monkeypatch.setenv("DISTILL_PROVIDERS__LAB__STATUSES__DONE", "succeeded")
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    assert str(refused.value) == f"providers.lab.statuses: {TABLE}; DISTILL_TENANTS: {TABLE}"


def test_a_table_without_an_address_is_told_also_beside_another_wrong_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TENANTS_FILE", "nope")
    monkeypatch.setenv("DISTILL_PROVIDERS__LAB__MAX_IN_FLIGHT", "5")
    with pytest.raises(WrongSettings, match=r"^providers\.lab\.base_url: field required; DISTILL_TENANTS_FILE: nope "):
        load_settings()


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


def test_a_name_that_is_no_setting_is_found_with_the_one_that_was_meant() -> None:
    environ = {
        "DISTILL_WORKER_HAND": "1",
        "DISTILL_COLOUR": "red",
        "DISTILL_SECRET_KEY_FILE": "x",
        "DISTILL_OPENAI_API_KEY_FILE": "x",
        "DISTILL_PROVIDERS__LAB__BASE_URL": "x",
        "DISTILL_API_KEY": "x",
        "HOME": "/",
    }
    assert list(unknown_names(environ)) == [("DISTILL_COLOUR", None), ("DISTILL_WORKER_HAND", "DISTILL_WORKER_HANDS")]


@pytest.mark.parametrize(
    ("module", "setting"), [("worker", "WORKER_METRICS_PORT"), ("api", "METRICS_PORT"), ("api", "API_PORT")]
)
def test_a_process_that_cannot_listen_says_why_and_ends(
    module: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_ADMIN_KEY", "dk_0123456789abcdefghij")
    monkeypatch.setenv("DISTILL_API_PORT", "0")  # whatever else runs here
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv(f"DISTILL_{setting}", str(port))
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        ended = subprocess.run(
            [sys.executable, "-m", module], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"Port {port} of DISTILL_{setting} cannot be listened on at 127.0.0.1")
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read_somewhere(name: str) -> None:
    sources = [path for package in ("api", "worker", "shared", "cli") for path in (ROOT / package).rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert len(re.findall(rf"\b{name}\b", text)) > 1, "declared, and nothing more"

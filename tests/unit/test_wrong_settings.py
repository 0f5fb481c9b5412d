"""What is said of settings that are wrong: each by its name, all at once, and never a secret."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cli import doctor
from shared.settings_loading import WrongSettings, load_settings, unknown_names

pytestmark = pytest.mark.usefixtures("alone")
ROOT = Path(__file__).parents[2]

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


def _refusal() -> str:
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    return str(refused.value)


@pytest.mark.parametrize(("environ", "sentence"), WRONG)
def test_a_setting_that_cannot_be_used_is_named_in_one_sentence(
    environ: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert _refusal() == sentence
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
    assert _refusal() == sentence


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


def test_a_file_that_the_file_of_settings_names_and_nobody_can_read_is_told() -> None:
    Path(".env").write_text("DISTILL_LOG_LEVEL_FILE=nope\n", encoding="utf-8")
    with pytest.raises(WrongSettings, match=r"^DISTILL_LOG_LEVEL_FILE: nope cannot be read: No such file"):
        load_settings()


@pytest.mark.parametrize("text", ["notjson", "[]", "5"])
def test_what_is_no_table_is_told_also_where_a_stronger_source_completes_it(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text(f"DISTILL_TENANTS={text}\nDISTILL_PROVIDERS__LAB__STATUSES={text}\n", encoding="utf-8")
    monkeypatch.setenv("DISTILL_TENANTS__ACME__ACTIVE_JOBS_MAX", "1")
    monkeypatch.setenv("DISTILL_PROVIDERS__LAB__BASE_URL", "http://x/v1")
    monkeypatch.setenv("DISTILL_PROVIDERS__LAB__STATUSES__DONE", "succeeded")
    assert _refusal() == f"providers.lab.statuses: {TABLE}; DISTILL_TENANTS: {TABLE}"


def test_a_table_without_an_address_is_told_also_beside_another_wrong_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_TENANTS_FILE", "nope")
    monkeypatch.setenv("DISTILL_PROVIDERS__LAB__MAX_IN_FLIGHT", "5")
    with pytest.raises(WrongSettings, match=r"^providers\.lab\.base_url: field required; DISTILL_TENANTS_FILE: nope "):
        load_settings()


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

"""The address of the store: what is taken, what is refused, and that no part of it is shown."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shared.settings_loading import WrongSettings, load_settings

pytestmark = pytest.mark.usefixtures("alone")
ROOT = Path(__file__).parents[2]


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

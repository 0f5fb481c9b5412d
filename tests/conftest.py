"""What every test may ask for: a store on both servers, an event loop, and no network for unit tests."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis.asyncio as redis

from cli import embedded
from shared.store import Store
from shared.store.connection import Scripts, connect

UNIT = Path(__file__).parent / "unit"
LONGEST_TEST_SECONDS = 100  # of those that count by the day


def pytest_itemcollected(item: pytest.Item) -> None:
    """Each operation that Schemathesis tests is named in its test's id, which pytest 9.2 makes without."""
    if operation := getattr(item, "operation_label", None):
        item._id = item.id.with_params(operation)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several tests with one id, pytest-xdist would run one and drop the others."""
    shared = [node_id for node_id, count in Counter(item.nodeid for item in items).items() if count > 1]
    if shared:
        raise pytest.UsageError(f"Several tests have the same id: {shared}")


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, as the product does."""
    return "asyncio"


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those that a test makes, and the two without which there are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILL_REDIS_URL", "redis://127.0.0.1/0")
    monkeypatch.setenv("DISTILL_SECRET_KEY", "s" * 32)


@pytest.fixture(autouse=True)
def no_network_for_unit_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if UNIT not in request.path.parents:
        return

    def refuse(*_: Any) -> Any:
        raise AssertionError("A unit test tried to open a connection.")

    for way_out in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, way_out, refuse)


@pytest.fixture(scope="session")
def valkey() -> Iterator[embedded.Embedded]:
    """One real server for the whole run, on a unix socket in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="dst-", dir="/tmp"))
    try:
        with embedded.start(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and self-signed certificate of hooks.test and 127.0.0.1, in one PEM file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(openssl, "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-subj", "/CN=hooks.test", "-addext", "subjectAltName=DNS:hooks.test,IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text((folder / "key.pem").read_text() + (folder / "cert.pem").read_text())
    return both


@pytest.fixture
async def valkey_client(valkey: embedded.Embedded, anyio_backend: str) -> AsyncIterator[redis.Redis]:
    client = connect(valkey.url, patient=True)
    await client.flushdb()
    yield client
    await client.config_set("maxmemory", "0")
    await client.aclose()


@pytest.fixture(params=["fakeredis", "valkey"])
async def client(request: pytest.FixtureRequest, anyio_backend: str) -> AsyncIterator[redis.Redis]:
    """The raw connection behind `store`, for what a test must see or break in the database itself."""
    if request.param == "valkey":
        server: embedded.Embedded = request.getfixturevalue("valkey")
        found = connect(server.url, patient=True)
        await found.flushdb()
    else:
        found = fakeredis.FakeAsyncRedis()
    yield found
    await found.aclose()


@pytest.fixture
def every_script_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when redis-py sends a script again because the first answer did not come.  Answers with the second answer."""
    run = Scripts.run

    async def twice(self: Scripts, *arguments: Any) -> Any:
        await run(self, *arguments)
        return await run(self, *arguments)

    monkeypatch.setattr(Scripts, "run", twice)


@pytest.fixture
def within_a_day() -> None:
    """For tests that count by the day: midnight (UTC) does not come while they run."""
    left = 86_400 - time.time() % 86_400
    if left < LONGEST_TEST_SECONDS:
        time.sleep(left + 0.1)  # a minute of waiting once a day, for tests that mean what they say at every hour


@pytest.fixture
async def store(client: redis.Redis) -> AsyncIterator[Store]:
    made = Store(client, script_headers=not isinstance(client, fakeredis.FakeAsyncRedis))
    yield made
    await made.close()


@pytest.fixture
async def real_store(valkey_client: redis.Redis) -> AsyncIterator[Store]:
    """The store on the real server alone: for memory limits, and for tests of workers, which need its speed."""
    made = Store(valkey_client)
    yield made
    await made.close()

"""What every test may ask for: a store on both servers, an event loop, and no network for unit tests."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import fakeredis
import pytest
import redis.asyncio as redis

from cli import embedded
from shared.store import Store
from shared.store.connection import connect

UNIT = Path(__file__).parent / "unit"


@pytest.fixture
def anyio_backend() -> str:
    """Tests marked `anyio` run on asyncio, as the product does."""
    return "asyncio"


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
def store(client: redis.Redis) -> Store:
    return Store(client, script_headers=not isinstance(client, fakeredis.FakeAsyncRedis))


@pytest.fixture
def real_store(valkey_client: redis.Redis) -> Store:
    """The store on the real server alone: for memory limits, and for tests of workers, which need its speed."""
    return Store(valkey_client)

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import fakeredis
import httpx2
import pytest
import structlog

from api.app import create_app
from shared.settings import ProviderSettings, Settings
from shared.store import Store

ADMIN_KEY = "dk_test_0123456789abcdef"
AUTHORIZED = {"Authorization": f"Bearer {ADMIN_KEY}"}


class FakeServer(fakeredis.FakeAsyncRedis):
    """fakeredis, with the two commands about the server itself that it lacks."""

    used_memory = 10

    async def info(self, section: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return {"used_memory": self.used_memory, "maxmemory": 100}

    async def config_get(self, pattern: str = "*", *args: Any, **kwargs: Any) -> Any:
        durable = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        return {pattern: durable[pattern]}


class RecordingBell:
    def __init__(self) -> None:
        self.rung: list[tuple[str, str]] = []

    async def ring(self, task: str, id_: str) -> bool:
        self.rung.append((task, id_))
        return True


class Api:
    """A client of the application, and what lies behind it."""

    def __init__(self, settings: Settings, store: Store, redis: Any) -> None:
        self.store, self.redis, self.settings = store, redis, settings
        self.bell = RecordingBell()
        self.app = create_app(settings, store=store, doorbell=self.bell)
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://test", headers=AUTHORIZED)

    async def keys(self) -> list[bytes]:
        return list(await self.redis.keys("*"))

    async def create(self, **changes: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/jobs", json=a_request(**changes))
        assert answer.status_code == 202, answer.text
        return answer.json()


def a_request(**changes: Any) -> dict[str, Any]:
    """The smallest request that passes, with twenty prompts."""
    return {
        "teacher": {"provider": "openai", "model": "gpt-6.1-sol", "params": {"temperature": 0.01}},
        "students": [{"provider": "openai", "model": "gpt-4.1-mini-2025-04-14"}],
        "source": {"type": "inline", "prompts": [f"Ticket {n}: my invoice is wrong." for n in range(20)]},
        "curation": {"min_accepted": 5},
    } | changes


def some_settings(**changes: Any) -> Settings:
    openai = ProviderSettings(base_url="http://127.0.0.1:1/v1", api_key="sk-x", prices="openai", can_store=True)
    free = ProviderSettings(base_url="http://127.0.0.1:1/v1", can_train=False)
    values: dict[str, Any] = {
        "redis_url": "redis://127.0.0.1:1/0",
        "secret_key": "s" * 32,
        "admin_key": ADMIN_KEY,
        "providers": {"openai": openai, "closed": free},
    }
    return Settings(_env_file=None, **(values | changes))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    redis = FakeServer()
    made = Api(some_settings(), Store(redis, script_headers=False), redis)
    async with made.http:
        yield made
    await redis.aclose()

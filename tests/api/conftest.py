from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from api_kit import Api, FakeServer, some_settings

from shared.store import Store


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    redis = FakeServer()
    made = Api(some_settings(), Store(redis, script_headers=False), redis)
    async with made.http:
        yield made
    await redis.aclose()

"""The catalogue of models that the API goes by: read from each provider by whichever worker finds it due."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Final

import structlog

from shared.catalogue import Catalogue
from shared.errors import ProviderAuthFailed, ProviderError, ProviderModelMissing, ProviderRejected
from shared.settings import ProviderSettings
from shared.store import Store
from worker.providers import Providers

_log: Final = structlog.get_logger()
_EVERY_SECONDS: Final = 900.0
_READING_SECONDS: Final = 90.0  # a reading takes less; when its worker dies, another one begins after this
_JUST_READ_SECONDS: Final = 60.0  # a worker that starts reads nothing again that was read so lately


class Cataloguer:
    def __init__(self, store: Store, providers: Providers, configured: Mapping[str, ProviderSettings]) -> None:
        self._store = store.catalogues
        self._providers = providers
        self._configured = configured

    async def begin(self) -> None:
        """At a worker's start: every provider's models are due, unless they were read a moment ago."""
        for name in self._configured:
            known = await self._store.get(name)
            if known is None or _now_ms() - known.tried_at_ms > _JUST_READ_SECONDS * 1000:
                await self._store.due_in(name, 0.0, sooner=True)

    async def read(self, provider: str) -> None:
        """Read one provider's models, and say when it is due again.  Read twice at once, it is written twice."""
        if provider not in self._configured:
            await self._store.not_due(provider)
            return
        await self._store.due_in(provider, _READING_SECONDS)
        known = await self._store.get(provider)
        await self._store.put(provider, await self._look(provider, known))
        await self._store.due_in(provider, _EVERY_SECONDS * random.uniform(0.9, 1.1))

    async def _look(self, provider: str, known: Catalogue | None) -> Catalogue:
        """What is listed now; when it cannot be read, what was listed before, and why."""
        now = _now_ms()
        try:
            listed = await self._providers.models(provider).listed()
        except (ProviderModelMissing, ProviderRejected):
            return Catalogue(outcome="unlisted", tried_at_ms=now)
        except ProviderError as error:
            _log.warning("models_not_read", provider=provider, code=error.code, provider_code=error.provider_code)
            refused = isinstance(error, ProviderAuthFailed)
            return Catalogue(
                outcome="auth_failed" if refused else "unreachable",
                tried_at_ms=now,
                read_at_ms=known.read_at_ms if known is not None else None,
                today=known.today if known is not None else None,
                models=known.models if known is not None else {},
            )
        if not listed.models:
            return Catalogue(outcome="unlisted", tried_at_ms=now)
        return Catalogue(outcome="ok", tried_at_ms=now, read_at_ms=now, today=listed.today, models=listed.models)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000

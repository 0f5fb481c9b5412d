"""What each provider's models are, as a worker last read it, and whose the fine-tuned ones are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.catalogue import Catalogue
from shared.ids import TenantId
from shared.store import keys
from shared.store.connection import ask
from shared.store.together import Together

_KEPT_SECONDS: Final = 86_400
_LATELY_MS: Final = 3_600_000  # by then, the provider lists a model that it has: it is read every quarter of an hour


class CatalogueStore:
    def __init__(self, client: redis.Redis, together: Together) -> None:
        self._redis = client
        self._together = together

    async def get(self, provider: str) -> Catalogue | None:
        text = await ask(self._redis.get(keys.catalogue(provider)))
        return None if text is None else msgspec.json.decode(text, type=Catalogue)

    async def put(self, provider: str, catalogue: Catalogue) -> None:
        await ask(self._redis.set(keys.catalogue(provider), msgspec.json.encode(catalogue), ex=_KEPT_SECONDS))

    async def due_in(self, provider: str, seconds: float, *, sooner: bool = False) -> None:
        """When a worker must read it next.  sooner: only if that is earlier than it is due now."""
        at_ms = int((time.time() + seconds) * 1000)
        await ask(self._redis.zadd(keys.DUE, {_member(provider): at_ms}, lt=sooner))

    async def not_due(self, provider: str) -> None:
        """The provider is no longer configured."""
        await ask(self._redis.zrem(keys.DUE, _member(provider)))

    async def look_up(
        self, models: Sequence[tuple[str, str]], providers: Sequence[str]
    ) -> tuple[list[TenantId | None], list[Catalogue | None]]:
        """In one read: whose jobs have made each of these (provider, model), and the catalogues of these providers."""
        named: dict[str, list[str]] = {}
        for provider, model in models:
            named.setdefault(provider, []).append(model)
        reads = [self._together.ask("HMGET", keys.tuned_models(name), *of_it) for name, of_it in named.items()]
        reads += [self._together.ask("GET", keys.catalogue(provider)) for provider in providers]
        found = await ask(asyncio.gather(*reads))
        owners = {
            (provider, model): None if owner is None else TenantId(owner.decode())
            for (provider, of_it), theirs in zip(named.items(), found, strict=False)
            for model, owner in zip(of_it, theirs, strict=True)
        }
        return [owners[each] for each in models], [
            None if text is None else msgspec.json.decode(text, type=Catalogue) for text in found[len(named) :]
        ]

    async def forget_owner(self, provider: str, model: str) -> None:
        """The provider has deleted the model.  Not before: whose it is keeps it from everybody else's eyes."""
        await ask(self._redis.zrem(keys.models_made_lately(provider), model))
        await ask(self._redis.hdel(keys.tuned_models(provider), model))

    async def made_lately(self, provider: str) -> Mapping[str, int]:
        """Fine-tuned models that jobs have made in the last hour, which the provider may not have listed yet, each with
        the unix time in ms."""
        since = int(time.time() * 1000) - _LATELY_MS
        found = await ask(self._redis.zrangebyscore(keys.models_made_lately(provider), since, "+inf", withscores=True))
        return {name.decode(): int(at_ms) for name, at_ms in found}

    async def all_owners(self, provider: str) -> Mapping[str, TenantId]:
        found = await ask(self._redis.hgetall(keys.tuned_models(provider)))
        return {name.decode(): TenantId(owner.decode()) for name, owner in found.items()}


def _member(provider: str) -> str:
    return f"cat:{provider}"

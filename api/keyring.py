"""Who a key belongs to, remembered for a few seconds: most requests need not ask the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from shared.errors import StoreError
from shared.ids import KeyId
from shared.store.api_keys import ApiKey, ApiKeyStore, digest

REMEMBERED_SECONDS: Final = 4.0  # a revoke is promised to be followed within 5 s, on a busy machine too
_LOOK_SECONDS: Final = 3.0  # between two looks at the keys that something open was asked for with
_KEYS_MAX: Final = 10_000


class Held:
    """A key that streams and held answers were asked for with.  opens: until it is revoked."""

    def __init__(self, secret: str) -> None:
        self.secret = secret
        self.opens = True
        self.holders = 0


class KeyRing:
    """The stored keys this process has lately seen.  A revoked key is refused here at once, elsewhere within 5 s.

    Keys that do not exist are not remembered, so that a new one works everywhere from its first moment."""

    def __init__(self, store: ApiKeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._seen: dict[str, tuple[ApiKey, float]] = {}
        self._held: dict[str, Held] = {}
        self._looking: asyncio.Task[None] | None = None
        self.on_revoked: Callable[[], None] = lambda: None  # wakes whoever waits, to look at what it holds

    async def find(self, secret: str) -> ApiKey | None:
        place, now = digest(secret), self._clock()
        remembered = self._seen.get(place)
        if remembered is not None and now - remembered[1] < REMEMBERED_SECONDS:
            return remembered[0]
        self._seen.pop(place, None)
        key = await self._store.find(secret)
        if key is not None:
            while len(self._seen) >= _KEYS_MAX:
                self._seen.pop(next(iter(self._seen)))
            self._seen[place] = (key, now)
        return key

    def forget(self, key_id: KeyId) -> None:
        self._seen = {place: seen for place, seen in self._seen.items() if seen[0].id != key_id}

    @contextmanager
    def held(self, secret: str) -> Iterator[Held]:
        """For as long as something stays open for the key.  One look serves all that hold it, so that a thousand
        streams cost no more than one."""
        held = self._held.setdefault(secret, Held(secret))
        held.holders += 1
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())
        try:
            yield held
        finally:
            held.holders -= 1
            if not held.holders:
                self._held.pop(secret, None)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _look(self) -> None:
        while self._held:
            await asyncio.sleep(_LOOK_SECONDS)
            for held in [held for held in self._held.values() if held.opens]:
                with suppress(StoreError):  # nothing is told either while the store is away
                    held.opens = await self._store.find(held.secret) is not None
            if not all(held.opens for held in self._held.values()):
                self.on_revoked()

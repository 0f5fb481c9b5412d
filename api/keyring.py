"""Who a key belongs to, remembered for a few seconds: most requests need not ask the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from shared.ids import KeyId
from shared.store.api_keys import ApiKey, ApiKeyStore, digest

REMEMBERED_SECONDS: Final = 5.0
_KEYS_MAX: Final = 10_000


class KeyRing:
    """The stored keys this process has lately seen.  A revoked key is refused here at once, elsewhere within 5 s.

    Keys that do not exist are not remembered, so that a new one works everywhere from its first moment."""

    def __init__(self, store: ApiKeyStore, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._clock = clock
        self._seen: dict[str, tuple[ApiKey, float]] = {}

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

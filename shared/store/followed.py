"""What is followed at providers: which job waits for which of their objects, and when it was told to look."""

from __future__ import annotations

from typing import Final

import redis.asyncio as redis

from shared.ids import JobId
from shared.store import keys
from shared.store.connection import Scripts, ask

_AWAITED_SECONDS: Final = 3 * 86_400
_EVENT_SECONDS: Final = 900  # a signature holds five minutes each way


class FollowedStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def expect(self, provider: str, object_id: str, job_id: JobId) -> None:
        """This job waits for that fine-tuning job or batch: said anew at every look, so that no end of waiting need
        be noted."""
        await ask(self._redis.set(keys.awaited(provider, object_id), job_id, ex=_AWAITED_SECONDS))

    async def hint(self, provider: str, object_id: str, event_id: str) -> JobId | None:
        """The job that waits for the object, due now; None when nobody waits or the event was seen before."""
        found = await self._scripts.run(
            "hint",
            [
                keys.awaited(provider, object_id),
                keys.DUE,
                keys.noticeboard(provider),
                keys.provider_event(provider, event_id),
            ],
            [object_id, _EVENT_SECONDS],
        )
        return JobId(found.decode()) if found else None

    async def take_hint(self, job_id: JobId) -> bool:
        """Whether a provider has told of a change since this was last asked."""
        return bool(await ask(self._redis.delete(keys.hint(job_id))))

"""Clean-up notes of deleted jobs: one claim at a time, progress written as it is made, due times for what failed."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.cleanup import Cleanup, with_models
from shared.ids import JobId
from shared.store import keys
from shared.store.connection import Scripts, ask

#: A note that is over, and the receipt that tells of it, can be read for so long.
KEPT_SECONDS: Final = 30 * 86_400


@dataclass(frozen=True)
class Claim:
    """The right to work off one note.  models: its owner has asked for the fine-tuned models since it was written."""

    job_id: JobId
    token: str
    models: bool


class CleanupStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def claim(self, job_id: JobId, *, lease_seconds: float, now_ms: int) -> tuple[Claim, Cleanup] | None:
        """Take a note for one look; None when it is gone, over or not yet due, or another worker is at it."""
        token = uuid.uuid4().hex
        answer = await self._scripts.run(
            "claim_cleanup", [keys.cleanup(job_id), keys.DUE], [job_id, token, int(lease_seconds * 1000)]
        )
        if not answer:
            return None
        row, models = answer
        cleanup = msgspec.json.decode(row, type=Cleanup)
        wanted = models == b"1"
        return Claim(job_id, token, wanted), with_models(cleanup, now_ms=now_ms) if wanted else cleanup

    async def hold(self, claim: Claim, cleanup: Cleanup | None, *, lease_seconds: float) -> bool:
        """Write progress down, if there is any, and go on; False when the claim has become another's."""
        return await self._save(claim, cleanup, "hold", int(lease_seconds * 1000))

    async def let_go(self, claim: Claim, cleanup: Cleanup, *, next_look_in_seconds: float | None) -> bool:
        """Write progress down until the next look.  None: there will be none."""
        if next_look_in_seconds is None:
            return await self._save(claim, cleanup, "over", KEPT_SECONDS)
        return await self._save(claim, cleanup, "wait", int(next_look_in_seconds * 1000))

    async def want_models(self, job_id: JobId) -> bool:
        """The fine-tuned models shall go, too.  Whether that is news."""
        answer: int = await self._scripts.run("want_models", [keys.cleanup(job_id), keys.DUE], [job_id])
        return answer == 1

    async def load(self, job_id: JobId) -> Cleanup | None:
        row = await ask(self._redis.hget(keys.cleanup(job_id), "row"))
        return None if row is None else msgspec.json.decode(row, type=Cleanup)

    async def _save(self, claim: Claim, cleanup: Cleanup | None, then: str, amount: int) -> bool:
        written: int = await self._scripts.run(
            "save_cleanup",
            [keys.cleanup(claim.job_id), keys.DUE],
            [
                claim.job_id,
                claim.token,
                b"" if cleanup is None else msgspec.json.encode(cleanup),
                then,
                amount,
                int(claim.models),
            ],
        )
        return written == 1

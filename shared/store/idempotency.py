"""Idempotency keys: which requests were answered, and how.  The answer is written in the same step as the job."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import zstandard

from shared.errors import IdempotencyInProgress, IdempotencyKeyReused, JobDeleted
from shared.ids import JobId, TenantId
from shared.models import Job
from shared.store import keys
from shared.store.connection import Scripts

KEPT_SECONDS: Final = 86_400
_HELD_MS: Final = 30_000  # far longer than a request is served; whoever dies while serving frees the key by this
_compress: Final = zstandard.ZstdCompressor(level=3)
_decompress: Final = zstandard.ZstdDecompressor()


@dataclass(frozen=True)
class Once:
    """A place taken by an idempotency key.  answer: writes down what will be answered to every repetition."""

    record: str
    owner: str
    fingerprint: str
    answer: Callable[[Job], bytes]

    def packed(self, job: Job) -> bytes:
        return _compress.compress(self.answer(job))


@dataclass(frozen=True)
class Kept:
    """What the first request with this key was answered."""

    job_id: JobId
    body: bytes


class IdempotencyStore:
    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def begin(
        self, tenant: TenantId, route: str, key: str, fingerprint: str, answer: Callable[[Job], bytes]
    ) -> Once | Kept:
        """Take the key's place, or learn what was answered.

        Raises IdempotencyInProgress, IdempotencyKeyReused, or JobDeleted when the answer went with its job."""
        place = hashlib.sha256(f"{route}\n{key}".encode()).hexdigest()[:40]
        once = Once(keys.once(tenant, place), uuid.uuid4().hex, fingerprint, answer)
        code, *kept = await self._scripts.run("begin_once", [once.record], [once.owner, fingerprint, _HELD_MS])
        if code == 1:
            return once
        if code == -1:
            raise IdempotencyInProgress("The first request with this idempotency key is still being served.")
        if code == -2:
            raise IdempotencyKeyReused("This idempotency key was used for a request with another body.")
        job_id, body = kept
        if not body:
            raise JobDeleted("The job that this request made has been deleted.")
        return Kept(JobId(job_id.decode()), _decompress.decompress(body))

    async def end(self, once: Once) -> None:
        """Free the key of a request that made no job.  Does nothing to one that did."""
        await self._scripts.run("end_once", [once.record], [once.owner])

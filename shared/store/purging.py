"""Deleting jobs: unseen at once, purged piece by piece, remembered for a while by a stone without content."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.cleanup import Cleanup, with_models
from shared.errors import Conflict, NotFound
from shared.ids import DeliveryId, JobId, TenantId
from shared.lifecycle import TERMINAL
from shared.models import Job, Record
from shared.store import keys
from shared.store.cleanups import KEPT_SECONDS
from shared.store.connection import Scripts, ask
from shared.store.deliveries import entry
from shared.webhook_records import Delivery

_AT_ONCE: Final = 500


class Purged(Record, frozen=True, kw_only=True):
    """What was removed here."""

    prompts: int = 0
    completions: int = 0
    events: int = 0
    deliveries: int = 0


class Receipt(Record, frozen=True, kw_only=True):
    """purged_at_ms, purged: None while the purge here has not ended.  cleanup: how far that at the providers is."""

    job_id: JobId
    deleted_at_ms: int
    purged_at_ms: int | None = None
    purged: Purged | None = None
    cleanup: Cleanup | None = None

    @property
    def complete(self) -> bool:
        """Nothing more will be deleted, here or at a provider."""
        return self.purged is not None and (self.cleanup is None or self.cleanup.over)

    @property
    def completed_at_ms(self) -> int | None:
        """None until it is complete."""
        if not self.complete or self.purged_at_ms is None:
            return None
        return max(self.purged_at_ms, (self.cleanup and self.cleanup.over_at_ms) or 0)


class PurgeStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def mark(self, job: Job, cleanup: Cleanup, tell: Sequence[Delivery] = ()) -> None:
        """The job is seen no more, due to be purged, and its clean-up noted.  tell: written with it, and not purged.

        Raises Conflict while it has not ended."""
        code, status = await self._scripts.run(
            "mark_deleted",
            [
                keys.job(job.id),
                keys.DUE,
                keys.cleanup(job.id),
                keys.tenant_jobs(job.tenant),
                *(keys.tenant_metadata(job.tenant, *pair) for pair in job.spec.metadata.items()),
            ],
            [
                job.id,
                msgspec.json.encode(cleanup),
                int(cleanup.over),
                msgspec.json.encode([entry(delivery) for delivery in tell]),
                *sorted(TERMINAL),
            ],
        )
        if code == 0:
            raise Conflict(f"The job is {status.decode()}.  Cancel it first, then delete it.", code="job_not_terminal")

    async def receipt(self, tenant: TenantId, job_id: JobId) -> Receipt | None:
        """None when the job was not deleted.  Raises NotFound when the tenant has and had no such job."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hmget(keys.job(job_id), ["tenant", "deleted_at_ms", "purged_at_ms", "receipt"])
        pipe.hmget(keys.cleanup(job_id), ["row", "models"])
        row, (note, models) = await ask(pipe.execute())
        if row[0] is None or row[0].decode() != tenant:
            raise NotFound("There is no such job.")
        if row[1] is None:
            return None
        cleanup = None if note is None else msgspec.json.decode(note, type=Cleanup)
        if cleanup is not None and models is not None:
            cleanup = with_models(cleanup, now_ms=cleanup.progressed_at_ms)  # asked for, and not taken up yet
        return Receipt(
            job_id=job_id,
            deleted_at_ms=int(row[1]),
            purged_at_ms=None if row[2] is None else int(row[2]),
            purged=None if row[3] is None else msgspec.json.decode(row[3], type=Purged),
            cleanup=cleanup,
        )

    async def is_marked(self, job_id: JobId) -> bool:
        return bool(await ask(self._redis.hexists(keys.job(job_id), "deleted_at_ms")))

    async def begin(self, job_id: JobId, *, lease_seconds: float) -> bool:
        """Whether nobody else is purging the job right now.  It spares work alone: purging twice is harmless."""
        begun: int = await self._scripts.run("begin_purge", [keys.purging(job_id)], [int(lease_seconds * 1000)])
        return begun == 1

    async def go_on(self, job_id: JobId, *, lease_seconds: float) -> None:
        """The purge that was begun takes longer."""
        await ask(self._redis.pexpire(keys.purging(job_id), int(lease_seconds * 1000)))

    async def end(self, job_id: JobId) -> None:
        await ask(self._redis.delete(keys.purging(job_id)))

    async def forget_paid(self, tenant: TenantId, job_id: JobId, fingerprints: Sequence[str]) -> None:
        """Nobody reuses these completions any more.  Entries that another job has paid for stay."""
        for start in range(0, len(fingerprints), _AT_ONCE):
            entries = [keys.ledger(tenant, fingerprint) for fingerprint in fingerprints[start : start + _AT_ONCE]]
            await self._scripts.run("forget_paid", entries, [f"paid|{job_id}|"])

    async def purge(self, job: Job, *, passes: Mapping[str, int]) -> Purged:
        """Remove everything but the row.  Idempotent: counted once, before anything goes.

        passes: all that the job may have had, by name, each with the most chunks it can have."""
        names = list(passes)
        completions = [keys.completions(job.id, name, chunk) for name in names for chunk in range(passes[name])]
        deliveries = await ask(self._redis.zrange(keys.job_deliveries(job.id), 0, -1))
        counted = Purged(
            prompts=job.counters.prompts_total,
            completions=sum([await self._length(some) for some in _batches(completions)]),
            events=await ask(self._redis.xlen(keys.events(job.id))),
            deliveries=len(deliveries),
        )
        first = await self._scripts.run("count_purge", [keys.job(job.id)], [msgspec.json.encode(counted)])
        counted = msgspec.json.decode(first, type=Purged)
        for some in _batches([*completions, *(keys.delivery(DeliveryId(d.decode())) for d in deliveries)]):
            await ask(self._redis.unlink(*some))
        if deliveries:
            await ask(self._redis.zrem(keys.DUE, *(f"dlv:{d.decode()}" for d in deliveries)))
        await self._scripts.run(
            "close_pass",
            [keys.open_passes(job.tenant), keys.OPEN],
            [job.tenant, *(f"{job.id}/{name}" for name in names)],
        )
        of_passes = [
            key(job.id, name)
            for name in names
            for key in (keys.pass_row, keys.pass_chunks, keys.pass_claims, keys.pass_calls)
        ]
        await ask(
            self._redis.unlink(
                keys.events(job.id),
                keys.results(job.id),
                keys.metrics(job.id),
                keys.prompts(job.id, "source"),
                keys.prompts(job.id, "holdout"),
                *(keys.prompts(job.id, name) for name in names),  # what judges were asked
                keys.decisions(job.id),
                keys.job_deliveries(job.id),
                *of_passes,
            )
        )
        return counted

    async def bury(self, job_id: JobId, purged: Purged) -> None:
        """The last step: of the row only a stone is left, for 30 days."""
        await self._scripts.run(
            "bury",
            [keys.job(job_id), keys.DUE, keys.cleanup(job_id)],
            [job_id, msgspec.json.encode(purged), KEPT_SECONDS],
        )

    async def not_due(self, job_id: JobId) -> None:
        """There is nothing to purge, now or later."""
        await ask(self._redis.zrem(keys.DUE, f"exp:{job_id}"))

    async def _length(self, hashes: Sequence[str]) -> int:
        pipe = self._redis.pipeline(transaction=False)
        for key in hashes:
            pipe.hlen(key)
        return sum(await ask(pipe.execute()))


def _batches(names: Sequence[str]) -> Iterable[Sequence[str]]:
    return (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE))

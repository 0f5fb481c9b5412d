"""Jobs: acceptance, lease, changes, lists, events.  Rows are the truth; see job_rows.py for how they read, keys.py for
where they lie."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

import msgspec
import redis.asyncio as redis

from shared.errors import IdempotencyInProgress, JobDeleted, NotFound, TooMany
from shared.ids import JobId, TenantId, first_job_id
from shared.lifecycle import TERMINAL, JobStatus, sources
from shared.models import (
    Event,
    FineTune,
    Job,
    JsonObject,
)
from shared.store import keys
from shared.store.connection import Scripts, ask
from shared.store.deliveries import entry
from shared.store.idempotency import KEPT_SECONDS, Once
from shared.store.job_rows import Tallies, events_of, job_of, known_status, reading, row_fields, spec_of
from shared.store.spending import DayLimit
from shared.store.together import Together
from shared.webhook_records import Delivery

_encode: Final = msgspec.json.encode
_IDS_AT_ONCE: Final = 200  # read from one index to be looked for in others
TEACHER: Final = "teacher"  # name of the pass in which the teacher answers; further samples: teacher-1, teacher-2, …
RATING: Final = "rating"  # name of the pass in which a judge rates these answers


@dataclass(frozen=True)
class Lease:
    """The right to move one job.  fence: grows with every claim; a change that carries an old one is refused."""

    job_id: JobId
    fence: int
    takeovers: int


@dataclass(frozen=True)
class Change:
    """What to write into a job's row, all or nothing.

    set: row fields, as `row_fields` names them; None clears one.  status: the target of a move; the life-cycle table
    decides whether it is allowed from where the job stands; only_from: where it must stand, and nowhere else.
    only_with: row fields that must stand so.  most_active: jobs of the tenant that may be queued or running beside it.
    due_in_seconds: when to look next; None leaves it.  add: row fields to add to."""

    set: Mapping[str, Any] = field(default_factory=dict)
    add: Mapping[str, int] = field(default_factory=dict)
    status: JobStatus | None = None
    only_from: JobStatus | None = None
    only_with: Mapping[str, Any] = field(default_factory=dict)
    most_active: int | None = None
    events: Sequence[Event] = ()
    deliveries: Sequence[Delivery] = ()
    due_in_seconds: float | None = None
    release: bool = False
    progress: bool = False
    results: JsonObject | None = None


@dataclass(frozen=True)
class Glance:
    """As much of a job as tells whether to look closer.  sequence: of its last event.

    status: None for one that only a newer version knows."""

    version: int
    status: JobStatus | None
    sequence: int


@dataclass(frozen=True)
class Refused:
    """A change that was not made.  status: where the job stands now.  stale: the lease is another's by now.
    spent_out: what it reserves would exceed what the tenant may spend today.  too_many: of its jobs are active."""

    status: JobStatus
    stale: bool
    spent_out: bool = False
    too_many: bool = False


def _sources(job: Job, change: Change, lease: Lease | None) -> list[JobStatus] | None:
    """Where the job must stand for this change; None: anywhere.

    A worker that lets go has decided on what it saw.  When the owner has cancelled or resumed the job meanwhile, the
    wait it sets would swallow that."""
    if change.status is not None:
        return sorted(sources(change.status)) if change.only_from is None else [change.only_from]
    return [job.status] if lease is not None and change.release else None


def _trained(job: Job, tunes: Sequence[FineTune]) -> list[JsonObject]:
    """The fine-tuned models in a change, for whom to show them to."""
    return [
        {
            "key": keys.tuned_models(student.provider),
            "lately": keys.models_made_lately(student.provider),
            "model": tune.fine_tuned_model,
        }
        for student, tune in zip(job.spec.students, tunes, strict=False)
        if tune.fine_tuned_model is not None
    ]


def too_many_active(most: int) -> TooMany:
    return TooMany(f"At most {most:,} jobs may be queued or running.", code="too_many_active_jobs")


class JobStore:
    """The rows of jobs in Redis."""

    def __init__(self, client: redis.Redis, scripts: Scripts, together: Together, day_limit: DayLimit) -> None:
        self._redis = client
        self._scripts = scripts
        self._day_limit = day_limit
        self._together = together

    async def accept(
        self,
        job: Job,
        prompt_chunks: Sequence[bytes],
        event: Event,
        *,
        once: Once | None = None,
        most_active: int | None = None,
    ) -> None:
        """Make the job durable, with its prompts and first event.  Sent twice, it is written once.

        prompt_chunks: none for a job whose prompts are a file's; it is entered among that file's jobs instead, and one
        made from an earlier job also where only jobs still see the file.  Raises NotFound when the file is gone.
        once: the answer that repetitions get is written with it.  Raises IdempotencyInProgress when another request
        with the same key was first after all, and TooMany when `most_active` jobs are queued or running."""
        file_id = job.spec.file_id
        fields = row_fields(
            {
                "tenant": job.tenant,
                "spec": job.spec,
                "status": job.status,
                "version": job.version,
                "created_at_ms": job.created_at_ms,
                "deadline_at_ms": job.deadline_at_ms,
                "prompts_total": job.counters.prompts_total,
                "estimated_low_nano": job.money.estimated_low_nano,
                "estimated_high_nano": job.money.estimated_high_nano,
                "limit_nano": job.money.limit_nano,
                "fine_tunes": job.fine_tunes,
                "warnings": job.warnings,
                "retry_of": job.retry_of,
                "chunk_size": job.chunk_size,
                "source_chunks": None if file_id is None else keys.file_prompts(file_id),
                "prompt_defaults": job.prompt_defaults,
            }
        )
        first = _encode(msgspec.structs.replace(event, sequence=1))
        arguments: list[str | bytes | int] = [job.id]
        arguments += [once.fingerprint, once.packed(job), KEPT_SECONDS] if once else ["", "", 0]
        see_file = "" if file_id is None else "visible" if job.spec.source == "file" and not job.retry_of else "kept"
        arguments += [most_active or 0, see_file, len(fields)]
        for name, value in fields.items():
            arguments += [name, value]
        arguments.append(first)
        for number, chunk in enumerate(prompt_chunks):
            arguments += [number, chunk]
        own = keys.job(job.id)
        written = await self._scripts.run_together(
            "accept",
            [
                own,
                keys.events(job.id),
                keys.prompts(job.id, "source"),
                keys.tenant_jobs(job.tenant),
                keys.tenant_jobs(job.tenant, job.status),
                keys.DUE,
                once.record if once else own,
                *([keys.file(file_id), keys.file_prompts(file_id), keys.file_jobs(file_id)] if file_id else [own] * 3),
                keys.TENANTS,
                *(keys.tenant_metadata(job.tenant, *pair) for pair in job.spec.metadata.items()),
            ],
            arguments,
        )
        if written == -1:
            raise IdempotencyInProgress("Another request with this idempotency key has just been answered.")
        if written == -2:
            raise too_many_active(most_active or 0)
        if written == -3:
            raise NotFound("There is no such file.")

    async def get(self, tenant: TenantId, job_id: JobId) -> Job:
        """A tenant's own job.  Raises NotFound, the same for a foreign job and for none, and JobDeleted."""
        row, tallies = await self._rows(job_id)
        if row.get(b"tenant") != tenant.encode():
            raise NotFound("There is no such job.")
        if b"deleted_at_ms" in row:
            raise JobDeleted("The job was deleted, by request or because its retention ended.")
        return job_of(job_id, row, tallies)

    async def load(self, job_id: JobId) -> Job | None:
        """Any job that is not purged, for workers."""
        row, tallies = await self._rows(job_id)
        return job_of(job_id, row, tallies) if b"spec" in row else None

    async def _rows(self, job_id: JobId) -> tuple[dict[bytes, bytes], Tallies]:
        row, teacher = await self._hashes(keys.job(job_id), keys.pass_row(job_id, TEACHER))
        tallies = Tallies([teacher])
        spec = row.get(b"spec", b"")
        # Nearly no job has these, and what has not is spared the second round trip.  Words of the customer's may look
        # like it, which does no harm.
        if b'"samples":' in spec or b'"score_model"' in spec:
            try:
                samples = range(1, spec_of(spec).teacher.samples)
            except msgspec.MsgspecError:
                return row, tallies  # whoever may see the job is told when its row is read
            passes = (RATING, *(f"{TEACHER}-{sample}" for sample in samples))
            rating, *others = await self._hashes(*(keys.pass_row(job_id, name) for name in passes))
            tallies = Tallies([teacher, *others], rating)
        return row, tallies

    async def _hashes(self, *names: str) -> list[dict[bytes, bytes]]:
        """Whole hashes, asked for with what others ask: a thousand who come at once need no connection each."""
        found: list[dict[bytes, bytes]] = await ask(
            asyncio.gather(*(self._together.ask("HGETALL", name) for name in names))
        )
        return found

    async def count_active(self, tenant: TenantId) -> int:
        """Jobs queued or running."""
        pipe = self._redis.pipeline(transaction=False)
        for status in (JobStatus.QUEUED, JobStatus.RUNNING):
            pipe.zcard(keys.tenant_jobs(tenant, status))
        return sum(await ask(pipe.execute()))

    async def version(self, tenant: TenantId, job_id: JobId) -> int:
        """The job's version alone, at the cost of one read.  Raises NotFound as `get` does."""
        found = await ask(self._together.ask("HMGET", keys.job(job_id), "tenant", "version", "deleted_at_ms"))
        if found[0] is None or found[0].decode() != tenant:
            raise NotFound("There is no such job.")
        if found[2] is not None or found[1] is None:
            raise JobDeleted("The job was deleted, by request or because its retention ended.")
        return int(found[1])

    async def glances(self, job_ids: Sequence[JobId]) -> list[Glance | None]:
        """Many jobs at once, whoever they belong to; None for one that is gone."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(keys.job(job_id), ["version", "status", "sequence", "deleted_at_ms"])
        rows = await ask(pipe.execute())
        return [
            Glance(int(row[0]), known_status(row[1].decode()), int(row[2])) if row[1] and not row[3] else None
            for row in rows
        ]

    async def page(
        self,
        tenant: TenantId,
        *,
        limit: int,
        after: str | None,
        newest_first: bool,
        status: JobStatus | None = None,
        metadata: Mapping[str, str] | None = None,
        created_from_ms: int | None = None,
        created_until_ms: int | None = None,
    ) -> tuple[list[Job], bool]:
        """Up to `limit` jobs in order of creation, and whether there are more.  after: id of the last one seen.

        metadata: pairs that all must be there.  created_from_ms, created_until_ms: the first is included, the other
        not."""
        low = "-" if created_from_ms is None else f"[{first_job_id(created_from_ms)}"
        high = "+" if created_until_ms is None else f"({first_job_id(created_until_ms)}"
        if after is not None and newest_first and (high == "+" or after < high[1:]):
            high = f"({after}"
        elif after is not None and not newest_first and (low == "-" or after >= low[1:]):
            low = f"({after}"
        indexes = [keys.tenant_metadata(tenant, *pair) for pair in (metadata or {}).items()]
        if status is not None or not indexes:
            indexes.append(keys.tenant_jobs(tenant, status))
        found: list[str] = []
        async for job_id in self._in_all(indexes, low, high, newest_first=newest_first, expected=limit + 1):
            found.append(job_id)
            if len(found) > limit:
                break
        loaded = [await self.load(JobId(job_id)) for job_id in found[:limit]]
        return [job for job in loaded if job is not None], len(found) > limit

    async def _in_all(
        self, indexes: Sequence[str], low: str, high: str, *, newest_first: bool, expected: int
    ) -> AsyncIterator[str]:
        """Ids between the bounds that are in every index: the smallest is read in order, the others are asked."""
        if len(indexes) > 1:
            sizes = self._redis.pipeline(transaction=False)
            for index in indexes:
                sizes.zcard(index)
            counted = zip(await ask(sizes.execute()), indexes, strict=True)
            indexes = [index for _, index in sorted(counted)]
        first, *others = indexes
        at_once = max(expected, _IDS_AT_ONCE) if others else expected
        while True:
            if newest_first:
                ids = await ask(self._redis.zrevrangebylex(first, high, low, 0, at_once))
            else:
                ids = await ask(self._redis.zrangebylex(first, low, high, 0, at_once))
            present = [True] * len(ids)
            if others and ids:
                pipe = self._redis.pipeline(transaction=False)
                for index in others:
                    pipe.zmscore(index, ids)
                for scores in await ask(pipe.execute()):
                    present = [so_far and score is not None for so_far, score in zip(present, scores, strict=True)]
            for job_id, is_there in zip(ids, present, strict=True):
                if is_there:
                    yield job_id.decode()
            if len(ids) < at_once:
                return
            low, high = (low, f"({ids[-1].decode()}") if newest_first else (f"({ids[-1].decode()}", high)

    async def claim(self, job_id: JobId, *, lease_seconds: float) -> Lease | None:
        """Take the job's lease, or None when another holds it or nothing is left to do."""
        fence, more = await self._scripts.run(
            "claim",
            [keys.job(job_id), keys.DUE],
            [job_id, uuid.uuid4().hex, int(lease_seconds * 1000), *sorted(TERMINAL)],
        )
        return Lease(job_id, int(fence), int(more)) if fence else None

    async def renew(self, lease: Lease, *, lease_seconds: float) -> bool:
        """Whether the lease is still ours, for another `lease_seconds`."""
        kept = await self._scripts.run(
            "renew", [keys.job(lease.job_id), keys.DUE], [lease.job_id, lease.fence, int(lease_seconds * 1000)]
        )
        return bool(kept)

    async def give_back(self, lease: Lease, *, due_in_seconds: float) -> None:
        """As if it had not been taken, but that the job is looked at no sooner: for a worker that cannot carry it."""
        await self._scripts.run(
            "give_back", [keys.job(lease.job_id), keys.DUE], [lease.job_id, lease.fence, int(due_in_seconds * 1000)]
        )

    async def change(self, job: Job, change: Change, *, lease: Lease | None = None) -> int | Refused:
        """Write a change.  With a lease it is fenced; without, it is an owner's request.  Returns the new version."""
        values = dict(change.set)
        if change.status is not None:
            values["status"] = change.status
        if change.results is not None:
            values["has_results"] = 1
        body = {
            "commit": uuid.uuid4().hex,
            "fence": str(lease.fence) if lease else "",
            "sources": _sources(job, change, lease),
            "stands": row_fields(change.only_with),
            "most_active": change.most_active or None,
            "set": row_fields(values),
            "add": {name: str(amount) for name, amount in change.add.items() if amount},
            "events": [_encode(event).decode() for event in change.events],
            "deliveries": [entry(delivery) for delivery in change.deliveries],
            "due_in_ms": None if change.due_in_seconds is None else int(change.due_in_seconds * 1000),
            "release": change.release,
            "progress": change.progress,
            "results": None if change.results is None else _encode(change.results).decode(),
            "day_limit": self._day_limit(job.tenant),
            "ends": change.status in TERMINAL,
            "models": _trained(job, change.set.get("fine_tunes") or []),
        }
        code, detail = await self._scripts.run(
            "commit",
            [
                keys.job(job.id),
                keys.events(job.id),
                keys.DUE,
                keys.job_deliveries(job.id),
                keys.tenant_jobs(job.tenant),
                keys.results(job.id),
                keys.spending(job.tenant),
                keys.day(job.tenant, ""),
                keys.days(job.tenant),
            ],
            [job.id, _encode(body), job.tenant],
        )
        if code == 1:
            return int(detail)
        if code == -2:
            raise NotFound("There is no such job.")
        with reading(job.id):
            status = JobStatus(detail.decode())
        return Refused(status, stale=code == -1, spent_out=code == -3, too_many=code == -4)

    async def events(self, job_id: JobId, *, after: int, limit: int) -> list[Event]:
        """Events with a sequence greater than `after`, oldest first."""
        entries = await ask(self._redis.xrange(keys.events(job_id), min=f"({after}-0", count=limit))
        return events_of(job_id, entries)

    async def events_before(self, job_id: JobId, *, before: int | None, limit: int) -> list[Event]:
        """Events with a sequence smaller than `before` (None: all), newest first."""
        newest = "+" if before is None else f"({before}-0"
        entries = await ask(self._redis.xrevrange(keys.events(job_id), max=newest, count=limit))
        return events_of(job_id, entries)

    async def results(self, job_id: JobId) -> JsonObject | None:
        text = await ask(self._redis.get(keys.results(job_id)))
        return None if text is None else cast("JsonObject", msgspec.json.decode(text))

"""Deletes what deleted jobs have left at their providers: files, stored completions, and models where asked.

A look takes seconds, however much there is: it works until its time is up, writes how far it has come after every step,
and sets the time of the next.  Broken off anywhere, the step is done again: what is gone already counts as deleted."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from msgspec.structs import replace

from shared.cleanup import Cleanup, Kind, Remnant, after_failed_look, given_up, gone, with_count
from shared.errors import (
    JobFailed,
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderRejected,
    StoreError,
)
from shared.ids import JobId
from shared.ports import ArchivedCompletion, ArchivePage, Batcher, CompletionArchive, Trainer
from shared.store import Store
from shared.store.cleanups import Claim

_log: Final = structlog.get_logger()

_AT_ONCE: Final = 8  # deletions of stored completions in flight
_FORBIDDEN: Final = 403


@dataclass(frozen=True)
class CleaningLimits:
    """lease_seconds: a worker that vanishes is noticed after so long.  slice_seconds: of one look.
    patience_seconds: how long it is tried without any progress.  lag_seconds: for so long after a job's end something
    of it may still show at the provider.  look_seconds: between looks at what is yet to show, or to end."""

    lease_seconds: float = 30.0
    slice_seconds: float = 10.0
    patience_seconds: float = 7 * 86_400.0
    lag_seconds: float = 120.0
    look_seconds: float = 30.0


class ProviderDesk(Protocol):
    """Of the operator's providers, what cleaning asks for."""

    def trainer(self, name: str) -> Trainer: ...
    def batcher(self, name: str) -> Batcher: ...
    def archive(self, name: str) -> CompletionArchive | None: ...


class _NotYet(Exception):
    """The provider is not as far: look again a little later."""


class _OutOfTime(Exception):
    """There is more to do, in the next look."""


class _ClaimLost(Exception):
    """Another worker has the clean-up by now."""


class Cleaner:
    def __init__(
        self,
        store: Store,
        providers: ProviderDesk,
        limits: CleaningLimits | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._providers = providers
        self._limits = limits or CleaningLimits()
        self._clock = clock

    async def clean(self, job_id: JobId) -> None:
        """One look at one clean-up, if it is due."""
        lease_seconds = self._limits.lease_seconds
        held = await self._store.cleanups.claim(job_id, lease_seconds=lease_seconds, now_ms=self._now_ms())
        if held is None:
            return
        claim, cleanup = held
        with structlog.contextvars.bound_contextvars(job_id=job_id):
            renewing = asyncio.create_task(self._renew(claim))
            try:
                await _Look(self._store, self._providers, self._limits, self._now_ms, claim, cleanup).take()
            except _ClaimLost:
                _log.warning("cleanup_claim_lost")
            except StoreError:
                _log.warning("store_unavailable_while_cleaning")  # the lease runs out, and the due clock calls
            finally:
                renewing.cancel()

    async def _renew(self, claim: Claim) -> None:
        """A call may take longer than the lease; each is bounded by the provider's time-out."""
        kept = True
        while kept:
            await asyncio.sleep(self._limits.lease_seconds / 6)
            with suppress(StoreError):
                kept = await self._store.cleanups.hold(claim, None, lease_seconds=self._limits.lease_seconds)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


class _Look:
    def __init__(
        self,
        store: Store,
        providers: ProviderDesk,
        limits: CleaningLimits,
        now_ms: Callable[[], int],
        claim: Claim,
        cleanup: Cleanup,
    ) -> None:
        self._notes = store.cleanups
        self._catalogues = store.catalogues
        self._providers = providers
        self._limits = limits
        self._now_ms = now_ms
        self._claim = claim
        self._cleanup = cleanup
        self._ends_at = time.monotonic() + limits.slice_seconds

    async def take(self) -> None:
        failures: dict[str, float] = {}  # provider → seconds it asked to wait; it is asked no more in this look
        waiting: set[Remnant] = set()
        while (remnant := self._next(failures, waiting)) is not None:
            try:
                self._mind_the_time()
                deleted, found = await self._remove(remnant)
            except _OutOfTime:
                await self._notes.let_go(self._claim, self._cleanup, next_look_in_seconds=0.0)
                return
            except _NotYet:
                waiting.add(remnant)
            except JobFailed:
                failures[remnant.provider] = 0.0  # no longer configured, or not yet in this worker
            except ProviderError as error:
                _log.warning("cleanup_failed", kind=remnant.kind, code=error.code, provider_code=error.provider_code)
                if isinstance(error, ProviderRejected) or _is_forbidden(error):
                    self._cleanup = given_up(self._cleanup, remnant)
                else:
                    failures[remnant.provider] = error.retry_after_seconds or 0.0
            except (StoreError, _ClaimLost):
                raise
            except Exception:  # noqa: BLE001  # the edge: a defect of ours must neither hang the clean-up nor loop
                _log.exception("cleanup_step_failed", kind=remnant.kind)
                failures[remnant.provider] = 0.0
            else:
                now_ms = self._now_ms()
                await self._keep(gone(self._cleanup, remnant, now_ms=now_ms, found=found, deleted=deleted))
        await self._end(failures, waiting)

    def _mind_the_time(self) -> None:
        if time.monotonic() >= self._ends_at:
            raise _OutOfTime

    def _next(self, failures: dict[str, float], waiting: set[Remnant]) -> Remnant | None:
        return next((r for r in self._cleanup.remnants if r.provider not in failures and r not in waiting), None)

    async def _end(self, failures: dict[str, float], waiting: set[Remnant]) -> None:
        wait: float | None = 0.0
        if not self._cleanup.remnants:
            self._cleanup, wait = replace(self._cleanup, over=True), None
        elif failures or waiting:
            self._cleanup, wait = after_failed_look(
                self._cleanup,
                now_ms=self._now_ms(),
                patience_seconds=self._limits.patience_seconds,
                jitter=random.random(),
                wait_seconds=max(failures.values(), default=0.0),
            )
            if wait is not None and not failures:
                wait = self._limits.look_seconds
        if self._cleanup.over:
            self._cleanup = replace(self._cleanup, over_at_ms=self._now_ms())
            left = [*self._cleanup.refused]
            log = _log.warning if left else _log.info
            log("job_cleaned_up", deleted=self._cleanup.deleted, left=sorted({str(remnant.kind) for remnant in left}))
        await self._notes.let_go(self._claim, self._cleanup, next_look_in_seconds=wait)

    async def _keep(self, cleanup: Cleanup) -> None:
        self._cleanup = cleanup
        if not await self._notes.hold(self._claim, cleanup, lease_seconds=self._limits.lease_seconds):
            raise _ClaimLost

    # --- one remnant --------------------------------------------------------------------------------------------------

    async def _remove(self, remnant: Remnant) -> tuple[int, Sequence[Remnant]]:
        """(things deleted, what was found in its place).

        Raises ProviderError, JobFailed when the provider is not configured, _NotYet, _OutOfTime."""
        provider, id_, not_before = remnant.provider, remnant.id, self._cleanup.not_before
        match remnant.kind:
            case Kind.FILE:
                return await self._providers.trainer(provider).delete_file(id_), ()
            case Kind.MODEL:
                gone = await self._providers.trainer(provider).delete_model(id_)
                await self._catalogues.forget_owner(provider, id_)
                return gone, ()
            case Kind.BATCH_FILE:
                return await self._providers.batcher(provider).delete_file(id_), ()
            case Kind.TRAININGS:
                return 0, await self._lost_trainings(remnant)
            case Kind.TRAINING:
                await self._providers.trainer(provider).cancel(id_)
                return 0, ()
            case Kind.TRAINED:
                return 0, await self._left_by_training(remnant)
            case Kind.FILES:
                ids = await self._providers.trainer(provider).find_files(id_, not_before=not_before)
                return 0, _named(Kind.FILE, provider, ids)
            case Kind.BATCH_FILES:
                ids = await self._providers.batcher(provider).find_files(id_, not_before=not_before)
                return 0, _named(Kind.BATCH_FILE, provider, ids)
            case Kind.BATCHES:
                return 0, await self._lost_batches(remnant)
            case Kind.BATCH:
                return 0, await self._files_of_batch(remnant)
            case Kind.STORED:
                await self._delete_stored(remnant)
                return 0, ()

    def _may_show_late(self) -> bool:
        return self._now_ms() < self._cleanup.ended_at_ms + self._limits.lag_seconds * 1000

    async def _lost_trainings(self, remnant: Remnant) -> Sequence[Remnant]:
        """Those that a submission has made whose answer was lost, told as when a worker adopts one."""
        note = self._cleanup
        mine = {"distillation_job_id": str(note.job_id)}
        jobs = await self._providers.trainer(remnant.provider).find(mine, remnant.id, not_before=note.not_before)
        if not jobs and self._may_show_late():
            raise _NotYet
        ids = [job.id for job in jobs]
        noted = list(dict.fromkeys([*note.fine_tuning_jobs, *ids]))
        await self._keep(replace(note, fine_tuning_jobs=noted))
        return [*_named(Kind.TRAINING, remnant.provider, ids), *_named(Kind.TRAINED, remnant.provider, ids)]

    async def _lost_batches(self, remnant: Remnant) -> Sequence[Remnant]:
        """Those of the job.  One of an input file whose submission was lost is waited for while it may yet show."""
        note, provider = self._cleanup, remnant.provider
        mine = {"distillation_job_id": str(note.job_id)}
        batches = await self._providers.batcher(provider).find(mine, remnant.id, not_before=note.not_before)
        awaited = [batch for batch in batches if remnant.id in {note.job_id, batch.input_file}]
        if not awaited and self._may_show_late():
            raise _NotYet
        return _named(Kind.BATCH, provider, [batch.id for batch in batches])

    async def _left_by_training(self, remnant: Remnant) -> Sequence[Remnant]:
        """Its result files, its model and its checkpoints, once it has ended."""
        trainer = self._providers.trainer(remnant.provider)
        job = await trainer.poll(remnant.id)
        if job is None:
            return ()
        if job.state not in {"succeeded", "failed", "cancelled"}:
            raise _NotYet
        try:
            checkpoints = await trainer.checkpoints(remnant.id)
        except (ProviderModelMissing, ProviderRejected):
            checkpoints = []  # not every server keeps them
        models = [job.fine_tuned_model, *(checkpoint.model for checkpoint in checkpoints)]
        return [
            *_named(Kind.FILE, remnant.provider, job.result_files),
            *_named(Kind.MODEL, remnant.provider, [model for model in models if model]),
        ]

    async def _files_of_batch(self, remnant: Remnant) -> Sequence[Remnant]:
        """Its files, once it has ended; what still runs is stopped, because nobody waits for it any more."""
        batcher = self._providers.batcher(remnant.provider)
        batch = await batcher.poll(remnant.id)
        if batch is None:
            return ()
        if batch.state not in {"over", "failed"}:
            await batcher.cancel(batch.id)
            raise _NotYet
        files = [batch.input_file, batch.output_file, batch.error_file]
        return _named(Kind.BATCH_FILE, remnant.provider, [file for file in files if file])

    async def _delete_stored(self, remnant: Remnant) -> None:
        """All stored completions of the job, a page at a time.

        The list shrinks as we go, so the same place is read again; where a server does not filter, the cursor moves
        over those that are not the job's.  An empty page counts once answers in flight at the end had time to show."""
        archive = self._providers.archive(remnant.provider)
        if archive is None:
            return
        tried: set[str] = set(self._cleanup.deleting)
        if tried:
            await self._delete_listed(archive, self._cleanup.deleting, again=True)
        while True:
            page = await self._page(archive, remnant.id)
            mine = [found.id for found in page.completions if _is_of(found, remnant.id)]
            others = [found.id for found in page.completions if not _is_of(found, remnant.id)]
            fresh = [id_ for id_ in mine if id_ not in tried]
            if mine and not fresh:
                raise _NotYet  # deleted, and listed all the same
            tried.update(fresh)
            if fresh:
                await self._keep(replace(self._cleanup, deleting=fresh))
                await self._delete_listed(archive, fresh, again=False)
            if others:
                await self._keep(replace(self._cleanup, after=others[-1]))
            if not mine and not page.more:
                if self._may_show_late():
                    raise _NotYet
                return
            self._mind_the_time()

    async def _delete_listed(self, archive: CompletionArchive, ids: Sequence[str], *, again: bool) -> None:
        """Those that are noted as being deleted.  again: what is not there any more went by our own request, whose
        outcome nobody counted."""
        outcomes = await _delete_all(archive, ids)
        failed = {id_: outcome for id_, outcome in outcomes.items() if isinstance(outcome, ProviderError)}
        deleted = sum(outcome is True or (again and outcome is False) for outcome in outcomes.values())
        note = replace(self._cleanup, deleting=list(failed))
        if deleted:
            counted = with_count(note.deleted, Kind.STORED, deleted)
            note = replace(note, deleted=counted, failures=0, progressed_at_ms=self._now_ms())
        await self._keep(note)
        for failure in failed.values():
            raise failure

    async def _page(self, archive: CompletionArchive, job_id: str) -> ArchivePage:
        try:
            return await archive.page(None, {"distillation_job": job_id}, after=self._cleanup.after)
        except ProviderRejected:
            if self._cleanup.after is None:
                raise
            await self._keep(replace(self._cleanup, after=None))  # the one at the cursor has gone meanwhile
            raise _NotYet from None


def _is_of(found: ArchivedCompletion, job_id: str) -> bool:
    """Compared here, too: not every server filters, and nobody else's may be deleted."""
    return found.metadata.get("distillation_job") == job_id


def _named(kind: Kind, provider: str, ids: Sequence[str]) -> list[Remnant]:
    return [Remnant(kind=kind, provider=provider, id=id_) for id_ in ids]


def _is_forbidden(error: ProviderError) -> bool:
    """The key works, and may not do this: OpenAI lets owners alone delete a model."""
    return isinstance(error, ProviderAuthFailed) and error.status == _FORBIDDEN


async def _delete_all(archive: CompletionArchive, ids: Sequence[str]) -> dict[str, bool | ProviderError]:
    """Some at a time: whether each was there still, or its failure.  None is in flight any more on return."""
    some = asyncio.Semaphore(_AT_ONCE)

    async def one(id_: str) -> bool | ProviderError:
        async with some:
            try:
                return await archive.delete(id_)
            except ProviderError as error:
                return error

    return dict(zip(ids, await asyncio.gather(*map(one, ids)), strict=True))

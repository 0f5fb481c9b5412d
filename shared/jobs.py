"""The use cases of jobs: what the API offers its callers, without HTTP.

Rules are pure functions over the request (`plan`); what they pass is written by the store in one step; a worker is
rung afterwards, and never waited for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Final, Protocol

from msgspec.structs import replace

from shared.deletion import mark_deleted
from shared.errors import BadRequest, Conflict, DailySpendExhausted, NotFound, StoreError
from shared.ids import JobId, TenantId, is_id, new_event_id, new_job_id
from shared.lifecycle import TERMINAL, JobStatus, PausedReason, Stage
from shared.models import Budget, Counters, Event, FineTune, Job, Money, StudentEndpoint, usd
from shared.notices import Notices
from shared.plan import evaluation_plans
from shared.planning import Plan, Planner, checked_job, unknown_file, unknown_job
from shared.preflight import Named, Preflight, require_allowed
from shared.queue import ADVANCE_JOB, CLEAN_UP_JOB, PURGE_JOB
from shared.rules import invalid
from shared.store import Store
from shared.store.content import chunked
from shared.store.idempotency import Once
from shared.store.jobs import Change, Refused, too_many_active
from shared.store.passes import PassId
from shared.store.purging import Receipt

S = JobStatus
_DAY_MS: Final = 86_400_000
_RINGS_MAX: Final = 100  # bells on their way; beyond, the sweep finds the jobs by their due time
#: A message costs 2 to 6 ms of the process, more than accepting a job, and makes a worker look for all rows that are
#: due.  So those that ring faster than this share one bell, a quarter of a second later at most.
_RINGS_PER_SECOND: Final = 4
_RINGS_AT_ONCE: Final = 10
_TRIES: Final = 8  # a change refused because the job moved meanwhile is decided again, so many times


class Bell(Protocol):
    async def ring(self, task: str, id_: str) -> bool: ...


class Jobs:
    """Everything a caller can do with jobs.  One per process."""

    def __init__(
        self,
        store: Store,
        doorbell: Bell,
        planner: Planner,
        preflight: Preflight,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._preflight = preflight
        self._store = store
        self._doorbell = doorbell
        self._planner = planner
        self._clock = clock
        self._notices = Notices(store)
        self._rings: set[asyncio.Task[bool]] = set()
        self._rings_left: float = _RINGS_AT_ONCE
        self._rung_at = 0.0
        self._shared_ring: asyncio.TimerHandle | None = None

    # --- asking for one ----------------------------------------------------------------------------------------------

    async def accept(
        self, tenant: TenantId, plan: Plan, *, retry_of: JobId | None = None, once: Once | None = None
    ) -> Job:
        """Accept a job: when this returns, it survives a crash of every process.  once: see `JobStore.accept`."""
        await self._store.require_room()
        await self._require_spending(tenant)
        now_ms = self._now_ms()
        estimate = plan.estimate
        job = Job(
            id=new_job_id(now_ms),
            tenant=tenant,
            spec=plan.spec,
            status=S.QUEUED,
            version=1,
            created_at_ms=now_ms,
            chunk_size=plan.file.chunk_size if plan.file is not None else self._planner.limits.chunk_size,
            prompt_defaults=plan.defaults,
            deadline_at_ms=now_ms + plan.spec.deadline_seconds * 1000,
            counters=Counters(prompts_total=plan.prompts_total),
            money=Money(
                estimated_low_nano=estimate.low_nano if estimate else None,
                estimated_high_nano=estimate.high_nano if estimate else None,
                limit_nano=plan.spec.budget.max_cost_nano,
            ),
            fine_tunes=[FineTune() for _ in plan.spec.students],
            warnings=plan.warnings,
            retry_of=retry_of,
        )
        chunks = list(chunked(plan.prompts, self._planner.limits.chunk_size))
        accepted = _event("The job was accepted.", S.QUEUED, now_ms)
        try:
            await self._store.jobs.accept(
                job, chunks, accepted, once=once, most_active=self._planner.limits.active_jobs_of(tenant)
            )
        except NotFound:  # the file, or the last job that kept it, was deleted this very moment
            raise (unknown_job() if plan.spec.source == "job" else unknown_file()) from None
        self.ring(job.id)
        return job

    async def _require_spending(self, tenant: TenantId) -> None:
        """What a job then really spends is held against the limit call by call."""
        if self._store.day_limit(tenant) is None:
            return
        standing = await self._store.spending.standing(tenant)
        if standing.left_nano == 0:
            limit = usd(standing.limit_nano or 0)
            raise DailySpendExhausted(
                f"Your jobs have spent or reserved the {limit} dollars they may today (UTC)."
                if standing.limit_nano
                else "Your operator lets your jobs spend nothing; ask for a limit of the day above 0.",
                retry_after_seconds=standing.seconds_left,
            )

    async def retry(
        self,
        tenant: TenantId,
        job_id: str,
        budget: Budget | None = None,
        *,
        providers: Collection[str] | None = None,
        once: Once | None = None,
    ) -> Job:
        """A new job like an ended one.  Its worker takes the answers already paid for from the tenant's ledger.

        providers: those the caller may use; None for all."""
        old = await self.get(tenant, job_id)
        if old.status not in TERMINAL:
            raise Conflict(
                "The job has not ended.  Cancel it first, or resume it if it is paused.", code="job_not_terminal"
            )
        spec = replace(old.spec, budget=budget) if budget is not None else old.spec
        require_allowed(spec, providers)
        plan = await self._preflight.cleared(tenant, await self._planner.again(old, spec))
        return await self.accept(tenant, plan, retry_of=old.id, once=once)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def get(self, tenant: TenantId, job_id: str) -> Job:
        """Raises NotFound, the same for a foreign job, for none and for what is no id at all."""
        return await self._store.jobs.get(tenant, checked_job(job_id))

    async def version(self, tenant: TenantId, job_id: str) -> int:
        return await self._store.jobs.version(tenant, checked_job(job_id))

    async def page(
        self,
        tenant: TenantId,
        *,
        limit: int,
        after: str | None,
        newest_first: bool,
        status: JobStatus | None = None,
        metadata: Mapping[str, str] | None = None,
        created_after: int | None = None,
        created_before: int | None = None,
    ) -> tuple[list[Job], bool]:
        """after: id of the last job seen.  Raises BadRequest `invalid_cursor` when it is no job id.

        created_after, created_before: unix seconds, neither included, as `created_at` shows them."""
        if after is not None and not is_id("job", after):
            raise BadRequest(
                "`after` is not the id of a job.  Pass `last_id` of the page before.",
                code="invalid_cursor",
                param="after",
            )
        return await self._store.jobs.page(
            tenant,
            limit=limit,
            after=after,
            newest_first=newest_first,
            status=status,
            metadata=metadata,
            created_from_ms=None if created_after is None else (created_after + 1) * 1000,
            created_until_ms=None if created_before is None else created_before * 1000,
        )

    # --- steering ----------------------------------------------------------------------------------------------------

    async def cancel(self, tenant: TenantId, job_id: str) -> Job:
        """Stop a job, at once or as soon as its worker lets go.  What is paid stays.  Idempotent."""

        async def decide(job: Job) -> Change | None:
            if job.status in {S.CANCELLED, S.CANCELLING}:
                return None
            if job.status in TERMINAL:
                raise Conflict(f"The job has {job.status} already.", code="job_not_cancellable")
            now_ms = self._now_ms()
            if job.status is not S.QUEUED:
                event = _event("Cancelling was requested.", S.CANCELLING, now_ms)
                anew = {"paused_reason": None, "stage_attempts": 0}  # a provider is asked to stop as often as ever
                return Change(status=S.CANCELLING, set=anew, events=[event], due_in_seconds=0.0)
            return Change(
                status=S.CANCELLED,
                set={"finished_at_ms": now_ms, "expires_at_ms": now_ms + job.spec.retention_days * _DAY_MS},
                events=[_event("The job was cancelled before it started.", S.CANCELLED, now_ms)],
                deliveries=await self._notices.of(job, "job.cancelled", status=S.CANCELLED, now_ms=now_ms),
                due_in_seconds=-1.0,
            )

        return await self._change(tenant, job_id, decide)

    async def pause(self, tenant: TenantId, job_id: str) -> Job:
        """Start no further calls until resumed; those in flight are kept.  Idempotent.

        A queued job is held before its first stage, as if a worker had just begun it, and one that would go on by
        itself the next day waits for its owner from here on."""

        async def decide(job: Job) -> Change | None:
            if job.status is S.PAUSED and job.paused_reason is PausedReason.DAILY_SPEND:
                return Change(
                    status=S.PAUSED,
                    only_from=S.PAUSED,
                    set={"paused_reason": PausedReason.REQUESTED, "needs_nano": None},
                    events=[_event("The job was paused by its owner.", S.PAUSED, self._now_ms())],
                    due_in_seconds=0.0,  # what trains is to be paused, too
                )
            if job.status is S.PAUSED:
                return None
            if job.status not in {S.QUEUED, S.RUNNING}:
                raise Conflict(
                    f"Only a queued or running job can be paused; this one is {job.status}.", code="job_not_running"
                )
            now_ms = self._now_ms()
            first = {"stage": Stage.GENERATING} if job.status is S.QUEUED else {}
            return Change(
                status=S.PAUSED,
                only_from=job.status,
                set={"paused_reason": PausedReason.REQUESTED, **first},
                events=[_event("The job was paused by its owner.", S.PAUSED, now_ms)],
                deliveries=await self._notices.of(job, "job.paused", status=S.PAUSED, now_ms=now_ms),
                due_in_seconds=0.0,
            )

        return await self._change(tenant, job_id, decide)

    async def resume(
        self,
        tenant: TenantId,
        job_id: str,
        budget: Budget | None = None,
        *,
        providers: Collection[str] | None = None,
    ) -> Job:
        """Go on with a paused job, with another budget if one is given.  Idempotent without one.

        providers: those the caller may use; None for all.  Raises Forbidden, ValidationFailed `cost_above_limit`, also
        without a budget, when there is no room for the next step, and TooMany."""

        async def decide(job: Job) -> Change | None:
            require_allowed(job.spec, providers)
            if job.status is S.RUNNING and budget is None:
                return None
            if job.status is not S.PAUSED:
                raise Conflict(f"Only a paused job can be resumed; this one is {job.status}.", code="job_not_paused")
            changed: dict[str, object] = {"paused_reason": None, "needs_nano": None}
            if budget is not None:
                if faults := self._planner.resume_faults(job, budget):
                    raise invalid(faults)
                changed |= {"spec": replace(job.spec, budget=budget), "limit_nano": budget.max_cost_nano}
            elif job.paused_reason is PausedReason.BUDGET and (faults := self._planner.shortage(job)):
                raise invalid(faults)
            now_ms = self._now_ms()
            begins = job.started_at_ms is None  # it was paused in the queue
            told = await self._notices.of(job, "job.running", status=S.RUNNING, now_ms=now_ms) if begins else ()
            return Change(
                status=S.RUNNING,
                most_active=self._planner.limits.active_jobs_of(tenant),
                set=changed | ({"started_at_ms": now_ms} if begins else {}),
                events=[_event("The job was resumed by its owner.", S.RUNNING, now_ms)],
                deliveries=told,
                due_in_seconds=0.0,
            )

        return await self._change(tenant, job_id, decide)

    async def tell_endpoint(
        self, tenant: TenantId, job_id: str, number: int, *, provider: str | None, model: str, base_model: str | None
    ) -> Job:
        """Say where a student answers that its owner has deployed.  Idempotent.

        Another place can be told until the model has given its first answer, and again when there is no such model.
        provider: None for the student's own.  Raises NotFound, ValidationFailed, Conflict `student_not_awaiting`."""

        def endpoint_of(job: Job) -> StudentEndpoint:
            if not 0 <= number < len(job.fine_tunes):
                raise NotFound("The job has no such student.")
            name = provider if provider is not None else job.spec.students[number].provider
            return StudentEndpoint(provider=name, model=model, base_model=base_model, told_at_ms=self._now_ms())

        async def decide(job: Job) -> Change | None:
            endpoint = endpoint_of(job)
            if endpoint.is_same_place(job.endpoint(number)):
                return None
            if job.status not in {S.RUNNING, S.PAUSED} or not await self._awaits_its_place(job, number):
                raise Conflict("The student does not await its deployment (any more).", code="student_not_awaiting")
            named = [Named("/model", endpoint.provider, model)]
            named += [Named("/base_model", endpoint.provider, base_model)] if base_model is not None else []
            faults = self._planner.endpoint_faults(job, number, endpoint)
            if faults := faults or await self._preflight.foreign_faults(tenant, named):
                raise invalid(faults)
            event = Event(
                id=new_event_id(),
                level="info",
                type="message",
                message=f"Student {number} is deployed.",
                created_at_ms=self._now_ms(),
                stage=job.stage,
                data={"student": number, "provider": endpoint.provider, "model": endpoint.model},
            )
            due = 0.0 if job.status is S.RUNNING else None
            return Change(set={f"endpoint_{number}": endpoint}, events=[event], due_in_seconds=due)

        job = await self._change(tenant, job_id, decide)
        if not endpoint_of(job).is_same_place(job.endpoint(number)):  # somebody else said otherwise at the same moment
            raise Conflict("The student is deployed elsewhere.", code="student_not_awaiting")
        return job

    async def _awaits_its_place(self, job: Job, number: int) -> bool:
        """Whether a student has yet to give its first answer where its owner deploys it."""
        tune = job.fine_tunes[number]
        if tune.step == "awaiting":
            return True
        if tune.endpoint is None:
            return False
        asked = (plan for plan in evaluation_plans(job) if plan.student == number and plan.role == "student")
        if (plan := next(asked, None)) is None:
            return False
        state = await self._store.passes.state(PassId(job.id, plan.name))
        return state is None or not (state.complete or state.accepted or state.rejected)

    async def delete(self, tenant: TenantId, job_id: str, *, delete_models: bool = False) -> Receipt:
        """Delete an ended job with everything it is made of, here and at its providers; workers do it.  Idempotent.

        delete_models: the fine-tuned models go, too; can be asked for later as well."""
        checked = checked_job(job_id)
        receipt = await self._store.purging.receipt(tenant, checked)
        if receipt is None:
            job = await self.get(tenant, job_id)
            await mark_deleted(self._store, job, delete_models=delete_models, now_ms=self._now_ms())
        elif delete_models and receipt.cleanup is not None and receipt.cleanup.models:
            await self._store.cleanups.want_models(checked)
        receipt = await self._store.purging.receipt(tenant, checked)
        assert receipt is not None
        if receipt.purged is None:
            self.ring(checked, PURGE_JOB)
        if not receipt.complete:
            self.ring(checked, CLEAN_UP_JOB)
        return receipt

    async def _change(self, tenant: TenantId, job_id: str, decide: Callable[[Job], Awaitable[Change | None]]) -> Job:
        """Decide on the job as it stands, and again when it moved meanwhile.  None: it stands where it should."""
        for _ in range(_TRIES):
            job = await self.get(tenant, job_id)
            change = await decide(job)
            if change is None:
                return job
            written = await self._store.jobs.change(job, change)
            if not isinstance(written, Refused):
                self.ring(job.id)
                return await self.get(tenant, job_id)
            if written.too_many:
                raise too_many_active(change.most_active or 0)
        raise StoreError("The job is changing too fast to be steered.  Try again in a moment.")

    # --- ringing -----------------------------------------------------------------------------------------------------

    def ring(self, job_id: JobId, task_name: str = ADVANCE_JOB) -> None:
        """Never waited for: a bell that is lost is rung again by the sweep."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._rings_left = min(_RINGS_AT_ONCE, self._rings_left + (now - self._rung_at) * _RINGS_PER_SECOND)
        self._rung_at = now
        if self._rings_left >= 1:
            self._rings_left -= 1
            self._ring_now(task_name, job_id)
        elif self._shared_ring is None:
            in_seconds = (1 - self._rings_left) / _RINGS_PER_SECOND
            self._shared_ring = loop.call_later(in_seconds, self._ring_for_many, task_name, job_id)

    def _ring_for_many(self, task_name: str, job_id: JobId) -> None:
        """For all who have asked since; any bell wakes the sweep, whatever its name."""
        self._shared_ring = None
        self.ring(job_id, task_name)

    def _ring_now(self, task_name: str, job_id: JobId) -> None:
        if len(self._rings) < _RINGS_MAX:
            task = asyncio.get_running_loop().create_task(self._doorbell.ring(task_name, job_id))
            self._rings.add(task)
            task.add_done_callback(self._rings.discard)

    async def close(self, *, wait_seconds: float = 3.0) -> None:
        """Let the bells on their way ring out."""
        if self._shared_ring is not None:
            self._shared_ring.cancel()
        if self._rings:
            await asyncio.wait(self._rings, timeout=wait_seconds)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def _event(message: str, status: JobStatus, now_ms: int) -> Event:
    return Event(
        id=new_event_id(), level="info", type="status", message=message, created_at_ms=now_ms, data={"status": status}
    )

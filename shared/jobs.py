"""The use cases of jobs: what the API offers its callers, without HTTP.

Rules are pure functions over the request (`plan`); what they pass is written by the store in one step; a worker is
rung afterwards, and never waited for."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace

from shared.capabilities import params_faults
from shared.curation import check_response_schema, split_of
from shared.errors import BadRequest, Conflict, Fault, JobDeleted, NotFound, StoreError, ValidationFailed
from shared.graders import ScoreModel, parse_graders
from shared.ids import FileId, JobId, TenantId, is_id, new_event_id, new_job_id
from shared.lifecycle import TERMINAL, JobStatus, PausedReason
from shared.models import (
    NANO,
    Advice,
    Budget,
    Counters,
    Event,
    FineTune,
    Job,
    JobSpec,
    JsonObject,
    Money,
    Prompt,
    PromptCounts,
    PromptDefaults,
    PromptFile,
    Split,
    Teacher,
    usd,
)
from shared.notices import Notices
from shared.ports import BATCH_WINDOW_SECONDS
from shared.pricing import Estimate, Prices, prompt_size
from shared.prompts import bytes_with, chars_of, defaults_of, joined, with_defaults
from shared.queue import ADVANCE_JOB, PURGE_JOB
from shared.settings import ProviderSettings
from shared.store import Store
from shared.store.content import chunked
from shared.store.idempotency import Once
from shared.store.jobs import Change, Refused
from shared.store.purging import Receipt
from shared.webhooks import check_url

S = JobStatus
_DAY_MS: Final = 86_400_000
_RINGS_MAX: Final = 1_000  # bells on their way; beyond, the sweep finds the jobs by their due time
_TRIES: Final = 8  # a change refused because the job moved meanwhile is decided again, so many times
_METADATA_PAIRS_STORED: Final = 14  # of the 16 a provider keeps, two are ours: by them a lost answer is found again
_PER_PROMPT: Final = frozenset({"tools", "response_format"})  # said once for all, kept with each prompt
_SPLIT_BY_HAND: Final = 2_000  # prompts of a file that are read before the rest is judged by its size
#: Where a request says which prompts it means.
_PLACES: Final = {
    "inline": "/source/prompts",
    "file": "/source/file_id",
    "job": "/source/job_id",
    "stored_completions": "/source",
}
_SMALL_HOLDOUT: Final = 30  # examples; below, intervals are so wide that most verdicts are "inconclusive"


class Bell(Protocol):
    async def ring(self, task: str, id_: str) -> bool: ...


@dataclass(frozen=True)
class Limits:
    """What the operator allows."""

    prompts_max: int
    prompt_max_chars: int
    chunk_size: int
    retention_days_max: int
    webhook_allow_http: bool
    webhook_ports: tuple[int, ...]
    webhook_allow_networks: tuple[IPv4Network | IPv6Network, ...]
    active_jobs_max: int | None = None


class Plan(msgspec.Struct, frozen=True):
    """A request that passed every rule, as it will be carried out.

    prompts: with what the job says for all of them; none when they are a file's, and then that lies in `defaults`."""

    spec: JobSpec
    prompts: list[Prompt]
    prompts_total: int
    estimate: Estimate | None
    warnings: list[Advice]
    file: PromptFile | None = None
    defaults: PromptDefaults | None = None


@dataclass(frozen=True)
class _Asked:
    """What the rules need to know of the prompts as they will be asked, however many there are.

    unanswered: those without a completion.  bytes: of the parts of their requests that cost tokens.  faults: what is
    wrong with the prompts themselves."""

    total: int
    unanswered: int
    bytes: int
    tools: bool
    faults: Sequence[Fault] = ()


class Jobs:
    """Everything a caller can do with jobs.  One per process."""

    def __init__(
        self,
        store: Store,
        doorbell: Bell,
        *,
        providers: Mapping[str, ProviderSettings],
        prices: Prices,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._providers = providers
        self._prices = prices
        self._limits = limits
        self._clock = clock
        self._notices = Notices(store)
        self._rings: set[asyncio.Task[bool]] = set()

    # --- asking for one ----------------------------------------------------------------------------------------------

    def plan(self, spec: JobSpec, prompts: Sequence[Prompt], *, earlier: Job | None = None) -> Plan:
        """The request as it would be carried out; touches nothing.  Raises ValidationFailed with every fault.

        earlier: the job whose prompts these are, as it asked them."""
        defaults = defaults_of(spec)
        complete = [with_defaults(prompt, defaults) for prompt in prompts]
        unanswered = sum(prompt.completion is None for prompt in complete)
        if earlier is not None and complete == list(prompts):
            unanswered = min(unanswered, _unpaid(spec, earlier, len(complete)))
        asked = _Asked(
            total=len(complete),
            unanswered=unanswered,
            bytes=sum(map(prompt_size, complete)),
            tools=any(prompt.tools for prompt in complete),
            faults=[*self._prompt_faults(spec, complete)],
        )
        spec, estimate, warnings = self._planned(spec, asked)
        return Plan(spec, complete, asked.total, estimate, warnings)

    async def plan_from_file(self, tenant: TenantId, spec: JobSpec) -> Plan:
        """`plan` for prompts that were uploaded; reads no more of them than it takes to know that enough fall into
        each split.  Raises ValidationFailed."""
        try:
            file = await self._store.files.get(tenant, _checked_file(spec.file_id))
        except NotFound:
            raise _unknown_file() from None
        return await self._plan_from(file, spec, defaults_of(spec))

    async def plan_from_job(self, tenant: TenantId, spec: JobSpec) -> Plan:
        """`plan` for the prompts of an earlier job, as it asked them: what it has paid for is in the tenant's ledger,
        and a worker takes it from there as long as teacher and parameters are the same.  What the new job says for all
        prompts is for those to which the earlier one said nothing.  Raises ValidationFailed."""
        try:
            earlier = await self.get(tenant, spec.source_job_id or "")
        except (NotFound, JobDeleted):
            raise _unknown_job() from None
        if earlier.prompt_defaults is not None and earlier.spec.file_id is not None:
            file = await self._store.files.load(earlier.spec.file_id)
            if file is None:  # the job is being purged
                raise _unknown_job()
            defaults = joined(earlier.prompt_defaults, defaults_of(spec))
            return await self._plan_from(file, replace(spec, file_id=file.id), defaults, earlier)
        if earlier.spec.source == "stored_completions" and not (earlier.imported and earlier.imported.complete):
            raise invalid([Fault("/source/job_id", "job_not_ready", "has not read all of its stored completions yet")])
        total, most = earlier.counters.prompts_total, self._limits.prompts_max
        if total > most:
            raise invalid([Fault("/source/job_id", "too_many_prompts", f"must have at most {most:,} prompts")])
        prompts = await self._prompts_of(earlier)
        if len(prompts) != total:
            raise _unknown_job()
        return await asyncio.to_thread(self.plan, spec, prompts, earlier=earlier)

    def plan_from_stored(self, spec: JobSpec) -> Plan:
        """`plan` for completions that a provider stores.  How many there are is known once a worker has read them, so
        nothing is estimated, and the curating stage alone judges whether they are enough.  Raises ValidationFailed."""
        return self._plan_from_stored(spec, defaults_of(spec))

    def _plan_from_stored(self, spec: JobSpec, defaults: PromptDefaults) -> Plan:
        asked = _Asked(total=0, unanswered=0, bytes=0, tools=False, faults=[*self._stored_faults(spec)])
        spec, _, warnings = self._planned(spec, asked)
        return Plan(spec, [], 0, None, warnings, defaults=defaults)

    async def _prompts_of(self, job: Job) -> list[Prompt]:
        prompts: list[Prompt] = []
        for chunk in range(await self._store.content.chunk_count(job.id, "source")):
            prompts += await self._store.content.prompt_chunk(job.id, "source", chunk)
        return prompts

    async def _plan_from(
        self, file: PromptFile, spec: JobSpec, defaults: PromptDefaults, earlier: Job | None = None
    ) -> Plan:
        counts, unanswered = file.counts, file.counts.asked
        if earlier is not None and defaults == earlier.prompt_defaults:
            unanswered = min(unanswered, _unpaid(spec, earlier, counts.prompts))
        asked = _Asked(
            total=counts.prompts,
            unanswered=unanswered,
            bytes=bytes_with(counts, defaults),
            tools=bool(defaults.tools) or counts.toolless < counts.prompts,
            faults=[*self._length_faults(spec, counts, defaults), *await self._file_split_faults(file, spec, defaults)],
        )
        spec, estimate, warnings = await asyncio.to_thread(self._planned, spec, asked)
        return Plan(spec, [], asked.total, estimate, warnings, file, defaults)

    def _planned(self, spec: JobSpec, asked: _Asked) -> tuple[JobSpec, Estimate | None, list[Advice]]:
        """(spec as it is kept, estimate, warnings)."""
        faults = [*self._faults(spec, asked)]
        spec = replace(spec, teacher=replace(spec.teacher, params=_kept_params(spec)))
        if faults:
            raise invalid(faults)
        estimate = self._estimate(spec, asked) if spec.source != "stored_completions" else None
        faults = [*self._budget_faults(spec.budget, spec, estimate)]
        if faults:
            raise invalid(faults)
        return spec, estimate, [*self._warnings(spec, asked, estimate)]

    async def submit(
        self, tenant: TenantId, spec: JobSpec, prompts: Sequence[Prompt], *, once: Once | None = None
    ) -> Job:
        """Accept a job: when this returns, it survives a crash of every process.  once: see `JobStore.accept`."""
        return await self.accept(tenant, await _off_loop(self.plan, spec, prompts), once=once)

    async def accept(
        self, tenant: TenantId, plan: Plan, *, retry_of: JobId | None = None, once: Once | None = None
    ) -> Job:
        await self._store.require_room()
        now_ms = self._now_ms()
        estimate = plan.estimate
        job = Job(
            id=new_job_id(now_ms),
            tenant=tenant,
            spec=plan.spec,
            status=S.QUEUED,
            version=1,
            created_at_ms=now_ms,
            chunk_size=plan.file.chunk_size if plan.file is not None else self._limits.chunk_size,
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
        chunks = list(chunked(plan.prompts, self._limits.chunk_size))
        accepted = _event("The job was accepted.", S.QUEUED, now_ms)
        try:
            await self._store.jobs.accept(job, chunks, accepted, once=once, most_active=self._limits.active_jobs_max)
        except NotFound:  # the file, or the last job that kept it, was deleted this very moment
            raise (_unknown_job() if plan.spec.source == "job" else _unknown_file()) from None
        self._ring(job.id)
        return job

    async def retry(
        self, tenant: TenantId, job_id: str, budget: Budget | None = None, *, once: Once | None = None
    ) -> Job:
        """A new job like an ended one.  Its worker takes the answers already paid for from the tenant's ledger."""
        old = await self.get(tenant, job_id)
        if old.status not in TERMINAL:
            raise Conflict(
                "The job has not ended.  Cancel it first, or resume it if it is paused.", code="job_not_terminal"
            )
        spec = replace(old.spec, budget=budget) if budget is not None else old.spec
        if old.prompt_defaults is not None and old.spec.file_id is not None:
            # The old job keeps the file's chunks, whether or not its owner still sees the file.
            file = await self._store.files.load(old.spec.file_id)
            if file is None:
                raise _unknown_file()
            plan = await self._plan_from(file, spec, old.prompt_defaults)
            return await self.accept(tenant, plan, retry_of=old.id, once=once)
        if old.spec.source == "stored_completions":
            plan = self._plan_from_stored(spec, old.prompt_defaults or PromptDefaults())
            return await self.accept(tenant, plan, retry_of=old.id, once=once)
        prompts = await self._prompts_of(old)
        # The stored prompts carry the system prompt already, also those that had one of their own.
        plan = await _off_loop(self.plan, replace(spec, system_prompt=None), prompts)
        plan = replace(plan, spec=replace(plan.spec, system_prompt=spec.system_prompt))
        return await self.accept(tenant, plan, retry_of=old.id, once=once)

    # --- looking -----------------------------------------------------------------------------------------------------

    async def get(self, tenant: TenantId, job_id: str) -> Job:
        """Raises NotFound, the same for a foreign job, for none and for what is no id at all."""
        return await self._store.jobs.get(tenant, _checked(job_id))

    async def version(self, tenant: TenantId, job_id: str) -> int:
        return await self._store.jobs.version(tenant, _checked(job_id))

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
                return Change(status=S.CANCELLING, set={"paused_reason": None}, events=[event], due_in_seconds=0.0)
            return Change(
                status=S.CANCELLED,
                set={"finished_at_ms": now_ms, "expires_at_ms": now_ms + job.spec.retention_days * _DAY_MS},
                events=[_event("The job was cancelled before it started.", S.CANCELLED, now_ms)],
                deliveries=await self._notices.of(job, "job.cancelled", status=S.CANCELLED, now_ms=now_ms),
                due_in_seconds=-1.0,
            )

        return await self._change(tenant, job_id, decide)

    async def pause(self, tenant: TenantId, job_id: str) -> Job:
        """Start no further calls until resumed; those in flight are kept.  Idempotent."""

        async def decide(job: Job) -> Change | None:
            if job.status is S.PAUSED:
                return None
            if job.status is not S.RUNNING:
                raise Conflict(f"Only a running job can be paused; this one is {job.status}.", code="job_not_running")
            now_ms = self._now_ms()
            return Change(
                status=S.PAUSED,
                set={"paused_reason": PausedReason.REQUESTED},
                events=[_event("The job was paused by its owner.", S.PAUSED, now_ms)],
                deliveries=await self._notices.of(job, "job.paused", status=S.PAUSED, now_ms=now_ms),
                due_in_seconds=0.0,
            )

        return await self._change(tenant, job_id, decide)

    async def resume(self, tenant: TenantId, job_id: str, budget: Budget | None = None) -> Job:
        """Go on with a paused job, with another budget if one is given.  Idempotent without one."""

        async def decide(job: Job) -> Change | None:
            if job.status is S.RUNNING and budget is None:
                return None
            if job.status is not S.PAUSED:
                raise Conflict(f"Only a paused job can be resumed; this one is {job.status}.", code="job_not_paused")
            changed: dict[str, object] = {"paused_reason": None}
            if budget is not None:
                if faults := [*self._budget_faults(budget, job.spec, None, money=job.money)]:
                    raise invalid(faults)
                changed |= {"spec": replace(job.spec, budget=budget), "limit_nano": budget.max_cost_nano}
            event = _event("The job was resumed by its owner.", S.RUNNING, self._now_ms())
            return Change(status=S.RUNNING, set=changed, events=[event], due_in_seconds=0.0)

        return await self._change(tenant, job_id, decide)

    async def delete(self, tenant: TenantId, job_id: str) -> Receipt:
        """Delete an ended job with everything it is made of; a worker purges it.  Idempotent."""
        checked = _checked(job_id)
        receipt = await self._store.purging.receipt(tenant, checked)
        if receipt is None:
            await self._store.purging.mark(await self.get(tenant, job_id))
            receipt = await self._store.purging.receipt(tenant, checked)
            assert receipt is not None
        if receipt.purged is None:
            self._ring(checked, PURGE_JOB)
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
                self._ring(job.id)
                return await self.get(tenant, job_id)
        raise StoreError("The job is changing too fast to be steered.  Try again in a moment.")

    # --- ringing -----------------------------------------------------------------------------------------------------

    def _ring(self, job_id: JobId, task_name: str = ADVANCE_JOB) -> None:
        """Never waited for: a bell that is lost is rung again by the sweep."""
        if len(self._rings) < _RINGS_MAX:
            task = asyncio.get_running_loop().create_task(self._doorbell.ring(task_name, job_id))
            self._rings.add(task)
            task.add_done_callback(self._rings.discard)

    async def close(self, *, wait_seconds: float = 3.0) -> None:
        """Let the bells on their way ring out."""
        if self._rings:
            await asyncio.wait(self._rings, timeout=wait_seconds)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # --- rules -------------------------------------------------------------------------------------------------------

    def _faults(self, spec: JobSpec, asked: _Asked) -> Iterator[Fault]:
        yield from self._provider_faults(spec)
        yield from self._batch_faults(spec.teacher)
        yield from params_faults(
            spec.teacher.model,
            spec.teacher.params,
            tools=asked.tools,
            pointer="/teacher/params",
        )
        yield from _raised(lambda: parse_graders(spec.evaluation.graders))
        schema = spec.curation.response_schema
        if schema is not None:
            yield from _raised(lambda: check_response_schema(schema))
        if spec.webhook is not None:
            url = spec.webhook.url
            yield from _raised(
                lambda: check_url(
                    url,
                    allow_http=self._limits.webhook_allow_http,
                    ports=self._limits.webhook_ports,
                    allow_networks=self._limits.webhook_allow_networks,
                )
            )
        if spec.retention_days > self._limits.retention_days_max:
            yield Fault("/retention_days", "out_of_range", f"must be at most {self._limits.retention_days_max}")
        if spec.store and len(spec.metadata) > _METADATA_PAIRS_STORED:
            yield Fault(
                "/metadata", "wrong_length", f"must have at most {_METADATA_PAIRS_STORED} pairs beside `store`: true"
            )
        yield from asked.faults

    def _provider_faults(self, spec: JobSpec) -> Iterator[Fault]:
        named = [("/teacher/provider", spec.teacher.provider, False)]
        named += [(f"/students/{i}/provider", student.provider, True) for i, student in enumerate(spec.students)]
        for place, grader in enumerate(spec.evaluation.graders):
            judge = grader.get("provider")  # not parsed yet, so anything
            if isinstance(judge, str):
                named.append((f"/evaluation/graders/{place}/provider", judge, False))
        for pointer, name, trains in named:
            provider = self._providers.get(name)
            if provider is None:
                near = difflib.get_close_matches(name[:64], list(self._providers), n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; there is {_listed(sorted(self._providers))}"
                yield Fault(pointer, "unknown_provider", "is not a configured provider" + hint)
            elif trains and not provider.can_train:
                yield Fault(
                    pointer, "provider_training_closed", "takes no fine-tuning jobs; its dataset can be exported"
                )

    def _stored_faults(self, spec: JobSpec) -> Iterator[Fault]:
        name = spec.stored.provider if spec.stored is not None else ""
        if name not in self._providers:
            known = _listed(sorted(self._providers))
            yield Fault("/source/provider", "unknown_provider", f"is not a configured provider; there is {known}")
        elif not self._providers[name].can_store:
            yield Fault("/source/provider", "invalid_value", "is a provider that does not keep completions")

    def _batch_faults(self, teacher: Teacher) -> Iterator[Fault]:
        if teacher.mode != "batch":
            return
        provider = self._providers.get(teacher.provider)
        if provider is not None and not provider.can_batch:
            yield Fault("/teacher/mode", "unsupported_param", "must be live; this provider serves no batches")
        if teacher.params.get("service_tier") is not None:
            yield Fault("/teacher/params/service_tier", "unsupported_param", "is not for batches; they have one tier")

    def _prompt_faults(self, spec: JobSpec, prompts: Sequence[Prompt]) -> Iterator[Fault]:
        place, limits = _PLACES[spec.source], self._limits
        if len(prompts) > limits.prompts_max:
            yield Fault(place, "too_many_prompts", f"must be at most {limits.prompts_max:,}")
            return
        seen: set[str] = set()
        for i, prompt in enumerate(prompts):
            if chars_of(prompt) > limits.prompt_max_chars:
                what = "is longer than" if spec.source == "inline" else "has a prompt of more than"
                where = f"{place}/{i}" if spec.source == "inline" else place
                yield Fault(where, "prompt_too_long", f"{what} {limits.prompt_max_chars:,} characters")
            if prompt.key is not None:
                if prompt.key in seen:
                    yield Fault(f"{place}/{i}/key", "duplicate_prompt_key", "is the key of an earlier prompt")
                seen.add(prompt.key)
        splits = _splits(spec.split, prompts)
        yield from _split_faults(spec, place, splits["train"], splits["holdout"], len(prompts))

    def _length_faults(self, spec: JobSpec, counts: PromptCounts, defaults: PromptDefaults) -> Iterator[Fault]:
        """What the job says for all must fit beside the longest prompt that takes it."""
        limit = self._limits.prompt_max_chars
        if counts.bare and counts.longest_bare_chars + len(defaults.system_prompt or "") > limit:
            detail = f"makes a prompt of the file longer than {limit:,} characters"
            yield Fault("/system_prompt", "prompt_too_long", detail)
        elif counts.longest_chars > limit:  # the operator has lowered it since
            yield Fault(_PLACES[spec.source], "prompt_too_long", f"has a prompt of more than {limit:,} characters")

    async def _file_split_faults(self, file: PromptFile, spec: JobSpec, defaults: PromptDefaults) -> Sequence[Fault]:
        """As for inline prompts, read from the front until the rules are met: mostly within the first chunk.

        Beyond the first 2,000 prompts only what is certain counts: too few of them are left to make up for it."""
        total, needed = file.counts.prompts, spec.curation.min_accepted
        found: Counter[str] = Counter()
        for chunk in range(-(-min(total, _SPLIT_BY_HAND) // file.chunk_size)):
            if found["train"] >= needed and (found["holdout"] or not spec.split.holdout):
                return ()
            prompts = await self._store.files.chunk(file.id, chunk)
            found += await asyncio.to_thread(_splits, spec.split, [with_defaults(p, defaults) for p in prompts])
        unread = total - found.total()
        train, holdout = found["train"] + unread, found["holdout"] + unread
        return [*_split_faults(spec, _PLACES[spec.source], train, holdout, total)]

    def _budget_faults(
        self, budget: Budget, spec: JobSpec, estimate: Estimate | None, *, money: Money | None = None
    ) -> Iterator[Fault]:
        """estimate: for a new job.  money: of one that has begun."""
        limit = budget.max_cost_nano
        if limit is None:
            return
        for pointer, price_list, model in self._billed(spec):
            if not self._prices.is_priced(price_list, model):
                yield Fault(pointer, "model_unpriced", "has no known price, so a budget cannot be kept; leave it out")
        where = "/budget/max_cost_usd"
        if estimate is not None and limit < estimate.low_nano:
            yield Fault(where, "cost_above_limit", f"is below the least this job will cost, {usd(estimate.low_nano)}")
        spent = money.spent_nano + money.reserved_nano + money.unconfirmed_nano if money is not None else 0
        if limit <= spent and money is not None:
            yield Fault(where, "cost_above_limit", f"must be more than what is spent already, {usd(spent)}")

    def _billed(self, spec: JobSpec) -> Iterator[tuple[str, str | None, str]]:
        """(pointer, price list, model) of every model that will be called."""
        yield "/teacher/model", self._price_list(spec.teacher.provider), spec.teacher.model
        for i, student in enumerate(spec.students):
            yield f"/students/{i}/model", self._price_list(student.provider), student.model
        for place, grader in enumerate(parse_graders(spec.evaluation.graders)):
            if isinstance(grader, ScoreModel):
                yield f"/evaluation/graders/{place}/model", self._price_list(grader.provider), grader.model

    def _price_list(self, provider: str) -> str | None:
        found = self._providers.get(provider)
        return None if found is None else found.prices

    def _estimate(self, spec: JobSpec, asked: _Asked) -> Estimate | None:
        """None when nothing of it has a price."""
        estimate = self._prices.estimate(
            spec,
            {name: provider.prices for name, provider in self._providers.items()},
            prompts=asked.total,
            asked=asked.unanswered,
            prompt_bytes=asked.bytes,
        )
        return estimate if estimate.high_nano or not estimate.unpriced else None

    def _warnings(self, spec: JobSpec, asked: _Asked, estimate: Estimate | None) -> Iterator[Advice]:
        stored = spec.source == "stored_completions"
        if stored:
            yield Advice(
                code="cost_incomplete",
                message="How many completions are stored shows when the job runs; nothing can be estimated before.",
            )
        elif estimate is None or estimate.unpriced:
            yield Advice(
                code="cost_incomplete",
                message="Some calls or trainings have no known price; the estimate leaves them out.",
            )
        if spec.teacher.mode == "batch" and spec.deadline_seconds <= BATCH_WINDOW_SECONDS:
            yield Advice(
                code="deadline_short",
                message="A batch may take the provider a day; the job can reach its deadline before it is answered.",
            )
        if spec.store and not self._providers[spec.teacher.provider].can_store:
            yield Advice(code="store_ignored", message="The teacher's provider does not keep completions.")
        if spec.split.holdout == 0:
            yield Advice(code="no_holdout", message="Without a holdout the students are trained and not judged.")
        elif not stored and (size := round(asked.total * spec.split.holdout)) < _SMALL_HOLDOUT:
            yield Advice(
                code="holdout_small",
                message=f"About {size} prompts are held out; the verdict will probably be inconclusive.",
            )


def invalid(faults: Sequence[Fault]) -> ValidationFailed:
    """All faults as one error, named after the first."""
    first = faults[0]
    more = f" And {len(faults) - 1} more." if len(faults) > 1 else ""
    own = first.code if first.code in NAMED_FAULTS else None
    sentence = f"{first.pointer} {first.detail}." if first.pointer else f"The body {first.detail}."
    return ValidationFailed(sentence + more, code=own, param=first.pointer, faults=faults)


#: Faults that give the whole answer their code; all others are `validation_failed`.
NAMED_FAULTS: Final = frozenset(
    {
        "too_few_prompts",
        "too_many_prompts",
        "prompt_too_long",
        "duplicate_prompt_key",
        "unsupported_param",
        "model_unpriced",
        "cost_above_limit",
        "url_not_allowed",
        "holdout_too_small",
        "provider_training_closed",
    }
)


def parse_usd(text: str) -> int:
    """Nano-dollars of a decimal string, "10.00" → 10_000_000_000.  text: digits, at most nine after the point."""
    whole, _, fraction = text.partition(".")
    return int(whole) * NANO + int(fraction.ljust(9, "0") or "0")


def _splits(split: Split, prompts: Sequence[Prompt]) -> Counter[str]:
    return Counter(split_of(prompt.messages, prompt.tools, split) for prompt in prompts)


def _split_faults(spec: JobSpec, place: str, train: int, holdout: int, total: int) -> Iterator[Fault]:
    """train, holdout: how many of the prompts fall there."""
    needed = spec.curation.min_accepted
    if train < needed:
        yield Fault(
            place,
            "too_few_prompts",
            f"leave {train} of {total} for training and curation.min_accepted asks for {needed}",
        )
    elif spec.split.holdout > 0 and not holdout:
        yield Fault(
            "/split/holdout",
            "holdout_too_small",
            "leaves no prompt in the holdout; send more prompts or ask for a larger share",
        )


def _unknown_file() -> ValidationFailed:
    return invalid([Fault("/source/file_id", "unknown_file", "is not one of your files; it may have expired")])


def _unknown_job() -> ValidationFailed:
    return invalid([Fault("/source/job_id", "not_found", "is not one of your jobs; it may have been deleted")])


def _kept_params(spec: JobSpec) -> JsonObject:
    """The teacher's parameters without those that are kept with each prompt."""
    return {name: value for name, value in spec.teacher.params.items() if name not in _PER_PROMPT and value is not None}


def _unpaid(spec: JobSpec, earlier: Job, total: int) -> int:
    """How many of the same prompts have no answer yet by which the ledger could spare a call."""
    old, new = earlier.spec.teacher, spec.teacher
    if (old.provider, old.model, old.params) != (new.provider, new.model, _kept_params(spec)):
        return total
    return total - earlier.counters.accepted - earlier.counters.rejected


def _raised(check: Callable[[], object]) -> Sequence[Fault]:
    try:
        check()
    except ValidationFailed as error:
        return error.faults
    return ()


def _event(message: str, status: JobStatus, now_ms: int) -> Event:
    return Event(
        id=new_event_id(), level="info", type="status", message=message, created_at_ms=now_ms, data={"status": status}
    )


def _checked(job_id: str) -> JobId:
    if not is_id("job", job_id):
        raise NotFound("There is no such job.")
    return JobId(job_id)


def _checked_file(file_id: str | None) -> FileId:
    if file_id is None or not is_id("pf", file_id):
        raise NotFound("There is no such file.")
    return FileId(file_id)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none configured"


async def _off_loop(
    plan: Callable[[JobSpec, Sequence[Prompt]], Plan], spec: JobSpec, prompts: Sequence[Prompt]
) -> Plan:
    """Plan in a thread: large requests take long enough to hold up everybody else's."""
    return await asyncio.to_thread(plan, spec, prompts)

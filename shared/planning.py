"""From a request to what will be carried out: its prompts, defaults, estimate and warnings.

Planning reads what it must and writes nothing; what it returns is accepted by `shared.jobs.Jobs`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from shared.curation import Splitter
from shared.errors import Fault, JobDeleted, NotFound, ValidationFailed
from shared.ids import FileId, JobId, TenantId, is_id
from shared.models import (
    Advice,
    Budget,
    Job,
    JobSpec,
    JsonObject,
    Prompt,
    PromptCounts,
    PromptDefaults,
    PromptFile,
    StudentEndpoint,
    usd,
)
from shared.ports import BATCH_WINDOW_SECONDS
from shared.pricing import Estimate, Prices
from shared.prompts import adds_nothing, bytes_with, counts_of, defaults_of, joined, longest_chars
from shared.rules import (
    PLACES,
    Asked,
    Limits,
    Rules,
    beyond_doubt,
    doubt_of_training,
    invalid,
    split_faults,
    splits_suffice,
)
from shared.settings import ProviderSettings
from shared.store import Store

_PER_PROMPT: Final = frozenset({"tools", "response_format"})  # said once for all, kept with each prompt
_SPLIT_BY_HAND: Final = 2_000  # prompts of a file that are read before the rest is judged by its size
_CALLS_AT_ONCE: Final = 8  # below, a budget that reserves each call's upper bound makes the job slow
_FEW_EXAMPLES_DOUBT: Final = 0.001  # probability of too few for a provider, above which it is warned of
_SMALL_HOLDOUT: Final = 30  # examples; below, intervals are so wide that most verdicts are "inconclusive"


class Plan(msgspec.Struct, frozen=True):
    """A request that passed every rule, as it will be carried out.

    prompts: none when they are a file's.  defaults: what these do not say themselves; None for nothing.
    ceilings: see `Rules.ceilings`."""

    spec: JobSpec
    prompts: Sequence[Prompt]
    prompts_total: int
    estimate: Estimate | None
    warnings: list[Advice]
    ceilings: dict[str, int]
    file: PromptFile | None = None
    defaults: PromptDefaults | None = None


class Planner:
    """Plans requests of any source.  One per process."""

    def __init__(
        self, store: Store, *, providers: Mapping[str, ProviderSettings], prices: Prices, limits: Limits
    ) -> None:
        self._store = store
        self._providers = providers
        self._prices = prices
        self._price_lists = {name: provider.prices for name, provider in providers.items()}
        self.limits = limits
        self._rules = Rules(providers, prices, limits)

    def plan(self, spec: JobSpec, prompts: Sequence[Prompt], *, earlier: Job | None = None) -> Plan:
        """The request as it would be carried out; touches nothing.  Raises ValidationFailed with every fault.

        earlier: the job whose prompts these are, as it asked them."""
        counts, defaults = counts_of(prompts), defaults_of(spec)
        unchanged = earlier is not None and adds_nothing(defaults, counts)
        faults = [*self._rules.prompt_faults(spec, prompts, counts, defaults)]
        asked = _asked(spec, counts, defaults, faults, paid_by=earlier if unchanged else None)
        spec, estimate, warnings, ceilings = self._planned(spec, asked)
        said = defaults if defaults != PromptDefaults() else None
        return Plan(spec, prompts, asked.total, estimate, warnings, ceilings, defaults=said)

    async def from_file(self, tenant: TenantId, spec: JobSpec) -> Plan:
        """`plan` for prompts that were uploaded; reads no more of them than it takes to know that enough fall into
        each split.  Raises ValidationFailed."""
        try:
            file = await self._store.files.get(tenant, _checked_file(spec.file_id))
        except NotFound:
            raise unknown_file() from None
        return await self._plan_from(file, spec, defaults_of(spec))

    async def from_job(self, tenant: TenantId, spec: JobSpec) -> Plan:
        """`plan` for the prompts of an earlier job, as it asked them: what it has paid for is in the tenant's ledger,
        and a worker takes it from there as long as teacher and parameters are the same.  What the new job says for all
        prompts is for those to which the earlier one said nothing.  Raises ValidationFailed."""
        try:
            earlier = await self._store.jobs.get(tenant, checked_job(spec.source_job_id or ""))
        except (NotFound, JobDeleted):
            raise unknown_job() from None
        if earlier.prompt_defaults is not None and earlier.spec.file_id is not None:
            file = await self._store.files.load(earlier.spec.file_id)
            if file is None:  # the job is being purged
                raise unknown_job()
            defaults = joined(earlier.prompt_defaults, defaults_of(spec))
            return await self._plan_from(file, replace(spec, file_id=file.id), defaults, earlier)
        if earlier.spec.source == "stored_completions" and not (earlier.imported and earlier.imported.complete):
            raise invalid([Fault("/source/job_id", "job_not_ready", "has not read all of its stored completions yet")])
        total, most = earlier.counters.prompts_total, self.limits.prompts_max
        if total > most:
            raise invalid([Fault("/source/job_id", "too_many_prompts", f"must have at most {most:,} prompts")])
        prompts = await self._prompts_of(earlier)
        if len(prompts) != total:
            raise unknown_job()
        return await asyncio.to_thread(self.plan, spec, prompts, earlier=earlier)

    def from_stored(self, spec: JobSpec) -> Plan:
        """`plan` for completions that a provider stores.  How many there are is known once a worker has read them, so
        nothing is estimated, and the curating stage alone judges whether they are enough.  Raises ValidationFailed."""
        return self._plan_from_stored(spec, defaults_of(spec))

    def _plan_from_stored(self, spec: JobSpec, defaults: PromptDefaults) -> Plan:
        asked = Asked(total=0, unanswered=0, bytes=0, tools=False, faults=[*self._rules.stored_faults(spec)])
        spec, _, warnings, ceilings = self._planned(spec, asked)
        return Plan(spec, [], 0, None, warnings, ceilings, defaults=defaults)

    async def again(self, old: Job, spec: JobSpec) -> Plan:
        """`plan` for the prompts of an ended job of the same owner.  spec: the old job's, perhaps with another budget.
        Raises ValidationFailed."""
        if old.prompt_defaults is not None and old.spec.file_id is not None:
            # The old job keeps the file's chunks, whether or not its owner still sees the file.
            file = await self._store.files.load(old.spec.file_id)
            if file is None:
                raise unknown_file()
            return await self._plan_from(file, spec, old.prompt_defaults)
        if old.spec.source == "stored_completions":
            return self._plan_from_stored(spec, old.prompt_defaults or PromptDefaults())
        prompts = await self._prompts_of(old)
        # The stored prompts carry the system prompt already, also those that had one of their own.
        plan = await asyncio.to_thread(self.plan, replace(spec, system_prompt=None), prompts)
        return replace(plan, spec=replace(plan.spec, system_prompt=spec.system_prompt))

    def resume_faults(self, job: Job, budget: Budget) -> list[Fault]:
        """What is wrong with this budget for a job that has begun."""
        return [*self._rules.budget_faults(budget, job.spec, None, money=job.money)]

    def shortage(self, job: Job) -> list[Fault]:
        """Why a job that is paused for its budget would surely pause again.  Nothing is sure while it has something
        reserved: a lost answer may be found, a training cost less."""
        if job.money.reserved_nano:
            return []
        return [fault for fault in self.resume_faults(job, job.spec.budget) if fault.code == "cost_above_limit"]

    def endpoint_faults(self, job: Job, number: int, endpoint: StudentEndpoint) -> list[Fault]:
        """What is wrong with the place at which a deployed student is said to answer."""
        limited = job.money.limit_nano is not None or self._store.day_limit(job.tenant) is not None
        return [*self._rules.endpoint_faults(job.spec.students[number], endpoint, limited=limited)]

    async def _prompts_of(self, job: Job) -> list[Prompt]:
        prompts: list[Prompt] = []
        for chunk in range(await self._store.content.chunk_count(job.id, "source")):
            prompts += await self._store.content.prompt_chunk(job.id, "source", chunk)
        return prompts

    async def _plan_from(
        self, file: PromptFile, spec: JobSpec, defaults: PromptDefaults, earlier: Job | None = None
    ) -> Plan:
        counts = file.counts
        unchanged = earlier is not None and defaults == earlier.prompt_defaults
        faults = [*self._rules.length_faults(spec, counts, defaults)]
        faults += await self._filesplit_faults(file, spec, defaults)
        asked = _asked(spec, counts, defaults, faults, paid_by=earlier if unchanged else None)
        spec, estimate, warnings, ceilings = await asyncio.to_thread(self._planned, spec, asked)
        return Plan(spec, [], asked.total, estimate, warnings, ceilings, file, defaults)

    def _planned(self, spec: JobSpec, asked: Asked) -> tuple[JobSpec, Estimate | None, list[Advice], dict[str, int]]:
        """(spec as it is kept, estimate, warnings, ceilings)."""
        faults = [*self._rules.faults(spec, asked)]
        spec = replace(spec, teacher=replace(spec.teacher, params=_kept_params(spec)))
        if faults:
            raise invalid(faults)
        estimate = self._estimate(spec, asked) if spec.source != "stored_completions" else None
        faults = [*self._rules.budget_faults(spec.budget, spec, estimate)]
        ceilings = self._rules.ceilings(spec, asked)
        dearest = ceilings.get("/teacher/model", 0)
        limit = spec.budget.max_cost_nano
        if not faults and limit is not None and limit < dearest:
            detail = f"is less than one call may cost, {usd(dearest)}; set teacher.params.max_completion_tokens"
            detail += " or raise it"
            faults.append(Fault("/budget/max_cost_usd", "cost_above_limit", detail))
        if faults:
            raise invalid(faults)
        warnings = [*self._warnings(spec, asked, estimate)]
        if limit is not None and limit < min(_CALLS_AT_ONCE, asked.unanswered) * dearest:
            message = f"One call may cost up to ${usd(dearest)}, so few run at once; set max_completion_tokens."
            warnings.append(Advice(code="budget_tight", message=message))
        return spec, estimate, warnings, ceilings

    async def _filesplit_faults(self, file: PromptFile, spec: JobSpec, defaults: PromptDefaults) -> Sequence[Fault]:
        """As for inline prompts, read from the front until the rules are met: mostly within the first chunk.

        Beyond the first 2,000 prompts only what is certain counts: too few of them are left to make up for it."""
        total = file.counts.prompts
        if beyond_doubt(spec, total):
            return ()
        found, splitter = Counter[str](), Splitter(spec.split, defaults)
        for chunk in range(-(-min(total, _SPLIT_BY_HAND) // file.chunk_size)):
            if splits_suffice(spec, found):
                return ()
            prompts = await self._store.files.chunk(file.id, chunk)
            found += await asyncio.to_thread(Counter, map(splitter.split_of, prompts))
        unread = total - found.total()
        train, holdout = found["train"] + unread, found["holdout"] + unread
        return [*split_faults(spec, PLACES[spec.source], train, holdout, total)]

    def _estimate(self, spec: JobSpec, asked: Asked) -> Estimate | None:
        """None when nothing of it has a price."""
        estimate = self._prices.estimate(
            spec,
            self._price_lists,
            prompts=asked.total,
            asked=asked.unanswered,
            prompt_bytes=asked.bytes,
        )
        return estimate if estimate.high_nano or not estimate.unpriced else None

    def _warnings(self, spec: JobSpec, asked: Asked, estimate: Estimate | None) -> Iterator[Advice]:
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
        if spec.teacher.samples > 1 and spec.teacher.params.get("temperature") == 0:
            yield Advice(
                code="samples_alike",
                message="At temperature 0 the teacher's samples of a prompt are mostly the same: there is little to "
                "choose from, and few pairs for dpo.",
            )
        if asked.unused_system_prompt:
            yield Advice(
                code="system_prompt_unused",
                message="Every prompt brings instructions of its own; the job's system prompt is used for none.",
            )
        if spec.store and not self._providers[spec.teacher.provider].can_store:
            yield Advice(code="store_ignored", message="The teacher's provider does not keep completions.")
        least = max((self._providers[student.provider].examples_min for student in spec.students), default=1)
        # With a higher min_accepted too few prompts are refused, and too few answers end the job before it trains.
        few = spec.curation.min_accepted < least and not stored
        if few and doubt_of_training(spec, asked.total, least) > _FEW_EXAMPLES_DOUBT:
            train = round(asked.total * (1 - spec.split.validation - spec.split.holdout))
            yield Advice(
                code="examples_few",
                message=f"About {train} prompts are for training, and a student's provider trains with no fewer than "
                f"{least} examples.  Send more, or set curation.min_accepted to {least}: then a job whose prompts "
                "cannot do is refused before anything is bought.",
            )
        if spec.split.holdout == 0:
            yield Advice(code="no_holdout", message="Without a holdout the students are trained and not judged.")
        elif not stored and (size := round(asked.total * spec.split.holdout)) < _SMALL_HOLDOUT:
            yield Advice(
                code="holdout_small",
                message=f"About {size} prompts are held out; the verdict will probably be inconclusive.",
            )


def unknown_file() -> ValidationFailed:
    return invalid([Fault("/source/file_id", "unknown_file", "is not one of your files; it may have expired")])


def unknown_job() -> ValidationFailed:
    return invalid([Fault("/source/job_id", "not_found", "is not one of your jobs; it may have been deleted")])


def _asked(
    spec: JobSpec, counts: PromptCounts, defaults: PromptDefaults, faults: Sequence[Fault], *, paid_by: Job | None
) -> Asked:
    """paid_by: the job that has asked the very same."""
    every = counts.prompts * spec.teacher.samples
    unanswered = counts.asked * spec.teacher.samples
    if paid_by is not None:
        unanswered = min(unanswered, _unpaid(spec, paid_by, counts.prompts))
    return Asked(
        total=counts.prompts,
        unanswered=unanswered,
        bytes=bytes_with(counts, defaults),
        # No text has more characters than its JSON has bytes.  Which prompts brought their answers is not counted.
        longest_bytes=longest_chars(counts, defaults) if unanswered == every else 0,
        tools=bool(defaults.tools) or counts.toolless < counts.prompts,
        unused_system_prompt=bool(spec.system_prompt)
        and not (counts.bare and defaults.system_prompt == spec.system_prompt),
        unreferenced=counts.unreferenced,
        pairable=counts.asked - counts.unpairable,
        faults=faults,
    )


def _kept_params(spec: JobSpec) -> JsonObject:
    """The teacher's parameters without those that are kept with each prompt."""
    return {name: value for name, value in spec.teacher.params.items() if name not in _PER_PROMPT and value is not None}


def _unpaid(spec: JobSpec, earlier: Job, total: int) -> int:
    """How many answers to the same prompts have yet to be bought, because the ledger cannot spare the call."""
    old, new = earlier.spec.teacher, spec.teacher
    if (old.provider, old.model, old.params) != (new.provider, new.model, _kept_params(spec)):
        return total * new.samples
    answered = earlier.counters.accepted + earlier.counters.rejected
    return total * new.samples - answered * min(old.samples, new.samples) // old.samples


def checked_job(job_id: str) -> JobId:
    if not is_id("job", job_id):
        raise NotFound("There is no such job.")
    return JobId(job_id)


def _checked_file(file_id: str | None) -> FileId:
    if file_id is None or not is_id("pf", file_id):
        raise NotFound("There is no such file.")
    return FileId(file_id)

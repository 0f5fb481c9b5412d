"""What can be known of a request before anything is spent: may the tenant use these providers, do they have these
models, and for how long.

The API never asks a provider.  It reads the catalogue that workers keep; without a fresh one nothing is refused here,
and the worker that begins the job looks again (worker/stages/preflight.py)."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final

import msgspec
from msgspec.structs import replace

from shared.catalogue import Catalogue, ListedModel
from shared.errors import Fault, Forbidden
from shared.ids import TenantId
from shared.models import Advice, JobSpec, usd
from shared.planning import Plan
from shared.pricing import Prices
from shared.retirement import parsed, retirement, retires_soon, training_closes
from shared.rules import invalid
from shared.settings import ProviderSettings
from shared.store import Store

_FRESH_SECONDS: Final = 3_600.0  # workers read it four times an hour
_REMEMBERED_SECONDS: Final = 10.0
_NEAR: Final = 3
_DAY_SECONDS: Final = 86_400


class Named(msgspec.Struct, frozen=True):
    """A model that a request names, and where."""

    pointer: str
    provider: str
    model: str


def named_models(spec: JobSpec) -> Iterator[Named]:
    """Those that will be called or trained.  A teacher whose answers are all stored is not asked."""
    if spec.stored is None:
        yield Named("/teacher/model", spec.teacher.provider, spec.teacher.model)
    for i, student in enumerate(spec.students):
        yield Named(f"/students/{i}/model", student.provider, student.model)
    graders = [(f"/evaluation/graders/{i}", grader) for i, grader in enumerate(spec.evaluation.graders)]
    for pointer, grader in [("/curation/grader", spec.curation.grader or {}), *graders]:
        provider, model = grader.get("provider"), grader.get("model")
        if isinstance(provider, str) and isinstance(model, str):
            yield Named(f"{pointer}/model", provider, model)


def require_allowed(spec: JobSpec, allowed: Collection[str] | None) -> None:
    """Raises Forbidden `provider_not_allowed`.  allowed: None for all."""
    if allowed is None:
        return
    named = [("/teacher/provider", spec.teacher.provider)]
    named += [(named.pointer.replace("/model", "/provider"), named.provider) for named in named_models(spec)]
    if spec.stored is not None:
        named.append(("/source/provider", spec.stored.provider))
    for pointer, provider in named:
        require_provider(pointer, provider, allowed)


def require_provider(pointer: str, provider: str, allowed: Collection[str] | None) -> None:
    """Raises Forbidden `provider_not_allowed`.  allowed: None for all."""
    if allowed is not None and provider not in allowed:
        may = ", ".join(sorted(allowed)) or "none"
        raise Forbidden(
            f"{pointer} is a provider that this API key or its tenant may not use; there is {may}.",
            code="provider_not_allowed",
            param=pointer,
        )


class Catalogues:
    """The workers' catalogues, remembered for a few seconds.

    Providers at the same address may be one account, whose models are at hand by either name: whose a model is, is told
    by the jobs at all of them."""

    def __init__(
        self, store: Store, providers: Mapping[str, ProviderSettings], *, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._clock = clock
        addresses = {name: str(provider.base_url).rstrip("/") for name, provider in providers.items()}
        self._together = {
            name: [other for other, theirs in addresses.items() if theirs == own] for name, own in addresses.items()
        }
        self._seen: dict[str, tuple[float, Catalogue]] = {}
        self._unowned: dict[str, set[str]] = {}  # of the models in a remembered catalogue, those that no job has made

    async def of(self, provider: str) -> Catalogue | None:
        """provider: a configured one, so that what is remembered stays small."""
        _, catalogues = await self.look_up([], [provider])
        return catalogues[provider]

    async def look_up(
        self, named: Sequence[Named], providers: Iterable[str]
    ) -> tuple[list[TenantId | None], Mapping[str, Catalogue | None]]:
        """(whose jobs have made each of these models, None for none; the providers' catalogues); one read at most."""
        now = self._clock()
        known: dict[str, Catalogue | None] = {}
        for provider in providers:
            seen = self._seen.get(provider)
            known[provider] = seen[1] if seen is not None and now - seen[0] < _REMEMBERED_SECONDS else None
        unread = [provider for provider, catalogue in known.items() if catalogue is None]
        asked = [each for each in named if known.get(each.provider) is None or not self._is_unowned(each)]
        if not (asked or unread):
            return [None] * len(named), known
        places = [(provider, each.model) for each in asked for provider in self._together[each.provider]]
        answers, found = await self._store.catalogues.look_up(places, unread)
        made_by = dict(zip(places, answers, strict=True))
        for provider, catalogue in zip(unread, found, strict=True):
            known[provider] = catalogue
            if catalogue is not None:
                self._seen[provider], self._unowned[provider] = (now, catalogue), set()
        owners: dict[Named, TenantId | None] = {}
        for each in asked:
            makers = (made_by[provider, each.model] for provider in self._together[each.provider])
            owners[each] = owner = next((maker for maker in makers if maker is not None), None)
            listed = known.get(each.provider)
            if owner is None and listed is not None and each.model in listed.models:
                self._unowned[each.provider].add(each.model)
        return [owners.get(each) for each in named], known

    def _is_unowned(self, named: Named) -> bool:
        """As last seen: a model that is listed before a job has made it is none of a job's."""
        return named.model in self._unowned[named.provider]

    def is_fresh(self, catalogue: Catalogue) -> bool:
        """False when it was not read lately, or the provider lists no models."""
        read_at_ms = catalogue.read_at_ms
        return read_at_ms is not None and self._clock() - read_at_ms / 1000 <= _FRESH_SECONDS

    def today_at(self, catalogue: Catalogue) -> date:
        """By the provider's own calendar."""
        read = parsed(catalogue.today) or self.today()
        return read + timedelta(seconds=max(0.0, self._clock() - (catalogue.read_at_ms or 0) / 1000))

    def today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    async def visible(self, provider: str, tenant: TenantId) -> tuple[Catalogue | None, set[str]]:
        """(catalogue, fine-tuned models in it that the tenant's own jobs have made), the latest of them before the
        provider's list is read again.  Others' are left out of it, and so is every `ft:` model that no job has made:
        tenants share the account, not its contents."""
        found = await self.of(provider)
        if found is None:
            return None, set()
        owners: dict[str, TenantId] = {}
        for name in self._together[provider]:
            owners |= await self._store.catalogues.all_owners(name)
        own = {name for name, owner in owners.items() if owner == tenant}
        made = await self._store.catalogues.made_lately(provider) if found.outcome != "unlisted" else {}
        lately = {name: ListedModel(created=at_ms // 1000) for name, at_ms in made.items()}
        models = {
            name: model
            for name, model in (lately | found.models).items()
            if name in own or not (name in owners or name.startswith("ft:"))
        }
        return replace(found, models=models), own & models.keys()


class Preflight:
    def __init__(
        self, store: Store, catalogues: Catalogues, *, providers: Mapping[str, ProviderSettings], prices: Prices
    ) -> None:
        self._store = store
        self._catalogues = catalogues
        self._providers = providers
        self._prices = prices

    async def cleared(self, tenant: TenantId, plan: Plan) -> Plan:
        """The plan with what else there is to warn of.  Raises ValidationFailed with every fault."""
        faults: list[Fault] = []
        advice: list[Advice] = []
        models = [*named_models(plan.spec)]
        owners, catalogues = await self._catalogues.look_up(models, [named.provider for named in models])
        for named, owner in zip(models, owners, strict=True):
            await self._look(tenant, named, owner, catalogues[named.provider], plan.spec, faults, advice)
        for i, student in enumerate(plan.spec.students):
            self._training(f"/students/{i}/provider", student.provider, faults, advice)
        faults += self.unpriced_faults(tenant, models)
        # A limit of nothing is told of, by another code, when the job is accepted.
        if limit := self._store.day_limit(tenant):
            faults += _above_a_day(plan, limit)
            advice += _days_of(plan, limit)
        if faults:
            raise invalid(faults)
        return replace(plan, warnings=[*plan.warnings, *dict.fromkeys(advice)])

    async def _look(
        self,
        tenant: TenantId,
        named: Named,
        owner: TenantId | None,
        catalogue: Catalogue | None,
        spec: JobSpec,
        faults: list[Fault],
        advice: list[Advice],
    ) -> None:
        """owner: whose jobs have made the model; None for nobody's."""
        if catalogue is not None and catalogue.outcome == "auth_failed":
            advice.append(
                Advice(
                    code="provider_key_refused",
                    message=f"The provider {named.provider} has refused the operator's key lately; the job will fail "
                    "unless that is mended.",
                )
            )
        if catalogue is not None and not self._catalogues.is_fresh(catalogue):
            catalogue = None
        if owner not in {None, tenant} or (catalogue is not None and named.model not in catalogue.models):
            # One of the tenant's own may be too fresh to be listed; some providers never list all that can be named.
            if owner == tenant or (owner is None and not self._providers[named.provider].lists_models):
                return
            faults.append(Fault(named.pointer, "model_unknown", await self._unknown(tenant, named)))
            return
        shutdown_date = None if catalogue is None else catalogue.models[named.model].shutdown_date
        if catalogue is None or shutdown_date is None:
            return
        match retirement(shutdown_date, self._catalogues.today_at(catalogue), spec):
            case "retired":
                detail = f"is a model that the provider retired on {shutdown_date}"
                faults.append(Fault(named.pointer, "model_retired", detail))
            case "soon":
                advice.append(retires_soon(named.pointer, shutdown_date))

    async def foreign_faults(self, tenant: TenantId, named: Sequence[Named]) -> list[Fault]:
        """Models among these that another tenant's jobs have made: of those, nobody else knows."""
        faults = []
        owners, _ = await self._catalogues.look_up(named, ())
        for each, owner in zip(named, owners, strict=True):
            if owner not in {None, tenant}:
                faults.append(Fault(each.pointer, "model_unknown", await self._unknown(tenant, each)))
        return faults

    async def _unknown(self, tenant: TenantId, named: Named) -> str:
        """Says the same of a model that is another tenant's as of none."""
        visible, _ = await self._catalogues.visible(named.provider, tenant)
        known = [] if visible is None else list(visible.models)
        near = difflib.get_close_matches(named.model[:64], known, n=_NEAR)
        return "is not a model of this provider" + (f"; did you mean {' or '.join(near)}?" if near else "")

    def _training(self, pointer: str, name: str, faults: list[Fault], advice: list[Advice]) -> None:
        last_day = self._providers[name].training_closes
        if last_day is None:
            return
        match training_closes(last_day, self._catalogues.today()):
            case "closed":
                detail = f"has taken no fine-tuning jobs since {last_day}; the dataset can be trained elsewhere"
                faults.append(Fault(pointer, "provider_training_closed", detail))
            case "soon":
                advice.append(
                    Advice(
                        code="provider_training_closes_soon",
                        message=f"The provider {name} takes new fine-tuning jobs until {last_day}; after that the "
                        "dataset can be exported and trained elsewhere.",
                    )
                )

    def unpriced_faults(self, tenant: TenantId, named: Iterable[Named]) -> list[Fault]:
        """Models among these by which the tenant's limit of the day could not be kept."""
        if self._store.day_limit(tenant) is None:
            return []
        detail = "has no known price, so your limit of the day cannot be kept; ask your operator for a price"
        return [
            Fault(each.pointer, "model_unpriced", detail)
            for each in named
            if not self._prices.is_priced(self._providers[each.provider].prices, each.model)
        ]


def _above_a_day(plan: Plan, limit: int) -> Iterator[Fault]:
    """limit: what the tenant may spend a day, in nano-dollars.  No other day would bring such a call."""
    for pointer, ceiling in plan.ceilings.items():
        if ceiling > limit:
            params = "sampling_params" if "grader" in pointer else "teacher.params"
            yield Fault(
                pointer,
                "cost_above_limit",
                f"may cost up to {usd(ceiling)} dollars a call, more than the {usd(limit)} dollars that your jobs may"
                f" spend a day; set max_completion_tokens in {params}, or ask your operator for more",
            )


def _days_of(plan: Plan, limit: int) -> Iterator[Advice]:
    """limit: as above."""
    estimate = plan.estimate
    if estimate is None or max(estimate.high_nano, estimate.training_high_nano) <= limit:
        return
    low, high = estimate.low_nano, estimate.high_nano
    waits = "the job is paused with daily_spend before it, until your operator allows more or its deadline ends it."
    message = f"The job may cost {usd(low)} to {usd(high)} dollars and your jobs may spend {usd(limit)} a day"
    training_low, training_high = usd(estimate.training_low_nano), usd(estimate.training_high_nano)
    if estimate.training_low_nano > limit:
        message += f".  A training reserves {training_low} dollars or more, which no day allows: {waits}"
    else:
        if high > limit:
            least, most = max(1, -(-low // limit)), -(-high // limit)
            days = f"{most}" if least == most else f"{least} to {most}"
            message += f": it takes about {days} days (UTC), and is paused with daily_spend in between"
            if (least - 1) * _DAY_SECONDS >= plan.spec.deadline_seconds:
                message += ".  Its deadline comes before that"
        message += "."
        if estimate.training_high_nano > limit:
            message += f"  A training may reserve up to {training_high} dollars; if no day allows that, {waits}"
    yield Advice(code="daily_spend_short", message=message)

"""What a request must keep to: pure functions of the request and of what the operator allows.

Each rule tells every fault it finds, with its place; the caller raises them together (`invalid`)."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Final

import msgspec

from shared.capabilities import hyperparameter_faults, params_faults
from shared.curation import Splitter, check_response_schema
from shared.errors import Fault, ValidationFailed, sentence
from shared.graders import ScoreModel, parse_grader, parse_graders
from shared.judge import judge_params
from shared.models import (
    NANO,
    Budget,
    JobSpec,
    JsonObject,
    Money,
    Prompt,
    PromptCounts,
    PromptDefaults,
    Student,
    StudentEndpoint,
    Teacher,
    usd,
)
from shared.pricing import Estimate, Prices, batch_nano
from shared.prompts import chars_of
from shared.settings import ProviderSettings
from shared.webhooks import check_url

_METADATA_PAIRS_STORED: Final = 14  # of the 16 a provider keeps, two are ours: by them a lost answer is found again
_BEYOND_DOUBT: Final = 1e-9
#: Where a request says which prompts it means.
PLACES: Final = {
    "inline": "/source/prompts",
    "file": "/source/file_id",
    "job": "/source/job_id",
    "stored_completions": "/source",
}


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
    active_jobs_by_tenant: Mapping[str, int | None] = field(default_factory=dict)

    def active_jobs_of(self, tenant: str) -> int | None:
        return self.active_jobs_by_tenant.get(tenant, self.active_jobs_max)


class Asked(msgspec.Struct, frozen=True):
    """What the rules need to know of the prompts as they will be asked, however many there are.

    unanswered: answers that the teacher still has to give.  bytes: of the parts of their requests that cost tokens.
    unused_system_prompt: no prompt takes the job's.  unreferenced: those without a reference.  pairable: those that may
    give a pair for dpo, or more; None when that is not known.  longest_bytes: at least those of the longest one that is
    still to be answered, as far as they are known.
    faults: what is wrong with the prompts themselves."""

    total: int
    unanswered: int
    bytes: int
    tools: bool
    longest_bytes: int = 0
    unused_system_prompt: bool = False
    unreferenced: int = 0
    pairable: int | None = None
    faults: Sequence[Fault] = ()


class Rules:
    """The rules of one installation: its providers, prices and limits."""

    def __init__(self, providers: Mapping[str, ProviderSettings], prices: Prices, limits: Limits) -> None:
        self._providers = providers
        self._prices = prices
        self._limits = limits

    def faults(self, spec: JobSpec, asked: Asked) -> Iterator[Fault]:
        yield from self._provider_faults(spec)
        yield from self._batch_faults(spec.teacher)
        yield from self._hyperparameter_faults(spec)
        yield from _sample_faults(spec)
        yield from self._method_faults(spec, asked)
        yield from _score_faults(spec, asked)
        yield from _judge_faults(spec)
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
        rater = (spec.curation.grader or {}).get("provider")
        if isinstance(rater, str):
            named.append(("/curation/grader/provider", rater, False))
        for pointer, name, trains in named:
            provider = self._providers.get(name)
            if provider is None:
                yield self._unknown(pointer, name)
            elif trains and not provider.can_train:
                yield Fault(
                    pointer, "provider_training_closed", "takes no fine-tuning jobs; its dataset can be exported"
                )

    def _unknown(self, pointer: str, name: str) -> Fault:
        near = difflib.get_close_matches(name[:64], list(self._providers), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there is {listed(sorted(self._providers))}"
        return Fault(pointer, "unknown_provider", "is not a configured provider" + hint)

    def endpoint_faults(self, student: Student, endpoint: StudentEndpoint, *, limited: bool) -> Iterator[Fault]:
        """limited: whether money is counted, so that what answers there must have a price."""
        price_list = self.price_list(endpoint.provider)
        if endpoint.provider not in self._providers:
            yield self._unknown("/provider", endpoint.provider)
        elif limited and not self._prices.is_priced(price_list, f"ft:{student.model}"):
            detail = "has no known price for this student, so the budget cannot be kept; ask the operator for a price"
            yield Fault("/provider", "model_unpriced", detail)

    def stored_faults(self, spec: JobSpec) -> Iterator[Fault]:
        name = spec.stored.provider if spec.stored is not None else ""
        if name not in self._providers:
            known = listed(sorted(self._providers))
            yield Fault("/source/provider", "unknown_provider", f"is not a configured provider; there is {known}")
        elif not self._providers[name].can_store:
            yield Fault("/source/provider", "invalid_value", "is a provider that does not keep completions")

    def _method_faults(self, spec: JobSpec, asked: Asked) -> Iterator[Fault]:
        samples, grader = spec.teacher.samples, spec.curation.grader
        # Where a text grader has no reference to score by, the samples are held against each other.
        equals = grader is None or (grader.get("type") != "score_model" and asked.unreferenced > 0)
        for i, student in enumerate(spec.students):
            if student.method != "dpo":
                if "beta" in student.hyperparameters:
                    yield Fault(f"/students/{i}/hyperparameters/beta", "unsupported_param", "is for method dpo alone")
            elif (provider := self._providers.get(student.provider)) is not None and not provider.can_dpo:
                yield Fault(
                    f"/students/{i}/method", "unsupported_param", "must be supervised; this provider has no dpo"
                )
            elif samples < 2:
                detail = "learns from pairs of answers; ask for them with teacher.samples of 2 to 8"
                yield Fault(f"/students/{i}/method", "invalid_value", detail)
            elif samples == 2 and equals:
                lacking = "curation.grader" if grader is None else "a reference in every prompt"
                detail = f"must be at least 3 for dpo without {lacking}: two answers agree with each other equally"
                yield Fault("/teacher/samples", "invalid_value", detail)
        needed = spec.curation.min_accepted
        learns = samples > 1 and any(student.method == "dpo" for student in spec.students)
        if learns and asked.pairable is not None and asked.pairable < needed <= asked.total:
            yield Fault(
                PLACES[spec.source],
                "too_few_prompts",
                f"have {asked.pairable:,} of {asked.total:,} that could give a pair for dpo (one turn of text, without"
                f" an answer of its own), and curation.min_accepted asks for {needed:,}",
            )

    def _batch_faults(self, teacher: Teacher) -> Iterator[Fault]:
        if teacher.mode != "batch":
            return
        provider = self._providers.get(teacher.provider)
        if provider is not None and not provider.can_batch:
            yield Fault("/teacher/mode", "unsupported_param", "must be live; this provider serves no batches")
        if teacher.params.get("service_tier") is not None:
            yield Fault("/teacher/params/service_tier", "unsupported_param", "is not for batches; they have one tier")

    def _hyperparameter_faults(self, spec: JobSpec) -> Iterator[Fault]:
        for i, student in enumerate(spec.students):
            provider = self._providers.get(student.provider)
            if provider is not None:
                pointer = f"/students/{i}/hyperparameters"
                yield from hyperparameter_faults(student.hyperparameters, provider.hyperparameters, pointer=pointer)

    def prompt_faults(
        self, spec: JobSpec, prompts: Sequence[Prompt], counts: PromptCounts, defaults: PromptDefaults
    ) -> Iterator[Fault]:
        """counts: of these prompts.  defaults: what the job says for all of them."""
        place, limits = PLACES[spec.source], self._limits
        if len(prompts) > limits.prompts_max:
            yield Fault(place, "too_many_prompts", f"must be at most {limits.prompts_max:,}")
            return
        if spec.source == "inline" and counts.longest_chars > limits.prompt_max_chars:
            for i, prompt in enumerate(prompts):
                if chars_of(prompt) > limits.prompt_max_chars:
                    detail = f"is longer than {limits.prompt_max_chars:,} characters"
                    yield Fault(f"{place}/{i}", "prompt_too_long", detail)
        else:
            yield from self.length_faults(spec, counts, defaults)
        # To know a split is to take a prompt's words apart, the dearest part of a plan: no more than needed.
        if beyond_doubt(spec, len(prompts)):
            return
        found, splitter = Counter[str](), Splitter(spec.split, defaults)
        for prompt in prompts:
            found[splitter.split_of(prompt)] += 1
            if splits_suffice(spec, found):
                return
        yield from split_faults(spec, place, found["train"], found["holdout"], len(prompts))

    def length_faults(self, spec: JobSpec, counts: PromptCounts, defaults: PromptDefaults) -> Iterator[Fault]:
        """What the job says for all must fit beside the longest prompt that takes it."""
        limit = self._limits.prompt_max_chars
        if counts.bare and counts.longest_bare_chars + len(defaults.system_prompt or "") > limit:
            detail = f"makes a prompt longer than {limit:,} characters"
            yield Fault("/system_prompt", "prompt_too_long", detail)
        elif counts.longest_chars > limit:  # the operator has lowered it since
            yield Fault(PLACES[spec.source], "prompt_too_long", f"has a prompt of more than {limit:,} characters")

    def budget_faults(
        self, budget: Budget, spec: JobSpec, estimate: Estimate | None, *, money: Money | None = None
    ) -> Iterator[Fault]:
        """estimate: for a new job.  money: of one that has begun."""
        limit = budget.max_cost_nano
        if limit is None:
            return
        for pointer, price_list, model in self._billed(spec):
            if not self._prices.is_priced(price_list, model):
                yield Fault(
                    pointer, "model_unpriced", "has no known price, so a budget cannot be kept; leave the budget out"
                )
        where = "/budget/max_cost_usd"
        if estimate is not None and limit < estimate.low_nano:
            yield Fault(where, "cost_above_limit", f"is below the least this job will cost, {usd(estimate.low_nano)}")
        if money is None:
            return
        used, needs = money.used_nano, money.needs_nano
        if needs and limit < used + needs:
            detail = f"must be at least {usd(used + needs)}: {usd(used)} is used"
            yield Fault(where, "cost_above_limit", f"{detail}, and the next step may cost {usd(needs)}")
        elif limit <= used:
            yield Fault(where, "cost_above_limit", f"must be more than what is used already, {usd(used)}")

    def ceilings(self, spec: JobSpec, asked: Asked) -> dict[str, int]:
        """What one call of each model reserves, in nano-dollars, by where the request names it.

        The teacher's is of the longest prompt, the others' of a mean one.  Those that are not called, and those without
        a known price, are left out."""
        found: dict[str, int] = {}
        for call in _dearest_calls(spec, asked):
            ceiling = self._prices.ceiling_nano(
                self.price_list(call.provider),
                call.model,
                prompt_bytes=call.prompt_bytes,
                max_completion_tokens=call.params.get("max_completion_tokens") or call.params.get("max_tokens"),
                service_tier=call.params.get("service_tier"),
            )
            if ceiling is not None and call.batched:
                ceiling = batch_nano(ceiling)
            if ceiling is not None:
                found[call.pointer] = max(ceiling, found.get(call.pointer, 0))
        return found

    def _billed(self, spec: JobSpec) -> Iterator[tuple[str, str | None, str]]:
        """(pointer, price list, model) of every model that will be called."""
        yield "/teacher/model", self.price_list(spec.teacher.provider), spec.teacher.model
        for i, student in enumerate(spec.students):
            yield f"/students/{i}/model", self.price_list(student.provider), student.model
        for pointer, judge in judges_of(spec):
            yield f"{pointer}/model", self.price_list(judge.provider), judge.model

    def price_list(self, provider: str) -> str | None:
        found = self._providers.get(provider)
        return None if found is None else found.prices


class _Call(msgspec.Struct, frozen=True):
    """params: what of the request bounds its price."""

    pointer: str
    provider: str
    model: str
    prompt_bytes: int
    params: JsonObject
    batched: bool = False


def _dearest_calls(spec: JobSpec, asked: Asked) -> Iterator[_Call]:
    teacher, mean = spec.teacher, asked.bytes // max(1, asked.total)
    if asked.unanswered:
        longest, batched = max(mean, asked.longest_bytes), teacher.mode == "batch"
        yield _Call("/teacher/model", teacher.provider, teacher.model, longest, teacher.params, batched)
    if spec.split.holdout:
        params = teacher.params | {"service_tier": None}
        for i, student in enumerate(spec.students):
            for model in (student.model, f"ft:{student.model}"):
                yield _Call(f"/students/{i}/model", student.provider, model, mean, params)
    for pointer, judge in judges_of(spec):
        if spec.split.holdout or pointer == "/curation/grader":
            yield _Call(f"{pointer}/model", judge.provider, judge.model, mean, judge_params(judge))


def _sample_faults(spec: JobSpec) -> Iterator[Fault]:
    if spec.teacher.samples == 1:
        return
    if spec.teacher.mode == "batch":
        yield Fault("/teacher/samples", "unsupported_param", "must be 1 where teacher.mode is batch")
    if spec.source == "stored_completions":
        yield Fault("/teacher/samples", "unsupported_param", "must be 1 for stored completions; nothing is generated")


def judges_of(spec: JobSpec) -> list[tuple[str, ScoreModel]]:
    """(pointer, judge) of every grader that is a model.  With one among them, raises `ValidationFailed` for any that is
    no grader at all."""
    given = [*spec.evaluation.graders, spec.curation.grader or {}]
    if not any(grader.get("type") == "score_model" for grader in given):
        return []  # as of most requests
    graders = [(f"/evaluation/graders/{i}", grader) for i, grader in enumerate(parse_graders(spec.evaluation.graders))]
    if spec.curation.grader is not None:
        graders.insert(0, ("/curation/grader", parse_grader(spec.curation.grader, "/curation/grader")))
    return [(pointer, grader) for pointer, grader in graders if isinstance(grader, ScoreModel)]


def _judge_faults(spec: JobSpec) -> Iterator[Fault]:
    try:
        judges = judges_of(spec)
    except ValidationFailed:
        return  # told of elsewhere
    for pointer, judge in judges:
        params = judge.sampling_params or {}
        yield from params_faults(judge.model, params, tools=False, pointer=f"{pointer}/sampling_params")


def _score_faults(spec: JobSpec, asked: Asked) -> Iterator[Fault]:
    curation = spec.curation
    if curation.grader is None:
        if curation.min_score is not None:
            yield Fault("/curation/min_score", "invalid_value", "needs curation.grader, which gives the score")
        return
    grader = curation.grader
    found = _raised(lambda: parse_grader(grader, "/curation/grader"))
    yield from found
    if not found and curation.min_score is not None and grader["type"] != "score_model" and asked.unreferenced:
        yield Fault(
            "/curation/min_score",
            "reference_missing",
            f"needs a reference in every prompt, and {asked.unreferenced:,} of {asked.total:,} have none; a grader of"
            " type score_model needs none",
        )


def invalid(faults: Sequence[Fault]) -> ValidationFailed:
    """All faults as one error, named after the first."""
    first = faults[0]
    more = f" And {len(faults) - 1} more." if len(faults) > 1 else ""
    own = first.code if first.code in NAMED_FAULTS else None
    where = first.pointer or "The body"
    return ValidationFailed(sentence(f"{where} {first.detail}") + more, code=own, param=first.pointer, faults=faults)


#: Faults that give the whole answer their code; all others are `validation_failed`.
NAMED_FAULTS: Final = frozenset(
    {
        "too_few_prompts",
        "too_many_prompts",
        "prompt_too_long",
        "duplicate_prompt_key",
        "unsupported_param",
        "model_unknown",
        "model_retired",
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


def beyond_doubt(spec: JobSpec, total: int) -> bool:
    """Whether so many prompts leave enough in each split, whatever they are: a hash draws each one's split, and chance
    would fail one request in a billion.  Equal prompts share a draw; of those curating keeps one."""
    short_of_train = doubt_of_training(spec, total, spec.curation.min_accepted)
    short_of_holdout = (1 - spec.split.holdout) ** total if spec.split.holdout else 0.0
    return short_of_train + short_of_holdout < _BEYOND_DOUBT


def doubt_of_training(spec: JobSpec, total: int, needed: int) -> float:
    """The most that the probability can be of fewer than `needed` prompts for training, of so many in all."""
    spare = total * (1 - spec.split.validation - spec.split.holdout) - needed
    return math.exp(-2 * spare**2 / total) if spare > 0 else 1.0  # Hoeffding's bound


def splits_suffice(spec: JobSpec, found: Mapping[str, int]) -> bool:
    """Whether `split_faults` has nothing to say, however many more prompts there are."""
    return found["train"] >= spec.curation.min_accepted and bool(found["holdout"] or not spec.split.holdout)


def split_faults(spec: JobSpec, place: str, train: int, holdout: int, total: int) -> Iterator[Fault]:
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


def _raised(check: Callable[[], object]) -> Sequence[Fault]:
    try:
        check()
    except ValidationFailed as error:
        return error.faults
    return ()


def listed(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "none configured"

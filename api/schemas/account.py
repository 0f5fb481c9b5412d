"""What a tenant may, has spent, and can ask of the providers."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Literal, Self

from api.schemas.common import Response
from shared.catalogue import ListedModel
from shared.models import usd
from shared.pricing import Prices
from shared.retirement import is_retired
from shared.settings import ProviderSettings, Settings
from shared.store.spending import DayUsage, Standing


class PricesOut(Response):
    """Dollars per million tokens.  training: per million trained tokens."""

    input_usd: str | None
    cached_input_usd: str | None
    output_usd: str | None
    training_usd: str | None


class ModelOut(Response):
    """id: of this list alone, `<provider>/<model>`; jobs name `provider` and `model`.  can_train: false when the
    provider takes no fine-tuning jobs or has retired the model; true is no promise, for which of its models a provider
    trains, only its own documentation says.  shutdown_date: the day it retires, "YYYY-MM-DD".  retired: that day has
    come, by the provider's calendar.  fine_tuned: made by one of your jobs, and listed at once."""

    id: str
    object: Literal["model"]
    provider: str
    model: str
    created: int | None
    owned_by: str | None
    prices: PricesOut
    shutdown_date: str | None
    retired: bool
    can_train: bool
    fine_tuned: bool

    @classmethod
    def of(
        cls,
        provider: str,
        name: str,
        model: ListedModel,
        *,
        settings: ProviderSettings,
        prices: Prices,
        today: date,
        fine_tuned: bool,
    ) -> Self:
        rates = prices.per_million(settings.prices, name) or {}
        retired = is_retired(model.shutdown_date, today)
        can_train = settings.can_train and not retired
        training = prices.training_nano(settings.prices, name, 1_000_000) if can_train else None
        return cls(
            id=f"{provider}/{name}",
            object="model",
            provider=provider,
            model=name,
            created=model.created,
            owned_by=model.owned_by,
            prices=PricesOut(
                input_usd=rates.get("input"),
                cached_input_usd=rates.get("cached_input"),
                output_usd=rates.get("output"),
                training_usd=None if training is None else usd(training),
            ),
            shutdown_date=model.shutdown_date,
            retired=retired,
            can_train=can_train,
            fine_tuned=fine_tuned,
        )


class DayTokens(Response):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class UsageDayOut(Response):
    """One day, in UTC, on which your jobs have spent something.  created_at: its first second.

    spent_usd: completions count on the day they arrived, trainings when they ended.
    unconfirmed_usd: the most that calls whose answers were lost that day, and trainings of which the provider does not
    say what it bills, may have cost.
    completions_reused: taken from the ledger, or sent with the prompts."""

    id: str
    object: Literal["usage.day"]
    created_at: int
    spent_usd: str
    unconfirmed_usd: str
    tokens: DayTokens
    completions_bought: int
    completions_reused: int

    @classmethod
    def of(cls, day: DayUsage) -> Self:
        return cls(
            id=day.day.isoformat(),
            object="usage.day",
            created_at=int(datetime.combine(day.day, time(), UTC).timestamp()),
            spent_usd=usd(day.spent_nano),
            unconfirmed_usd=usd(day.unconfirmed_nano),
            tokens=DayTokens(
                prompt_tokens=day.usage.prompt_tokens,
                cached_tokens=day.usage.cached_tokens,
                completion_tokens=day.usage.completion_tokens,
                reasoning_tokens=day.usage.reasoning_tokens,
            ),
            completions_bought=day.bought,
            completions_reused=day.reused,
        )


class RequestLimits(Response):
    """left: as this API process knows it; null where any number is allowed."""

    per_minute: int | None
    left: int | None


class JobLimits(Response):
    """active: queued or running."""

    active: int
    active_max: int | None
    retention_days_max: int


class PromptLimits(Response):
    inline_max: int
    file_max: int
    max_chars: int


class SpendLimits(Response):
    """Of the day that ends at resets_at.  reserved_usd: the most that calls and trainings under way can cost.
    left_usd: what more may be begun; null without a limit."""

    limit_usd: str | None
    spent_usd: str
    unconfirmed_usd: str
    reserved_usd: str
    left_usd: str | None
    resets_at: int


class LimitsOut(Response):
    """Null where there is no limit.  streams_max: open at once, per API process.  providers: those you may name."""

    object: Literal["limits"]
    requests: RequestLimits
    jobs: JobLimits
    prompts: PromptLimits
    body_max_bytes: int
    file_max_bytes: int
    streams_max: int
    spend: SpendLimits
    providers: list[str]

    @classmethod
    def of(
        cls,
        settings: Settings,
        tenant: str,
        standing: Standing,
        *,
        active: int,
        requests_left: int | None,
        providers: list[str],
        now: int,
    ) -> Self:
        own = settings.tenant(tenant)
        left = standing.left_nano
        return cls(
            object="limits",
            requests=RequestLimits(per_minute=own.requests_per_minute or None, left=requests_left),
            jobs=JobLimits(
                active=active,
                active_max=own.active_jobs_max or None,
                retention_days_max=settings.retention_days_max,
            ),
            prompts=PromptLimits(
                inline_max=settings.inline_prompts_max,
                file_max=settings.file_max_prompts,
                max_chars=settings.prompt_max_chars,
            ),
            body_max_bytes=settings.body_max_bytes,
            file_max_bytes=settings.file_max_bytes,
            streams_max=settings.streams_per_tenant_max,
            spend=SpendLimits(
                limit_usd=None if standing.limit_nano is None else usd(standing.limit_nano),
                spent_usd=usd(standing.today.spent_nano),
                unconfirmed_usd=usd(standing.today.unconfirmed_nano),
                reserved_usd=usd(standing.reserved_nano),
                left_usd=None if left is None else usd(left),
                resets_at=now + standing.seconds_left,
            ),
            providers=providers,
        )

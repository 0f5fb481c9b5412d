"""What calls cost: exact, in whole nano-dollars, always rounded up.

Prices come from the operator's file, else from the `genai-prices` package.  A model that neither knows is unpriced,
which is `None` everywhere and never 0.  An operator's file has one table per price list and model, in dollars per
million tokens, as strings so that they stay exact:

    [openai."gpt-4.1-mini"]
    input = "0.40"
    cached_input = "0.10"    # default: as input
    output = "1.60"
    training = "5.00"        # default: unknown

    [my-vllm."*"]            # every model of that list that has no table of its own
    input = "0"
    output = "0"
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Final

import msgspec
from genai_prices.data_snapshot import find_provider_by_id, get_snapshot
from genai_prices.types import ModelInfo, ModelPrice, TieredPrices

from shared.estimate import LEAST, MOST, Size, expected_calls, expected_trainings, per_prompt
from shared.models import JobSpec, JsonObject, Prompt, Usage, usd
from shared.price_file import read_prices

_encode: Final = msgspec.json.Encoder().encode
_SIZE_OF_NOTHING: Final = len('{"messages":,"tools":[],"response_format":{}}')
_FEMTO_IN_NANO: Final = 1_000_000  # rates are whole femto-dollars per token, so that "$0.0375 a million" stays exact
_CACHED_SECONDS: Final = 60.0  # some prices change on a date or by the hour
_CACHED_MODELS: Final = 1_024  # model names come from requests; the memory of them is bounded
_CALL_SECONDS: Final = 900  # a call reserved now may be billed at the price of so much later

#: Tokens that no byte of the request accounts for: chat template, tool and schema preambles.
REQUEST_OVERHEAD_TOKENS: Final = 256
#: Upper bound of one image or other part that is not text; gpt-4o-mini bills up to 48,169 for one image.
MEDIA_PART_TOKENS: Final = 60_000
#: Largest answer of a model whose limit is not in the table below.
OUTPUT_LIMIT_TOKENS: Final = 131_072
#: Largest answers as OpenAI's model pages name them; the longest prefix wins.
_OUTPUT_LIMITS: Final[Mapping[str, int]] = {
    "gpt-3.5-turbo": 4_096,
    "gpt-4": 8_192,
    "gpt-4-turbo": 4_096,
    "gpt-4o": 16_384,
    "gpt-4.1": 32_768,
    "gpt-4.5": 16_384,
    "o1": 100_000,
    "o3": 100_000,
    "o4": 100_000,
}

# Fine-tuning, which genai-prices does not carry for the 4.1 family: what a fine-tuned model costs against its base, and
# dollars per million trained tokens.  From https://platform.openai.com/docs/pricing, section "Fine-tuning", read in a
# copy of mid-2025 and one of https://openai.com/api/pricing from after gpt-5-pro, which agree; newer prices go into the
# operator's file.
_FINE_TUNED_FACTOR: Final = {"gpt-4.1": Decimal("1.5"), "gpt-4.1-mini": Decimal(2), "gpt-4.1-nano": Decimal(2)}
_TRAINING: Final = {
    "gpt-4o": Decimal(25),
    "gpt-4o-mini": Decimal(3),
    "gpt-4.1": Decimal(25),
    "gpt-4.1-mini": Decimal(5),
    "gpt-4.1-nano": Decimal("1.5"),
}


@dataclass(frozen=True, slots=True)
class _Band:
    """Rates in femto-dollars per token, for prompts of more than `over` tokens.  request: per call."""

    over: int
    input: int
    cached: int
    written: int
    output: int
    reasoning: int
    media: int
    request: int


_Bands = tuple[_Band, ...]


class Estimate(msgspec.Struct, frozen=True):
    """What a whole job may cost.  unpriced: pointers of the models whose calls or training have no known price.

    training_low_nano, training_high_nano: what is reserved for the dearest of its trainings, before it begins."""

    low_nano: int
    high_nano: int
    unpriced: tuple[str, ...] = ()
    training_low_nano: int = 0
    training_high_nano: int = 0


class Prices:
    """All prices known to this process."""

    def __init__(self, prices_file: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """Raises ValueError, with the place, for a price file that cannot be used."""
        self._own = read_prices(prices_file) if prices_file is not None else {}
        self._clock = clock
        self._bands: dict[tuple[str, str, str | None], tuple[float, _Bands | None]] = {}

    def lists(self) -> set[str]:
        """Names of all price lists: those of the operator's file and of genai-prices."""
        return {*self._own, *(provider.id for provider in get_snapshot().providers)}

    def is_priced(self, price_list: str | None, model: str) -> bool:
        return self._rates(price_list, model, None) is not None

    def cost_nano(
        self, price_list: str | None, model: str, usage: Usage, *, service_tier: str | None = None
    ) -> int | None:
        """What one call cost; None when unpriced.  service_tier: as the answer names it, when it does."""
        bands = self._rates(price_list, model, service_tier)
        if bands is None:
            return None
        band = _band_of(bands, usage.prompt_tokens)
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        written = min(usage.cache_write_tokens, usage.prompt_tokens - cached)
        reasoning = min(usage.reasoning_tokens, usage.completion_tokens)
        return _nano(
            (usage.prompt_tokens - cached - written) * band.input
            + cached * band.cached
            + written * band.written
            + (usage.completion_tokens - reasoning) * band.output
            + reasoning * band.reasoning
            + band.request
        )

    def ceiling_nano(
        self,
        price_list: str | None,
        model: str,
        *,
        prompt_bytes: int,
        max_completion_tokens: int | None,
        media_parts: int = 0,
        service_tier: str | None = None,
    ) -> int | None:
        """The most one call can cost; None when unpriced.  What is reserved of a budget before the call is made.

        prompt_bytes: UTF-8 length of the request's JSON (`request_size`).  Every tokenizer in use maps at least one
        byte to a token, so tokens <= bytes, plus a constant for what the provider's template adds.
        max_completion_tokens: hidden reasoning counts against it; None means the model's own limit.
        The dearest rate that applies anywhere below that many tokens is taken, now and at the end of the call."""
        now = self._clock()
        first = self._rates(price_list, model, service_tier)
        if first is None:
            return None
        later = self._rates(price_list, model, service_tier, at=now + _CALL_SECONDS) or ()
        tokens = prompt_bytes + REQUEST_OVERHEAD_TOKENS
        media = media_parts * MEDIA_PART_TOKENS
        output = max_completion_tokens if max_completion_tokens is not None else output_limit(model)
        reachable = [band for band in (*first, *later) if band.over < tokens + media]
        return _nano(
            tokens * max(max(b.input, b.written, b.cached) for b in reachable)
            + media * max(max(b.media, b.written) for b in reachable)
            + output * max(max(b.output, b.reasoning) for b in reachable)
            + max(b.request for b in reachable)
        )

    def training_nano(self, price_list: str | None, model: str, trained_tokens: int) -> int | None:
        """What a fine-tune of `model` cost.  trained_tokens: over all epochs, as the provider counts them."""
        if price_list is None:
            return None
        table = self._own_table(price_list, model)
        rate = table.get("training") if table is not None else None
        if rate is None and price_list in ("openai", "azure"):
            rate = _TRAINING.get(_family(_base_of(model) or model))
        return None if rate is None else _nano(trained_tokens * _femto(rate))

    def per_million(self, price_list: str | None, model: str) -> dict[str, str] | None:
        """Dollars per million tokens: input, cached_input, output; None when unpriced.  Of a short prompt, where the
        price grows with it."""
        bands = self._rates(price_list, model, None)
        if bands is None:
            return None
        # A femto-dollar per token is a nano-dollar per million tokens.
        return {name: usd(rate) for name, rate in _named_rates(bands[0])}

    def estimate(
        self, spec: JobSpec, price_lists: Mapping[str, str | None], *, prompts: int, asked: int, prompt_bytes: int
    ) -> Estimate:
        """What the job may cost: a range to plan by (shared/estimate.py), not a bound.

        price_lists: by provider name.  asked: answers that the teacher still has to give."""
        size = Size(prompts, asked, prompt_bytes)
        totals, unpriced, reserved = [0, 0], [], [0, 0]
        for place, end in enumerate((LEAST, MOST)):
            each_prompt = per_prompt(spec, size, end)
            for training in expected_trainings(spec, size, end, each_prompt):
                price_list = price_lists.get(training.provider)
                cost = self.training_nano(price_list, training.model, training.tokens)
                totals[place] += cost or 0
                if cost is None:
                    unpriced.append(training.pointer)
                else:
                    reserve = self.training_nano(price_list, training.model, training.reserved) or 0
                    reserved[place] = max(reserved[place], reserve)
            for calls in expected_calls(spec, size, end, each_prompt):
                each = self.cost_nano(price_lists.get(calls.provider), calls.model, calls.usage)
                if calls.pointer == "/teacher/model" and spec.teacher.mode == "batch" and each is not None:
                    each = batch_nano(each)
                totals[place] += int((each or 0) * calls.count)
                if each is None and calls.count:
                    unpriced.append(calls.pointer)
        return Estimate(totals[0], totals[1], tuple(dict.fromkeys(unpriced)), *reserved)

    def _rates(self, price_list: str | None, model: str, tier: str | None, *, at: float | None = None) -> _Bands | None:
        """Bands in order of `over`.  at: unix seconds, else now."""
        if price_list is None:
            return None
        now = self._clock()
        key = (price_list, model, tier) if at is None else (price_list, f"\0later\0{model}", tier)
        found = self._bands.get(key)
        if found is not None and found[0] > now:
            return found[1]
        bands = self._look_up(price_list, model, tier, datetime.fromtimestamp(at or now, UTC))
        if len(self._bands) >= _CACHED_MODELS:
            self._bands.clear()
        self._bands[key] = (now + _CACHED_SECONDS, bands)
        return bands

    def _look_up(self, price_list: str, model: str, tier: str | None, at: datetime) -> _Bands | None:
        table = self._own_table(price_list, model)
        if table is not None:
            return _own_bands(table)
        known = _published(price_list, model, tier, at)
        if known is not None:
            return known
        base = _base_of(model)
        if base is None:
            return None
        bands = _published(price_list, base, tier, at)
        factor = _FINE_TUNED_FACTOR.get(_family(base), Decimal(1)) if price_list in ("openai", "azure") else Decimal(1)
        return None if bands is None else tuple(_scaled(band, factor) for band in bands)

    def _own_table(self, price_list: str, model: str) -> Mapping[str, Decimal] | None:
        tables = self._own.get(price_list, {})
        base = _base_of(model)
        for name in (model, base, "*"):
            if name is not None and name in tables:
                return tables[name]
        return None


def _named_rates(band: _Band) -> tuple[tuple[str, int], ...]:
    return ("input", band.input), ("cached_input", band.cached), ("output", band.output)


def batch_nano(nano: int) -> int:
    """What a call costs in a batch, of what it costs otherwise: half, rounded up (OpenAI's and its followers' price).

    No price list carries it, and the tier an answer names does not change it."""
    return -(-nano // 2)


def request_size(body: JsonObject) -> tuple[int, int]:
    """(prompt_bytes, media_parts) of a Chat Completions request, for `ceiling_nano`.

    Whole parts of the JSON are counted, keys and quotes included: more bytes than the tokens they can become."""
    counted = {name: body[name] for name in ("messages", "tools", "functions", "response_format") if name in body}
    return len(msgspec.json.encode(counted)), sum(
        1
        for message in body.get("messages", ())
        if isinstance(message.get("content"), list)
        for part in message["content"]
        if part.get("type") not in ("text", "refusal")
    )


def prompt_size(prompt: Prompt) -> int:
    """Bytes of one prompt as it will be asked: `request_size` of its messages, tools and response format."""
    size = _SIZE_OF_NOTHING + len(_encode(prompt.messages))
    if prompt.tools:
        size += len(_encode(prompt.tools)) - len("[]")
    if prompt.response_format:
        size += len(_encode(prompt.response_format)) - len("{}")
    return size


def output_limit(model: str) -> int:
    """The longest answer of a model, in tokens: an upper bound where it is not known."""
    name = _base_of(model) or model
    matching = [prefix for prefix in _OUTPUT_LIMITS if name == prefix or name.startswith(prefix + "-")]
    return _OUTPUT_LIMITS[max(matching, key=len)] if matching else OUTPUT_LIMIT_TOKENS


def _base_of(model: str) -> str | None:
    """The base of a fine-tuned model (`ft:<base>:<organisation>:<suffix>:<id>`), None for any other name."""
    return model.split(":")[1] if model.startswith("ft:") else None


def _family(model: str) -> str:
    """A model without the date of its snapshot: gpt-4.1-mini-2025-04-14 → gpt-4.1-mini."""
    head, _, tail = model.rpartition("-20")
    return head if head and len(tail) == len("25-04-14") and tail.replace("-", "").isdigit() else model


def _femto(dollars_per_million: Decimal) -> int:
    """Femto-dollars per token.  1 dollar a million tokens = 10^15 / 10^6 femto-dollars a token."""
    return int((dollars_per_million * 1_000_000_000).to_integral_value(ROUND_CEILING))


def _nano(femto: int) -> int:
    return -(-femto // _FEMTO_IN_NANO)


def _band_of(bands: _Bands, prompt_tokens: int) -> _Band:
    """A whole call is billed at the rates of the band its prompt falls into."""
    return next(band for band in reversed(bands) if prompt_tokens > band.over)


def _scaled(band: _Band, factor: Decimal) -> _Band:
    def by(rate: int) -> int:
        return int((rate * factor).to_integral_value(ROUND_CEILING))

    return _Band(
        over=band.over,
        input=by(band.input),
        cached=by(band.cached),
        written=by(band.written),
        output=by(band.output),
        reasoning=by(band.reasoning),
        media=by(band.media),
        request=by(band.request),
    )


def _published(price_list: str, model: str, tier: str | None, at: datetime) -> _Bands | None:
    """As genai-prices has it.  Its own look-up remembers every name it was ever asked, so it is not used."""
    providers = get_snapshot().providers
    provider = find_provider_by_id(providers, price_list)
    info: ModelInfo | None = provider.find_model(model, all_providers=providers) if provider is not None else None
    if info is None:
        return None
    return _bands_of(info.get_prices(at, {"service_tier": tier} if tier else None))


def _bands_of(price: ModelPrice) -> _Bands | None:
    if price.input_mtok is None or price.output_mtok is None:
        return None
    starts = {-1}
    for value in price.__dict__.values():
        if isinstance(value, TieredPrices):
            starts |= {tier.start for tier in value.tiers}

    def rate(value: Decimal | TieredPrices | None, start: int) -> int | None:
        if isinstance(value, TieredPrices):
            tiers = [tier.price for tier in value.tiers if start >= tier.start]
            value = tiers[-1] if tiers else value.base
        return None if value is None else _femto(value)

    bands = []
    for start in sorted(starts):
        plain, output = rate(price.input_mtok, start) or 0, rate(price.output_mtok, start) or 0
        media = [rate(value, start) or plain for value in (price.input_image_mtok, price.input_audio_mtok)]
        cached, written = rate(price.cache_read_mtok, start), rate(price.cache_write_mtok, start)
        reasoning, calls = rate(price.output_reasoning_mtok, start), rate(price.requests_kcount, start)
        bands.append(
            _Band(
                over=start,
                input=plain,
                cached=plain if cached is None else cached,
                written=plain if written is None else written,
                output=output,
                reasoning=output if reasoning is None else reasoning,
                media=max(plain, *media),
                # Requests are priced by the thousand where tokens are priced by the million.
                request=(calls or 0) * 1_000,
            )
        )
    return tuple(bands)


def _own_bands(table: Mapping[str, Decimal]) -> _Bands:
    """request: dollars per thousand calls."""
    plain, output = _femto(table["input"]), _femto(table["output"])
    return (
        _Band(
            over=-1,
            input=plain,
            cached=_femto(table.get("cached_input", table["input"])),
            written=_femto(table.get("cache_write", table["input"])),
            output=output,
            reasoning=output,
            media=plain,
            request=_femto(table.get("request", Decimal(0))) * 1_000,
        ),
    )

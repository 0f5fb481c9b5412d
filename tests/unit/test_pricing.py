"""What calls cost, and what they can cost at most."""

from __future__ import annotations

import random
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from genai_prices import Usage as PublishedUsage
from genai_prices import calc_price

from shared.dataset import example_line
from shared.estimate import reserved_tokens
from shared.models import Budget, Evaluation, JobSpec, Prompt, Split, Student, Teacher, Usage
from shared.pricing import MEDIA_PART_TOKENS, Estimate, Prices, output_limit, prompt_size, request_size

MODELS = ["gpt-4.1-mini", "gpt-4o", "gpt-6.1-sol", "gpt-5.4", "o3", "gpt-5.6-luna", "ft:gpt-4o-2024-08-06:acme::x"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("prompt_tokens", [0, 1, 999, 272_000, 272_001, 500_000])
@pytest.mark.parametrize("tier", [None, "priority", "flex"])
def test_a_call_costs_what_the_published_list_says_rounded_up(model: str, prompt_tokens: int, tier: str | None) -> None:
    cached, written = prompt_tokens // 3, prompt_tokens // 5
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=77, cached_tokens=cached, cache_write_tokens=written)
    published = calc_price(
        PublishedUsage(
            input_tokens=prompt_tokens,
            output_tokens=77,
            cache_read_tokens=cached or None,
            cache_write_tokens=written or None,
        ),
        model,
        provider_id="openai",
        price_context={"service_tier": tier} if tier else None,
    )
    cost = Prices().cost_nano("openai", model, usage, service_tier=tier)
    assert cost is not None
    assert 0 <= cost - published.total_price * 10**9 < 1


def test_what_nobody_knows_is_unpriced_and_never_free() -> None:
    prices = Prices()
    usage = Usage(prompt_tokens=1, completion_tokens=1)
    for price_list, model in (
        ("openai", "my-model"),
        ("openai", "claude-opus-4-5"),
        ("nobody", "gpt-4o"),
        (None, "gpt-4o"),
    ):
        assert prices.cost_nano(price_list, model, usage) is None
        assert prices.ceiling_nano(price_list, model, prompt_bytes=1, max_completion_tokens=1) is None
        assert not prices.is_priced(price_list, model)


def test_a_fine_tuned_model_costs_its_published_surcharge() -> None:
    prices = Prices()
    usage = Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000)
    tuned = prices.cost_nano("openai", "ft:gpt-4.1-mini-2025-04-14:acme:triage:Ab1", usage)
    assert tuned == 4_000_000_000
    assert prices.training_nano("openai", "gpt-4.1-mini-2025-04-14", 1_000_000) == 5_000_000_000
    assert prices.training_nano("openai", "gpt-6-luna", 1) is None


@pytest.mark.parametrize("model", MODELS)
def test_no_call_costs_more_than_its_ceiling(model: str) -> None:
    prices, chance = Prices(), random.Random(7)
    for _ in range(300):
        prompt_bytes, most = chance.randrange(600_000), chance.randrange(1, 130_000)
        ceiling = prices.ceiling_nano("openai", model, prompt_bytes=prompt_bytes, max_completion_tokens=most)
        prompt_tokens = chance.randint(0, prompt_bytes + 256)  # no tokenizer makes more tokens than bytes
        cached = chance.randint(0, prompt_tokens)
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=chance.randint(0, most),
            cached_tokens=cached,
            cache_write_tokens=chance.randint(0, prompt_tokens - cached),
        )
        cost = prices.cost_nano("openai", model, usage)
        assert ceiling is not None
        assert cost is not None
        assert cost <= ceiling


def test_without_a_cap_the_model_s_own_limit_counts() -> None:
    assert [output_limit(model) for model in ("gpt-4o-mini", "gpt-4.1", "gpt-4", "ft:gpt-4.1-mini:a::b", "new")] == [
        16_384,
        32_768,
        8_192,
        32_768,
        131_072,
    ]
    open_end = Prices().ceiling_nano("openai", "gpt-4.1", prompt_bytes=10, max_completion_tokens=None)
    assert open_end == Prices().ceiling_nano("openai", "gpt-4.1", prompt_bytes=10, max_completion_tokens=32_768)


def test_images_count_for_more_than_their_bytes() -> None:
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    text = {"type": "text", "text": "What is this?"}
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": [text, image]}], "temperature": 0}
    prompt_bytes, media_parts = request_size(body)
    assert media_parts == 1
    assert prompt_bytes < 200
    ceiling = Prices().ceiling_nano(
        "openai", "gpt-4o", prompt_bytes=prompt_bytes, max_completion_tokens=1, media_parts=media_parts
    )
    assert ceiling is not None
    assert ceiling > MEDIA_PART_TOKENS * 2_500  # nano-dollars a token


def test_prices_of_the_operator_come_first(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        '[openai."gpt-4.1-mini"]\ninput = "1"\noutput = "2"\ncached_input = "0.5"\ntraining = "3"\n'
        '[mine."*"]\ninput = 0\noutput = "0.0001"\nrequest = "1"\n'
    )
    prices = Prices(file)
    million = Usage(prompt_tokens=1_000_000, completion_tokens=1_000_000, cached_tokens=500_000)
    assert prices.cost_nano("openai", "gpt-4.1-mini", million) == 2_750_000_000
    assert prices.training_nano("openai", "gpt-4.1-mini", 1_000_000) == 3_000_000_000
    assert prices.cost_nano("mine", "anything", million) == 100_000 + 1_000_000
    assert prices.cost_nano("openai", "gpt-4o", million) is not None


@pytest.mark.parametrize(
    "text",
    [
        "openai = 1",
        '[openai."x"]\ninput = "1"',
        '[openai."x"]\ninput = "1"\noutput = "dear"',
        '[openai."x"]\ninput = "1"\noutput = "-1"',
        '[openai."x"]\ninput = "1"\noutput = "nan"',
        '[openai."x"]\ninput = "1"\noutput = "1"\noutptu = "1"',
    ],
)
def test_a_price_file_that_cannot_be_used_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"prices\.toml"):
        Prices(file)


def test_a_price_that_changes_is_seen_within_a_minute() -> None:
    now = [1_783_000_000.0]  # 2026-07-02; gpt-5.6-luna became cheaper on 2026-07-30
    prices = Prices(clock=lambda: now[0])
    usage = Usage(prompt_tokens=1_000, completion_tokens=1_000)
    before = prices.cost_nano("openai", "gpt-5.6-luna", usage)
    now[0] = 1_795_000_000.0
    after = prices.cost_nano("openai", "gpt-5.6-luna", usage)
    assert before is not None
    assert after is not None
    assert after < before


def test_names_from_requests_do_not_fill_the_memory() -> None:
    prices = Prices()
    for n in range(5_000):
        prices.is_priced("openai", f"made-up-{n}")
    assert len(prices._bands) <= 1_024


def test_an_estimate_is_a_range_and_names_what_it_leaves_out() -> None:
    spec = JobSpec(
        teacher=Teacher(provider="openai", model="gpt-6.1-sol", params={"max_completion_tokens": 300}),
        students=[
            Student(provider="openai", model="gpt-4.1-mini-2025-04-14", hyperparameters={"n_epochs": 3}),
            Student(provider="mine", model="qwen3-8b"),
        ],
        source="inline",
        budget=Budget(max_cost_nano=1),
    )
    lists = {"openai": "openai", "mine": None}
    estimate = Prices().estimate(spec, lists, prompts=1_000, asked=1_000, prompt_bytes=100_000)
    assert 0 < estimate.low_nano < estimate.high_nano
    assert estimate.unpriced == ("/students/1/model",)
    answered = Prices().estimate(spec, lists, prompts=1_000, asked=0, prompt_bytes=100_000)
    assert answered.low_nano < estimate.low_nano
    ceiling = Prices().ceiling_nano("openai", "gpt-6.1-sol", prompt_bytes=100, max_completion_tokens=300)
    assert ceiling is not None
    assert Decimal(answered.high_nano) < Decimal(ceiling * 1_000)


@pytest.mark.parametrize("count", [5, 20, 50, 1_000])
@pytest.mark.parametrize("answer_tokens", [16, 200, 1_024])
@pytest.mark.parametrize("n_epochs", ["auto", 2])
def test_what_a_training_will_reserve_lies_in_the_range_that_is_told(
    count: int, answer_tokens: int, n_epochs: int | str
) -> None:
    student = Student(provider="openai", model="gpt-4.1-mini", hyperparameters={"n_epochs": n_epochs})
    spec = JobSpec(
        teacher=Teacher(provider="openai", model="gpt-4.1"),
        students=[student],
        source="inline",
        split=Split(holdout=0.0, validation=0.0),
    )
    prompts = [Prompt(messages=[{"role": "user", "content": f"Where is invoice {n}?"}]) for n in range(count)]
    prompt_bytes = sum(map(prompt_size, prompts))
    estimate = Prices().estimate(spec, {"openai": "openai"}, prompts=count, asked=count, prompt_bytes=prompt_bytes)

    message = {"role": "assistant", "content": "word" * answer_tokens}
    train_bytes = sum(len(example_line(spec, prompt, message)) for prompt in prompts)
    tokens = reserved_tokens(student, train_bytes, examples=count)
    reserved = Prices().training_nano("openai", student.model, tokens)
    assert reserved is not None
    assert estimate.training_low_nano <= reserved <= estimate.training_high_nano


def test_an_estimate_counts_what_judges_are_asked() -> None:
    judge = {"type": "score_model", "provider": "openai", "model": "gpt-4.1"}
    plain = JobSpec(
        teacher=Teacher(provider="openai", model="gpt-4.1"),
        students=[Student(provider="openai", model="gpt-4.1-mini")],
        source="inline",
    )
    judged = msgspec.structs.replace(plain, evaluation=Evaluation(graders=[judge]))
    unpriced = msgspec.structs.replace(plain, evaluation=Evaluation(graders=[{**judge, "provider": "mine"}]))
    lists = {"openai": "openai", "mine": None}

    def estimated(spec: JobSpec) -> Estimate:
        return Prices().estimate(spec, lists, prompts=1_000, asked=1_000, prompt_bytes=100_000)

    assert estimated(judged).low_nano > estimated(plain).low_nano
    assert estimated(judged).high_nano > estimated(plain).high_nano
    assert estimated(unpriced).unpriced == ("/evaluation/graders/0/model",)


def test_a_prompt_s_size_counts_everything_that_is_sent() -> None:
    plain = Prompt(messages=[{"role": "user", "content": "ä"}])
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    assert prompt_size(Prompt(messages=plain.messages, tools=tools)) > prompt_size(plain) > 2

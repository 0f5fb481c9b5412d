"""The rate that workers share, on both servers."""

import asyncio
import time

import pytest

pytestmark = pytest.mark.anyio


async def permit(store, *, calls=10, tokens=100, rpm=None, tpm=None):
    return await store.rates.permit(
        "lab",
        "gpt-4.1",
        calls=calls,
        tokens_per_call=tokens,
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        bucket_seconds=1.0,
    )


async def test_without_a_known_limit_every_call_is_permitted(store):
    assert await permit(store, calls=200) == (200, 0.0)


async def test_workers_together_get_no_more_than_the_limit(store):
    began = time.monotonic()
    granted = await asyncio.gather(*(permit(store, calls=30, rpm=1200) for _ in range(10)))
    took = time.monotonic() - began

    assert 20 <= sum(calls for calls, _ in granted) <= 20 + 20 * took + 1


async def test_tokens_are_limited_too(store):
    granted, wait = await permit(store, calls=10, tokens=100, tpm=30_000)

    assert granted == 5
    assert wait > 0


@pytest.mark.parametrize("limits", [{"rpm": 3}, {"rpm": 59}, {"tpm": 3_000}])
async def test_a_limit_below_one_call_a_second_still_lets_calls_through(store, limits):
    granted, _ = await permit(store, calls=10, tokens=100, **limits)

    assert granted == 1


async def test_a_call_larger_than_the_token_bucket_goes_out_alone(store):
    assert (await permit(store, tokens=50_000, tpm=60_000))[0] == 1
    assert (await permit(store, tokens=50_000, tpm=60_000))[0] == 0


async def test_a_refusal_pauses_everybody_for_the_time_it_named(store):
    await permit(store)

    await store.rates.throttle("lab", "gpt-4.1", retry_after_seconds=0.2)

    granted, wait = await permit(store)
    assert granted == 0
    assert 0 < wait <= 0.2
    await asyncio.sleep(0.25)
    assert (await permit(store))[0] > 0


async def test_a_refusal_cuts_the_rate_even_where_no_limit_is_known(store):
    assert (await permit(store, calls=200))[0] == 200

    await store.rates.throttle("lab", "gpt-4.1", retry_after_seconds=None)

    assert (await permit(store, calls=200))[0] < 200

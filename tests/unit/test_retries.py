"""What to do after a failed call, as a table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import (
    ProviderAuthFailed,
    ProviderModelMissing,
    ProviderQuotaExhausted,
    ProviderRateLimited,
    ProviderRejected,
    ProviderUnavailable,
)
from shared.retries import GiveUp, Retry, RetryPolicy, Stop, after_failure

POLICY = RetryPolicy(attempts_max=4, base_seconds=1.0, cap_seconds=60.0, fresh_model_seconds=600.0)


def decide(error, *, attempts=1, failures=1, fresh_for_seconds=None, jitter=0.5):
    return after_failure(
        error,
        attempts=attempts,
        failures=failures,
        fresh_for_seconds=fresh_for_seconds,
        policy=POLICY,
        jitter=jitter,
    )


def test_exhausted_credit_pauses_a_refused_key_ends_and_a_bad_prompt_fails_alone():
    assert decide(ProviderQuotaExhausted("")) == Stop("pause", "provider_quota_exhausted")
    assert decide(ProviderAuthFailed("")) == Stop("fail", "provider_auth_failed")
    assert decide(ProviderRejected("")) == GiveUp("provider_rejected", lost=False)


def test_a_missing_model_ends_the_job_unless_it_was_just_trained():
    assert decide(ProviderModelMissing("")) == Stop("fail", "model_unknown")
    assert isinstance(decide(ProviderModelMissing(""), fresh_for_seconds=599), Retry)
    assert decide(ProviderModelMissing(""), fresh_for_seconds=600) == Stop("fail", "model_unknown")


@pytest.mark.parametrize("billed_maybe", [True, False])
def test_a_breakdown_is_retried_until_the_attempts_are_used_up(billed_maybe):
    error = ProviderUnavailable("", billed_maybe=billed_maybe)

    third, fourth = decide(error, attempts=3), decide(error, attempts=4)

    assert (third.lost, third.counted) == (billed_maybe, True)
    assert fourth == GiveUp("provider_unavailable", lost=billed_maybe)


def test_a_refusal_for_rate_waits_as_long_as_it_named_and_uses_up_no_attempt():
    decision = decide(ProviderRateLimited("", retry_after_seconds=20), attempts=100, failures=100)

    assert isinstance(decision, Retry)
    assert 20 <= decision.after_seconds <= 22
    assert not decision.counted


def test_a_refusal_that_names_no_time_worth_the_name_still_backs_off():
    assert decide(ProviderRateLimited("", retry_after_seconds=0)).after_seconds > 0


@given(failures=st.integers(1, 10_000), jitter=st.floats(0, 1, exclude_max=True))
def test_waits_grow_to_the_cap_and_never_past_it(failures, jitter):
    wait = decide(ProviderUnavailable(""), failures=failures, jitter=jitter).after_seconds

    assert min(60, 2 ** min(failures - 1, 10)) / 2 <= wait <= min(60, 2 ** min(failures - 1, 10))

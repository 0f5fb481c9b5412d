"""The rate limits a caller sees in `x-ratelimit-*`: two buckets per model, refilled by the minute."""

from __future__ import annotations

import time

from sandbox.errors import ApiError
from sandbox.options import Options


def go_duration(seconds: float) -> str:
    """As Go prints it, which is what the provider sends: "120ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    hours, minutes = divmod(int(minutes), 60)
    tail = f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + tail


class _Bucket:
    def __init__(self, per_minute: int) -> None:
        self.per_minute = per_minute
        self._left = float(per_minute)
        self._at = time.monotonic()

    def left(self) -> float:
        now = time.monotonic()
        self._left = min(self.per_minute, self._left + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._left

    def take(self, amount: float) -> None:
        self._left = max(0.0, self.left() - amount)

    def seconds_until(self, amount: float) -> float:
        return max(0.0, amount - self.left()) * 60 / self.per_minute


class Limits:
    def __init__(self, options: Options) -> None:
        self._options = options
        self._buckets: dict[str, tuple[_Bucket, _Bucket]] = {}

    def take(self, model: str, tokens: int) -> dict[str, str]:
        """Count one request of so many tokens, and return the headers that tell what is left.

        Raises 429 rate_limit_exceeded with Retry-After when limits are enforced and used up."""
        options = self._options
        if model not in self._buckets:
            self._buckets[model] = (_Bucket(options.requests_per_minute), _Bucket(options.tokens_per_minute))
        requests, spent = self._buckets[model]
        if options.enforce_limits and (wait := max(requests.seconds_until(1), spent.seconds_until(tokens))) > 0:
            raise ApiError(
                429,
                f"Rate limit reached for {model} in organization org-sandbox. Please try again in {go_duration(wait)}.",
                type="requests" if requests.seconds_until(1) else "tokens",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, round(wait + 0.5))), **self._headers(requests, spent)},
            )
        requests.take(1)
        spent.take(tokens)
        return self._headers(requests, spent)

    def _headers(self, requests: _Bucket, tokens: _Bucket) -> dict[str, str]:
        return {
            "x-ratelimit-limit-requests": str(requests.per_minute),
            "x-ratelimit-limit-tokens": str(tokens.per_minute),
            "x-ratelimit-remaining-requests": str(int(requests.left())),
            "x-ratelimit-remaining-tokens": str(int(tokens.left())),
            "x-ratelimit-reset-requests": go_duration(requests.seconds_until(requests.per_minute)),
            "x-ratelimit-reset-tokens": go_duration(tokens.seconds_until(tokens.per_minute)),
        }

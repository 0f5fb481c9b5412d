"""Politeness: permission to call, leased in small batches from the rate that all workers share.

No call costs a round trip.  Limits are learned from the provider's headers, or configured; a refusal cuts the shared
rate and its Retry-After pauses every worker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import structlog

from shared.errors import StoreError
from shared.ports import RateLimits
from shared.settings import ProviderSettings
from shared.store import Store

_log: Final = structlog.get_logger()

_BATCH_SECONDS: Final = 0.25  # of the learned rate, leased together
_BATCH_MAX: Final = 200
_BUCKET_SECONDS: Final = 1.0  # of the rate that may be saved up while nobody calls
_KEPT_SECONDS: Final = 2.0  # a permit not used within this time is worth nothing: others have filled the gap
_FIRST_GUESS_TOKENS: Final = 500
_SMOOTHING: Final = 0.05


class Allowance:
    """What this process may call of one model right now.  endpoint: the provider's name in the settings.

    on_permit: called when permission has come and waiting calls should try again."""

    def __init__(
        self, store: Store, endpoint: str, model: str, provider: ProviderSettings, on_permit: Callable[[], None]
    ) -> None:
        self._store = store
        self._endpoint = endpoint
        self._model = model
        self._requests_per_minute = provider.requests_per_minute
        self._tokens_per_minute = provider.tokens_per_minute
        self._learned = RateLimits(None, None)
        self._on_permit = on_permit
        self._calls = 0
        self._expires_at = 0.0
        self._tokens_per_call: float = _FIRST_GUESS_TOKENS
        self._asking: asyncio.Task[None] | None = None

    def take(self) -> bool:
        """Permission for one call.  When there is none, it is asked for, and `on_permit` tells of its arrival."""
        if self._calls > 0 and time.monotonic() < self._expires_at:
            self._calls -= 1
            return True
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._ask())
        return False

    def learn(self, limits: RateLimits, tokens: int) -> None:
        """From an answer: the provider's limits, and what the call counted for."""
        if limits.requests_per_minute is not None or limits.tokens_per_minute is not None:
            self._learned = limits
        self._tokens_per_call += _SMOOTHING * (tokens - self._tokens_per_call)

    async def refused(self, retry_after_seconds: float | None) -> None:
        """From a refusal for rate."""
        self._calls = 0
        try:
            await self._store.rates.throttle(self._endpoint, self._model, retry_after_seconds=retry_after_seconds)
        except StoreError:
            _log.warning("throttle_not_shared", endpoint=self._endpoint)

    async def _ask(self) -> None:
        wait = 0.0
        try:
            self._calls, wait = await self._store.rates.permit(
                self._endpoint,
                self._model,
                calls=self._batch(),
                tokens_per_call=int(self._tokens_per_call),
                requests_per_minute=self._requests_per_minute or self._learned.requests_per_minute,
                tokens_per_minute=self._tokens_per_minute or self._learned.tokens_per_minute,
                bucket_seconds=_BUCKET_SECONDS,
            )
            self._expires_at = time.monotonic() + _KEPT_SECONDS
        except StoreError:
            wait = 1.0
        finally:
            if not self._calls:
                await asyncio.sleep(max(0.005, wait))
            self._asking = None
        self._on_permit()

    def _batch(self) -> int:
        """A quarter of a second's worth of the limit, so that workers share it evenly."""
        per_minute = self._requests_per_minute or self._learned.requests_per_minute
        by_tokens = self._tokens_per_minute or self._learned.tokens_per_minute
        if by_tokens:
            affordable = by_tokens / max(1.0, self._tokens_per_call)
            per_minute = int(min(per_minute or affordable, affordable))
        return _BATCH_MAX if not per_minute else max(1, min(_BATCH_MAX, int(per_minute / 60 * _BATCH_SECONDS)))

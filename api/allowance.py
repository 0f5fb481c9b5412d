"""How many requests a tenant may make: one bucket per tenant in the store, drawn from a handful at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from shared.errors import StoreError, TooMany
from shared.ids import TenantId
from shared.store.rates import RateStore

_log: Final = structlog.get_logger()
_DRAWS_PER_MINUTE: Final = 600  # at full speed, so that a bucket costs ten small scripts a second and not one a request
_KEPT_SECONDS: Final = 1.0  # requests drawn and not used go back with the next draw


@dataclass
class _Drawn:
    requests: int = 0
    left: int = 0
    at: float = float("-inf")
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Allowances:
    """per_minute: requests of a tenant, over all API processes; 0 for any number."""

    def __init__(
        self, rates: RateStore, per_minute: Callable[[TenantId], int], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rates = rates
        self._per_minute = per_minute
        self._clock = clock
        self._drawn: defaultdict[TenantId, _Drawn] = defaultdict(_Drawn)

    async def spend(self, tenant: TenantId) -> dict[str, str]:
        """Count one request; the header fields that say where the tenant stands (IETF draft).

        Raises TooMany.  A store that is away limits nobody: what needs it will say so itself."""
        per_minute = self._per_minute(tenant)
        if not per_minute:
            return {}
        drawn = self._drawn[tenant]
        async with drawn.lock:
            if drawn.requests < 1 or self._clock() - drawn.at > _KEPT_SECONDS:
                wanted = max(1, per_minute // _DRAWS_PER_MINUTE)
                try:
                    taken, drawn.left, wait_seconds = await self._rates.take(
                        tenant, per_minute=per_minute, wanted=wanted, unused=drawn.requests
                    )
                except StoreError:
                    _log.warning("requests_not_counted")
                    return {}
                drawn.requests, drawn.at = taken, self._clock()
                if not taken:
                    seconds = math.ceil(wait_seconds)
                    raise TooMany(
                        f"At most {per_minute:,} requests a minute are answered.", retry_after_seconds=seconds
                    )
            drawn.requests -= 1
        return _standing(per_minute, drawn.requests + drawn.left)

    def exhausted(self, tenant: TenantId) -> dict[str, str]:
        """What a refused request is told."""
        per_minute = self._per_minute(tenant)
        return _standing(per_minute, 0) if per_minute else {}

    def left(self, tenant: TenantId) -> int | None:
        """Requests left, as this process knows it; None for any number."""
        per_minute = self._per_minute(tenant)
        if not per_minute:
            return None
        drawn = self._drawn[tenant]
        return min(per_minute, drawn.requests + drawn.left)


def _standing(per_minute: int, left: int) -> dict[str, str]:
    full_in = math.ceil((per_minute - left) * 60 / per_minute)
    return {
        "RateLimit-Policy": f'"requests";q={per_minute};w=60',
        "RateLimit": f'"requests";r={left};t={full_in}',
    }

"""What a tenant's jobs spend, day by day.  Written where the money moves: tick.lua and commit.lua."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.ids import TenantId
from shared.models import Usage
from shared.store import keys
from shared.store.connection import ask

#: The most nano-dollars a tenant may spend a day; None: any number.
DayLimit = Callable[[TenantId], int | None]
_EPOCH: Final = date(1970, 1, 1)
_DAY_SECONDS: Final = 86_400


def any_amount(_: TenantId) -> int | None:
    return None


def day_number(day: date) -> int:
    return (day - _EPOCH).days


class DayUsage(msgspec.Struct, frozen=True, kw_only=True):
    """unconfirmed_nano: upper bounds of calls lost that day, and of trainings whose bill nobody knows.
    bought, reused: completions."""

    day: date
    spent_nano: int = 0
    unconfirmed_nano: int = 0
    usage: Usage = Usage()
    bought: int = 0
    reused: int = 0


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where a tenant stands today.  reserved_nano: held by all its jobs, whenever they began.
    limit_nano: None for any amount.  seconds_left: of the day."""

    today: DayUsage
    reserved_nano: int
    limit_nano: int | None
    seconds_left: int

    @property
    def left_nano(self) -> int | None:
        """What more may be reserved today; None for any amount."""
        if self.limit_nano is None:
            return None
        used = self.today.spent_nano + self.today.unconfirmed_nano + self.reserved_nano
        return max(0, self.limit_nano - used)


class SpendingStore:
    def __init__(self, client: redis.Redis, day_limit: DayLimit) -> None:
        self._redis = client
        self._day_limit = day_limit

    async def standing(self, tenant: TenantId) -> Standing:
        """By the server's clock, on which all scripts count."""
        seconds, _ = await ask(self._redis.time())
        number = seconds // _DAY_SECONDS
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.day(tenant, number))
        pipe.hget(keys.spending(tenant), "reserved_nano")
        row, reserved = await ask(pipe.execute())
        return Standing(
            today=_usage_of(number, row),
            reserved_nano=int(reserved or 0),
            limit_nano=self._day_limit(tenant),
            seconds_left=_DAY_SECONDS - seconds % _DAY_SECONDS,
        )

    async def page(
        self,
        tenant: TenantId,
        *,
        limit: int,
        after: date | None,
        newest_first: bool,
        first: date | None = None,
        last: date | None = None,
    ) -> tuple[list[DayUsage], bool]:
        """Up to `limit` days on which something was spent, and whether there are more.  after: the last one seen.

        first, last: both included."""
        low = "-inf" if first is None else str(day_number(first))
        high = "+inf" if last is None else str(day_number(last))
        if after is not None and newest_first and (last is None or after <= last):
            high = f"({day_number(after)}"
        elif after is not None and not newest_first and (first is None or after >= first):
            low = f"({day_number(after)}"
        index = keys.days(tenant)
        if newest_first:
            members = await ask(self._redis.zrevrangebyscore(index, high, low, 0, limit + 1))
        else:
            members = await ask(self._redis.zrangebyscore(index, low, high, 0, limit + 1))
        numbers = [int(member) for member in members[:limit]]
        pipe = self._redis.pipeline(transaction=False)
        for number in numbers:
            pipe.hgetall(keys.day(tenant, number))
        rows = await ask(pipe.execute()) if numbers else []
        return [_usage_of(number, row) for number, row in zip(numbers, rows, strict=True)], len(members) > limit


def _usage_of(number: int, row: dict[bytes, bytes]) -> DayUsage:
    def tally(name: str) -> int:
        return int(row.get(name.encode(), b"0"))

    return DayUsage(
        day=_EPOCH + timedelta(days=number),
        spent_nano=tally("spent_nano"),
        unconfirmed_nano=tally("unconfirmed_nano"),
        usage=Usage(**{name: tally(name) for name in Usage.__struct_fields__}),
        bought=tally("bought"),
        reused=tally("reused"),
    )

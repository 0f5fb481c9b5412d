"""The one clock: when somebody must look at which row, and who gets to look next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import msgspec
import redis.asyncio as redis

from shared.ids import DeliveryId, JobId, TenantId
from shared.store import keys
from shared.store.connection import Scripts, ask

#: What a due row is: a job to advance, a webhook delivery to attempt, a job whose retention ends, or a deleted one that
#: has left something at its providers, a provider whose models are to be read, or an ended job whose calls may be out.
Kind = Literal["job", "dlv", "exp", "cln", "cat", "out"]

_SCAN: Final = 1_000  # due rows looked at for fairness; more than that take turns in being looked at
_ID: Final = "%s"
_JOB_TENANT: Final = (keys.job(JobId(_ID)), "tenant", "")
_TENANTS: Final[Mapping[Kind, tuple[str, str, str]]] = {
    "job": _JOB_TENANT,
    "exp": _JOB_TENANT,
    "cln": _JOB_TENANT,
    "out": _JOB_TENANT,
    # Quotes within the delivery's body are escaped, so this is the row's own member.
    "dlv": (keys.delivery(DeliveryId(_ID)), "row", '"tenant":"([^"]*)"'),
}


@dataclass(frozen=True)
class Due:
    kind: Kind
    id: str
    tenant: TenantId


@dataclass(frozen=True)
class Room:
    """What a worker can take of one kind: rows, at most; of one tenant, `share`, with what it `held` already."""

    rows: int
    share: int
    held: Mapping[TenantId, int]


class DueClock:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    async def hand_out(self, rooms: Mapping[Kind, Room], *, grace_seconds: float) -> list[Due]:
        """Rows whose time has come, each handed out once per grace period; the rest stays due.

        The next row of a kind goes to the tenant that has the fewest.  Kinds without a room are left alone."""
        asked = {
            "grace_ms": int(grace_seconds * 1000),
            "scan": _SCAN,
            "rows": {kind: room.rows for kind, room in rooms.items()},
            "share": {kind: room.share for kind, room in rooms.items()},
            "held": {kind: dict(room.held) for kind, room in rooms.items()},
            "keys": _TENANTS,
        }
        found = await self._scripts.run("sweep", [keys.DUE], [msgspec.json.encode(asked)])
        members = [member.decode().partition(":") for member in found[::2]]
        return [
            Due(cast("Kind", kind), id_, TenantId(tenant.decode()))
            for (kind, _, id_), tenant in zip(members, found[1::2], strict=True)
        ]

    async def put(self, kind: Kind, id_: str, seconds: float | None) -> None:
        """When somebody must look next; None: never."""
        if seconds is None:
            await ask(self._redis.zrem(keys.DUE, f"{kind}:{id_}"))
        else:
            now, micros = await ask(self._redis.time())
            await ask(self._redis.zadd(keys.DUE, {f"{kind}:{id_}": int((now + seconds) * 1000 + micros / 1000)}))

    async def sweep(self, *, grace_seconds: float, limit: int) -> list[str]:
        """Up to `limit` rows of each kind, whoever they belong to, as members of the clock."""
        rooms = {kind: Room(limit, limit, {}) for kind in cast("tuple[Kind, ...]", get_args(Kind))}
        return [f"{due.kind}:{due.id}" for due in await self.hand_out(rooms, grace_seconds=grace_seconds)]

    async def oldest_seconds(self) -> float:
        """How long the most overdue row has waited: the alarm for stuck jobs.  0 when nothing is overdue."""
        first = await ask(self._redis.zrange(keys.DUE, 0, 0, withscores=True))
        seconds, micros = await ask(self._redis.time())
        return max(0.0, seconds + micros / 1e6 - first[0][1] / 1000) if first else 0.0

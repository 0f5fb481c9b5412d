"""The sweep: every worker looks about once a second for rows whose time has come, and rings for them.

It is what makes messages mere hints: a bell that was lost, doubled or late changes nothing, because the due clock is
read by every worker and hands each row out once per grace period."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import structlog

from shared.errors import StoreError
from shared.queue import ADVANCE_JOB, CLEAN_UP_JOB, DELIVER_WEBHOOK, PURGE_JOB, Doorbell
from shared.store import Store

_log: Final = structlog.get_logger()
_ROWS_PER_SWEEP: Final = 200

#: Prefix of a member of the due clock → the task that looks at it.
TASKS: Final[Mapping[str, str]] = {"job": ADVANCE_JOB, "dlv": DELIVER_WEBHOOK, "exp": PURGE_JOB, "cln": CLEAN_UP_JOB}


class Sweeper:
    """act: does a task's work in this process, for when the broker takes no message."""

    def __init__(
        self,
        store: Store,
        doorbell: Doorbell,
        act: Callable[[str, str], Awaitable[None]],
        *,
        interval_seconds: float,
        grace_seconds: float,
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._act = act
        self._interval_seconds = interval_seconds
        self._grace_seconds = grace_seconds

    async def run(self) -> None:
        while True:
            try:
                due = await self._store.sweep(grace_seconds=self._grace_seconds, limit=_ROWS_PER_SWEEP)
                for member in due:
                    await self._ring(member)
            except StoreError:
                _log.warning("sweep_waits_for_store")
            except Exception:  # noqa: BLE001  # the edge: nothing may end the sweep, on which everything rests
                _log.exception("sweep_failed")
            await asyncio.sleep(self._interval_seconds)

    async def _ring(self, member: str) -> None:
        kind, _, id_ = member.partition(":")
        task = TASKS.get(kind)
        if task is None:
            _log.error("unknown_due_row", kind=kind[:16])
            return
        if not await self._doorbell.ring(task, id_):
            await self._act(task, id_)

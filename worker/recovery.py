"""Answers that were lost on the way to us: looked up among the completions that the provider keeps."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import structlog

from shared.errors import ProviderError
from shared.plan import our_metadata
from shared.ports import Completion
from worker.runs import Call, Run

_log: Final = structlog.get_logger()

_LOOK_SECONDS: Final = 1.0  # between two looks
_LOOKS_MAX: Final = 8  # at the same time


class Recovery:
    """seconds: how long it may take a stored completion to show before it counts as never made."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._looks = asyncio.Semaphore(_LOOKS_MAX)

    def possible(self, run: Run, call: Call) -> bool:
        """Whether the provider was asked to keep the answer under a name we can look it up by."""
        return run.archive is not None and our_metadata(run.job, run.plan, call.index) is not None

    async def find(self, run: Run, call: Call) -> Completion | None:
        """The lost answer, or None when it does not show in time."""
        metadata = our_metadata(run.job, run.plan, call.index)
        assert run.archive is not None
        assert metadata is not None
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                async with self._looks:
                    found = await run.archive.find(run.plan.model, metadata)
            except ProviderError as error:
                _log.info("stored_completion_not_read", job_id=run.pass_id.job_id, code=error.code)
            else:
                if found is not None:
                    return found
            if run.stopped or time.monotonic() > deadline:
                return None
            await asyncio.sleep(_LOOK_SECONDS)

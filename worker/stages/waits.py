"""Telling the owner what a job waits for."""

from __future__ import annotations

import time

from shared.ids import new_event_id
from shared.models import Event, Job
from shared.store.passes import PassId, PassStore


async def wait_told(job: Job, pass_id: PassId, passes: PassStore) -> list[Event]:
    """What there is to tell, once, of a pass that has no call of its own because another job is buying the same."""
    other = await passes.wait_to_tell(pass_id)
    if other is None:
        return []
    event = Event(
        id=new_event_id(),
        level="info",
        type="message",
        message=f"Waiting for answers to the same prompts that {other} has asked for; they will be reused.",
        created_at_ms=time.time_ns() // 1_000_000,
        stage=job.stage,
        data={"waits_for": other},
    )
    return [event]

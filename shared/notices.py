"""What a job's owner is told: one delivery per webhook, made in one place for the API and the workers."""

from __future__ import annotations

import time

from shared.ids import new_delivery_id, new_event_id
from shared.lifecycle import JobStatus
from shared.models import Delivery, Job
from shared.webhooks import event_body


def deliveries_for(
    job: Job, event_type: str, version: int, *, status: JobStatus | None = None, now_ms: int | None = None
) -> list[Delivery]:
    """The deliveries of one event, to hand to the store in the same change; none when nobody asked for this type.

    version: what the job's will be once the change is made.  status: likewise, when it differs from the job's own."""
    target = job.spec.webhook
    if target is None or event_type not in target.events:
        return []
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    event_id = new_event_id()
    body = event_body(
        event_id,
        event_type,
        now_ms,
        job_id=job.id,
        status=status or job.status,
        version=version,
        metadata=job.spec.metadata,
    )
    return [
        Delivery(
            id=new_delivery_id(),
            job_id=job.id,
            tenant=job.tenant,
            event_id=event_id,
            event_type=event_type,
            url=target.url,
            body=body,
            created_at_ms=now_ms,
        )
    ]

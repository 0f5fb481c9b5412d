"""What a tenant is told: one delivery per webhook, made in one place for the API and the workers."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shared.ids import EndpointId, JobId, TenantId, new_delivery_id, new_event_id
from shared.lifecycle import JobStatus
from shared.models import Job
from shared.store import Store
from shared.webhook_records import Delivery, WebhookEndpoint
from shared.webhooks import endpoint_event_body, event_body


def deliveries_for(
    job: Job,
    event_type: str,
    version: int,
    *,
    endpoints: Sequence[WebhookEndpoint] = (),
    status: JobStatus | None = None,
    now_ms: int | None = None,
) -> list[Delivery]:
    """The deliveries of one event, to hand to the store in the same change; none when nobody asked for this type.

    version: what the job's will be once the change is made.  status: likewise, when it differs from the job's own.
    endpoints: the tenant's.  All deliveries tell of one event, so they carry the same id and the same body."""
    targets: list[tuple[EndpointId | None, str]] = []
    if job.spec.webhook is not None and event_type in job.spec.webhook.events:
        targets.append((None, job.spec.webhook.url))
    targets += [(endpoint.id, endpoint.url) for endpoint in endpoints if takes(endpoint, event_type)]
    if not targets:
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
        _delivery(job.tenant, event_id, event_type, body, now_ms, url, endpoint_id=endpoint_id, job_id=job.id)
        for endpoint_id, url in targets
    ]


def takes(endpoint: WebhookEndpoint, event_type: str) -> bool:
    return endpoint.enabled and event_type in endpoint.events


def trial_of(endpoint: WebhookEndpoint) -> Delivery:
    """A `webhook.test` to this endpoint, whether or not it subscribes to it."""
    [delivery] = _told_of(endpoint, "webhook.test", [endpoint])
    return delivery


def disabled_of(endpoint: WebhookEndpoint, others: Sequence[WebhookEndpoint]) -> list[Delivery]:
    """What the tenant's other endpoints are told when this one is disabled by its receiver."""
    event_type = "webhook_endpoint.disabled"
    asked = [other for other in others if other.id != endpoint.id and takes(other, event_type)]
    return _told_of(endpoint, event_type, asked, enabled=False)


def _told_of(
    endpoint: WebhookEndpoint, event_type: str, to: Sequence[WebhookEndpoint], *, enabled: bool = True
) -> list[Delivery]:
    now_ms = time.time_ns() // 1_000_000
    event_id = new_event_id()
    body = endpoint_event_body(event_id, event_type, now_ms, endpoint_id=endpoint.id, enabled=enabled)
    return [
        _delivery(endpoint.tenant, event_id, event_type, body, now_ms, target.url, endpoint_id=target.id)
        for target in to
    ]


def _delivery(
    tenant: TenantId,
    event_id: str,
    event_type: str,
    body: str,
    now_ms: int,
    url: str,
    *,
    endpoint_id: EndpointId | None,
    job_id: JobId | None = None,
) -> Delivery:
    return Delivery(
        id=new_delivery_id(),
        job_id=job_id,
        tenant=tenant,
        event_id=event_id,
        event_type=event_type,
        url=url,
        body=body,
        created_at_ms=now_ms,
        endpoint_id=endpoint_id,
    )


class Notices:
    """`deliveries_for`, with the tenant's endpoints as they stand."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def of(
        self, job: Job, event_type: str, *, status: JobStatus | None = None, now_ms: int | None = None
    ) -> list[Delivery]:
        """For the change that is about to be made to this job."""
        endpoints = await self._store.webhooks.all(job.tenant)
        return deliveries_for(job, event_type, job.version + 1, endpoints=endpoints, status=status, now_ms=now_ms)

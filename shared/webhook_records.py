"""What is kept of outgoing webhooks: the endpoints of a tenant, and deliveries with their attempts."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.ids import EndpointId, JobId, TenantId
from shared.models import Record


class DeliveryAttempt(Record, frozen=True, kw_only=True):
    at_ms: int
    duration_ms: int
    status: int | None = None
    error: str | None = None


class RetiredSecret(Record, frozen=True, kw_only=True):
    """A secret that was replaced, and signs beside the newer ones until then."""

    secret: str
    until_ms: int

    def __repr__(self) -> str:
        return f"RetiredSecret(until_ms={self.until_ms})"


class WebhookEndpoint(Record, frozen=True, kw_only=True):
    """Where a tenant is told of what happens to any of its jobs.

    secret: signs every delivery; those it replaced too, each until its own time, the newest first.  disabled_reason:
    "gone" when the receiver has answered 410; None when it is enabled, or its owner disabled it."""

    id: EndpointId
    tenant: TenantId
    url: str
    events: list[str]
    secret: str
    created_at_ms: int
    description: str | None = None
    enabled: bool = True
    disabled_reason: Literal["gone"] | None = None
    retired_secrets: list[RetiredSecret] = msgspec.field(default_factory=list)

    def __repr__(self) -> str:
        """Without the secrets, which a log line or a traceback must never show."""
        return f"WebhookEndpoint({self.id!r})"


class Delivery(Record, frozen=True, kw_only=True):
    """One webhook on its way.  body: the exact JSON text that is signed and sent, the same at every attempt.

    job_id: None when the event is not of a job.  endpoint_id: None for a job's own webhook.
    counted_from: number of attempts made before it was last sent again on request; the schedule starts there."""

    id: str
    job_id: JobId | None
    tenant: TenantId
    event_id: str
    event_type: str
    url: str
    body: str
    created_at_ms: int
    status: Literal["pending", "delivered", "failed"] = "pending"
    attempts: list[DeliveryAttempt] = msgspec.field(default_factory=list)
    endpoint_id: EndpointId | None = None
    counted_from: int = 0

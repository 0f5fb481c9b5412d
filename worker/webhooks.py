"""Delivers webhooks: one attempt per ring, the next one by the due clock."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import structlog
from msgspec.structs import replace

from shared.errors import NotFound
from shared.ids import DeliveryId
from shared.notices import disabled_of
from shared.store import Store
from shared.webhook_records import Delivery, DeliveryAttempt, WebhookEndpoint
from shared.webhooks import GONE, Delivered, GaveUp, RetryAt, after_attempt, headers, secrets_of, signing_secret
from worker.outbound import Outbound

_log: Final = structlog.get_logger()
_LEASE_SLACK_SECONDS: Final = 15.0


class Courier:
    """Takes due deliveries to where they should go.  secret: the deployment's, from which each tenant's is derived."""

    def __init__(self, store: Store, outbound: Outbound, *, secret: bytes, timeout_seconds: float) -> None:
        self._store = store
        self._outbound = outbound
        self._secret = secret
        self._lease_seconds = timeout_seconds + _LEASE_SLACK_SECONDS

    async def deliver(self, delivery_id: DeliveryId) -> None:
        """Make one attempt, write down how it went, and set the time of the next."""
        delivery = await self._store.deliveries.claim(delivery_id, lease_seconds=self._lease_seconds)
        if delivery is None or delivery.status != "pending":
            return
        endpoint: WebhookEndpoint | None = None
        if delivery.endpoint_id is not None:
            endpoint = await self._store.webhooks.find(delivery.tenant, delivery.endpoint_id)
            unwanted = endpoint is None or not endpoint.enabled
        else:
            unwanted = delivery.counted_from == 0 and await self._said_gone(delivery)
        if unwanted:
            await self._store.deliveries.settle(replace(delivery, status="failed"), next_attempt_in_seconds=None)
            return
        now = datetime.now(UTC)
        secrets = [signing_secret(self._secret, delivery.tenant)] if endpoint is None else secrets_of(endpoint, now)
        url = delivery.url if endpoint is None else endpoint.url  # as it is now: its owner may have mended it
        signed = headers(delivery.event_id, delivery.body, secrets, now)
        started_at_ms = time.time_ns() // 1_000_000
        attempt = await self._outbound.post(url, signed, delivery.body.encode())
        attempts = [
            *delivery.attempts,
            DeliveryAttempt(
                at_ms=started_at_ms, duration_ms=attempt.duration_ms, status=attempt.status, error=attempt.error
            ),
        ]
        decision = after_attempt(
            attempts[delivery.counted_from :],
            retry_after_seconds=attempt.retry_after_seconds,
            jitter=random.random(),
        )
        _log.info(
            "webhook_attempted",
            delivery_id=delivery.id,
            job_id=delivery.job_id,
            endpoint_id=delivery.endpoint_id,
            attempt=len(attempts),
            status=attempt.status,
            error=attempt.error,
            decision=type(decision).__name__,
        )
        if isinstance(decision, RetryAt):
            delivery = replace(delivery, attempts=attempts)
            await self._store.deliveries.settle(delivery, next_attempt_in_seconds=decision.after_seconds)
            return
        status = "delivered" if isinstance(decision, Delivered) else "failed"
        if isinstance(decision, GaveUp) and decision.disabled and endpoint is not None:
            await self._disable(endpoint)
        await self._store.deliveries.settle(
            replace(delivery, attempts=attempts, status=status), next_attempt_in_seconds=None
        )

    async def _disable(self, endpoint: WebhookEndpoint) -> None:
        """The receiver wants nothing further; the tenant's other endpoints are told."""
        others = await self._store.webhooks.all(endpoint.tenant)
        with suppress(NotFound):  # its owner has deleted it meanwhile
            await self._store.webhooks.change(
                endpoint.tenant,
                endpoint.id,
                lambda present: replace(present, enabled=False, disabled_reason="gone"),
                tell=disabled_of(endpoint, others),
            )
        _log.warning("webhook_endpoint_disabled", endpoint_id=endpoint.id, reason="gone")

    async def _said_gone(self, delivery: Delivery) -> bool:
        """Whether the job's own webhook has answered 410 to an earlier event."""
        if delivery.job_id is None:
            return False
        log = await self._store.deliveries.of_job(delivery.job_id)
        return any(d.endpoint_id is None and d.attempts and d.attempts[-1].status == GONE for d in log)

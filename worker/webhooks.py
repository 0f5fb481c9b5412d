"""Delivers webhooks: one attempt per ring, the next one by the due clock."""

from __future__ import annotations

import random
import time
from datetime import UTC, datetime
from typing import Final

import structlog
from msgspec.structs import replace

from shared.ids import DeliveryId
from shared.models import DeliveryAttempt
from shared.store import Store
from shared.webhooks import Delivered, RetryAt, after_attempt, headers, signing_secret
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
        signed = headers(
            delivery.event_id, delivery.body, [signing_secret(self._secret, delivery.tenant)], datetime.now(UTC)
        )
        started_at_ms = time.time_ns() // 1_000_000
        attempt = await self._outbound.post(delivery.url, signed, delivery.body.encode())
        attempts = [
            *delivery.attempts,
            DeliveryAttempt(
                at_ms=started_at_ms, duration_ms=attempt.duration_ms, status=attempt.status, error=attempt.error
            ),
        ]
        decision = after_attempt(attempts, retry_after_seconds=attempt.retry_after_seconds, jitter=random.random())
        _log.info(
            "webhook_attempted",
            delivery_id=delivery.id,
            job_id=delivery.job_id,
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
        await self._store.deliveries.settle(
            replace(delivery, attempts=attempts, status=status), next_attempt_in_seconds=None
        )

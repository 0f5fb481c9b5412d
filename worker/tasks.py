"""The doorbells.  A message carries an id; all state is in the store; rung twice, the second does nothing."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from celery import Celery

from shared.queue import ADVANCE_JOB, CLEAN_UP_JOB, DELIVER_WEBHOOK, PURGE_JOB


class _Loop(Protocol):
    def run(self, work: Coroutine[Any, Any, None]) -> None: ...


class _Hands(Protocol):
    @property
    def loop(self) -> _Loop: ...
    def advance_job(self, id_: str) -> Coroutine[Any, Any, None]: ...
    def deliver_webhook(self, id_: str) -> Coroutine[Any, Any, None]: ...
    def purge_job(self, id_: str) -> Coroutine[Any, Any, None]: ...
    def clean_up_job(self, id_: str) -> Coroutine[Any, Any, None]: ...


def register(app: Celery, worker: _Hands) -> None:
    """Tasks run on Celery's threads and hand their work to the worker's loop."""

    @app.task(name=ADVANCE_JOB)  # type: ignore[untyped-decorator]  # celery has no types
    def advance_job(job_id: str) -> None:
        """Advance one job as far as it goes now.  Rung twice, the second finds no lease to take and returns."""
        worker.loop.run(worker.advance_job(job_id))

    @app.task(name=DELIVER_WEBHOOK)  # type: ignore[untyped-decorator]  # celery has no types
    def deliver_webhook(delivery_id: str) -> None:
        """Make one attempt at one delivery, if it is due."""
        worker.loop.run(worker.deliver_webhook(delivery_id))

    @app.task(name=PURGE_JOB)  # type: ignore[untyped-decorator]  # celery has no types
    def purge_job(job_id: str) -> None:
        """Purge one job, if it was deleted or its retention has ended."""
        worker.loop.run(worker.purge_job(job_id))

    @app.task(name=CLEAN_UP_JOB)  # type: ignore[untyped-decorator]  # celery has no types
    def clean_up_job(job_id: str) -> None:
        """Delete some of what a deleted job has left at its providers."""
        worker.loop.run(worker.clean_up_job(job_id))

"""The doorbells.  A message says that a row has become due; which one is worked on next, the sweep decides.

So a bell costs a thread nothing: it neither waits for the work nor jumps the queue, and rung twice it is as good as
once.  The id in it is for whoever reads the queue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from celery import Celery

from shared.queue import ADVANCE_JOB, CLEAN_UP_JOB, DELIVER_WEBHOOK, PURGE_JOB


class _Loop(Protocol):
    def call(self, what: Callable[[], None]) -> None: ...


class _Hands(Protocol):
    @property
    def loop(self) -> _Loop: ...
    def look(self) -> None: ...


def register(app: Celery, worker: _Hands) -> None:
    """Tasks run on Celery's threads and wake the sweep on the worker's loop."""

    @app.task(name=ADVANCE_JOB)  # type: ignore[untyped-decorator]  # celery has no types
    def advance_job(job_id: str) -> None:
        """A job was accepted, or its owner has moved it."""
        worker.loop.call(worker.look)

    @app.task(name=DELIVER_WEBHOOK)  # type: ignore[untyped-decorator]  # celery has no types
    def deliver_webhook(delivery_id: str) -> None:
        """A webhook is to be sent, or sent again."""
        worker.loop.call(worker.look)

    @app.task(name=PURGE_JOB)  # type: ignore[untyped-decorator]  # celery has no types
    def purge_job(job_id: str) -> None:
        """A job was deleted."""
        worker.loop.call(worker.look)

    @app.task(name=CLEAN_UP_JOB)  # type: ignore[untyped-decorator]  # celery has no types
    def clean_up_job(job_id: str) -> None:
        """A deleted job has left something at its providers."""
        worker.loop.call(worker.look)

"""The Celery application: its name, its queues, and how to ring a doorbell.

A message holds an id and nothing else.  Losing, doubling or delaying one does no harm: the sweep rings again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from shared.store.keys import QUEUE

ADVANCE_JOB: Final = "advance_job"
DELIVER_WEBHOOK: Final = "deliver_webhook"
PURGE_JOB: Final = "purge_job"
CLEAN_UP_JOB: Final = "clean_up_job"

_log: Final = structlog.get_logger()


def celery_app(broker_url: str, *, publish_timeout_seconds: float = 2.0) -> Celery:
    """Configured once for both sides; Celery takes a misspelt option in silence, so nothing else sets any.

    Messages are hints, hence the early acknowledgement: the row is what must not be lost."""
    app = Celery("distillery", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=False,
        task_publish_retry=False,
        task_default_queue=QUEUE,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": publish_timeout_seconds,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            "max_retries": 1,
            "interval_start": 0.1,
            "interval_step": 0.1,
            "interval_max": 0.2,
        },
    )
    return app


class Doorbell:
    """Rings workers from an event loop, in a thread of its own: publishing blocks, for at most about 2 s."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="doorbell")

    async def ring(self, task: str, id_: str) -> bool:
        """Whether the message was handed to the broker.  False is no error: the sweep finds the row by its due time."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._publish(task, id_))
        except (OperationalError, OSError, TimeoutError) as error:
            _log.warning("doorbell_not_rung", task=task, id=id_, error=type(error).__name__)
            return False
        return True

    def _publish(self, task: str, id_: str) -> Callable[[], Any]:
        return lambda: self._app.send_task(task, args=(id_,))

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

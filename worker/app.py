"""The worker process: its settings, its loop, its services, and the Celery worker that hears the bells."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Final

import structlog
from celery import Celery, signals
from prometheus_client import Gauge, start_http_server

from shared import __version__
from shared.errors import StoreError
from shared.ids import DeliveryId, JobId
from shared.logs import configure_logs
from shared.pricing import Prices
from shared.queue import celery_app
from shared.retries import RetryPolicy
from shared.settings import Settings
from shared.store import Store
from worker.afterwards import Afterwards
from worker.catalogue import Cataloguer
from worker.cleaner import Cleaner, CleaningLimits
from worker.engine import Engine
from worker.janitor import Janitor
from worker.loop import WorkerLoop
from worker.outbound import Outbound
from worker.providers import Providers
from worker.pump import Pump, PumpLimits
from worker.scratch import remove_leftovers
from worker.stages import Tools
from worker.sweeper import Sweeper, Work
from worker.tasks import register
from worker.webhooks import Courier

_log: Final = structlog.get_logger()
_ALIVE_SECONDS: Final = 10.0
_BELL_THREADS: Final = 2  # a bell takes a thread for no longer than it takes to wake the loop
_DELIVERIES_PER_HAND: Final = 4  # a delivery mostly waits, for up to the webhook time-out
_PURGES: Final = 4
_READINGS: Final = 4  # of providers' models


class MetricsPortTaken(RuntimeError):
    """The worker does not start: nobody would learn from it what they expect to."""


class Worker:
    """Everything one worker process runs.  Nothing connects before `start`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.id = secrets.token_hex(8)
        self.celery: Celery = celery_app(settings.broker_url, publish_timeout_seconds=5.0)
        self.loop = WorkerLoop()
        self._services: list[asyncio.Task[None]] = []
        register(self.celery, self)

    # --- what is done with due rows -----------------------------------------------------------------------------------

    def look(self) -> None:
        """A bell was rung: some row has become due."""
        self.sweeper.wake()

    async def advance_job(self, id_: str) -> None:
        await self.engine.advance(JobId(id_))

    async def deliver_webhook(self, id_: str) -> None:
        await self.courier.deliver(DeliveryId(id_))

    async def purge_job(self, id_: str) -> None:
        await self.janitor.purge(JobId(id_))

    async def clean_up_job(self, id_: str) -> None:
        await self.cleaner.clean(JobId(id_))

    async def look_after(self, id_: str) -> None:
        await self.afterwards.look(JobId(id_))

    async def read_models(self, id_: str) -> None:
        await self.cataloguer.read(id_)

    # --- life of the process ------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Blocks until SIGTERM or SIGINT; then lets answers in flight arrive and gives leases back."""
        signals.setup_logging.connect(self._keep_our_logging)
        signals.worker_ready.connect(self._on_ready)
        signals.worker_shutting_down.connect(self._on_shutting_down)
        self._listen_for_metrics()
        if leftovers := remove_leftovers():
            _log.info("uploads_of_killed_workers_removed", folders=leftovers)
        self.loop.start()
        self.loop.run(self._start())
        arguments = ["--quiet", "worker", "--pool=threads", f"--concurrency={_BELL_THREADS}"]
        arguments += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        arguments += [f"--hostname=distillery-{self.id}@%h", f"--loglevel={self._settings.log_level}"]
        try:
            self.celery.worker_main(arguments)
        finally:
            self.loop.run(self._stop())
            self.loop.stop()

    async def _start(self) -> None:
        settings = self._settings
        self.store = Store.at(settings.redis_url, patient=True, day_limit=settings.day_limit_nano)
        self.providers = Providers(settings.providers, trainer_timeout_seconds=settings.provider_timeout_seconds)
        prices = Prices(settings.prices_file)
        self.pump = Pump(
            self.store,
            self.providers,
            prices,
            PumpLimits(
                in_flight=settings.worker_max_in_flight,
                chunk_lease_seconds=settings.chunk_lease_seconds,
                takeover_grace_seconds=settings.takeover_grace_seconds,
                shutdown_grace_seconds=settings.shutdown_grace_seconds,
                smoke_completions=settings.smoke_completions,
                retry=RetryPolicy(
                    attempts_max=settings.completion_attempts_max,
                    base_seconds=settings.retry_base_seconds,
                    cap_seconds=settings.retry_cap_seconds,
                    fresh_model_seconds=settings.fresh_model_wait_seconds,
                ),
            ),
            secret=settings.secret,
            on_complete=self._on_complete,
        )
        self.engine = Engine(Tools(self.store, self.providers, prices, settings, self.pump.wake))
        outbound = Outbound(
            allow_http=settings.webhook_allow_http,
            allow_networks=settings.webhook_allow_networks,
            ports=settings.webhook_ports,
            timeout_seconds=settings.webhook_timeout_seconds,
        )
        self.courier = Courier(
            self.store, outbound, secret=settings.secret, timeout_seconds=settings.webhook_timeout_seconds
        )
        self.janitor = Janitor(
            self.store, prices, settings.providers, secret=settings.secret, lease_seconds=settings.lease_seconds
        )
        self.cleaner = Cleaner(
            self.store,
            self.providers,
            CleaningLimits(
                lease_seconds=settings.lease_seconds,
                patience_seconds=settings.cleanup_patience_seconds,
                lag_seconds=settings.unknown_outcome_wait_seconds,
                look_seconds=settings.poll_max_seconds,
            ),
        )
        self.afterwards = Afterwards(
            self.store, prices, settings.providers, late_seconds=settings.takeover_grace_seconds
        )
        self.cataloguer = Cataloguer(self.store, self.providers, settings.providers)
        self.sweeper = Sweeper(
            self.store,
            {
                "job": Work(settings.worker_hands, self.advance_job),
                "dlv": Work(settings.worker_hands * _DELIVERIES_PER_HAND, self.deliver_webhook),
                "exp": Work(_PURGES, self.purge_job),
                "cln": Work(settings.worker_hands, self.clean_up_job),
                "cat": Work(_READINGS, self.read_models),
                "out": Work(settings.worker_hands, self.look_after),
            },
            interval_seconds=settings.sweep_interval_seconds,
            grace_seconds=settings.sweep_grace_seconds,
        )

    def _on_ready(self, **_: Any) -> None:
        if self._settings.worker_metrics_port is not None:
            calls = Gauge("distillery_worker_calls_in_flight", "Calls for completions, of this worker process.")
            calls.set_function(lambda: self.pump.in_flight)
        self.loop.run(self._begin_services())
        _log.info("worker_ready", worker=self.id, providers=sorted(self._settings.providers))

    def _listen_for_metrics(self) -> None:
        """Of this process alone; what the service as a whole is at, the API tells.  Raises MetricsPortTaken."""
        host, port = self._settings.api_host, self._settings.worker_metrics_port
        if port is None:
            return
        try:
            start_http_server(port, host)
        except OSError as error:
            raise MetricsPortTaken(
                f"Port {port} of DISTILL_WORKER_METRICS_PORT cannot be listened on at {host}: {error.strerror}."
                "  Each worker process on a machine needs a port of its own."
            ) from None

    async def _begin_services(self) -> None:
        for service in (self.pump.run(), self.sweeper.run(), self._announce()):
            self._spawn(service)
        try:
            await self.cataloguer.begin()
        except StoreError:
            _log.warning("models_not_due")  # those that were due before stay so

    def _on_shutting_down(self, **_: Any) -> None:
        _log.info("worker_shutting_down", worker=self.id, calls_in_flight=self.pump.in_flight)
        self.loop.call(self.sweeper.stop)
        self.loop.submit(self.pump.stop())

    async def _stop(self) -> None:
        self.sweeper.stop()
        stopped_by = time.monotonic() + self._settings.shutdown_grace_seconds
        await self.pump.stop()
        await self.sweeper.finished(within_seconds=max(1.0, stopped_by - time.monotonic()))
        for service in self._services:
            service.cancel()
        try:
            await self.store.retire_worker(self.id)
        except StoreError:
            _log.warning("store_unavailable_at_shutdown")
        await self.providers.close()
        await self.store.close()

    async def _announce(self) -> None:
        """Readiness asks for a live worker; this says that there is one."""
        about = {"pid": os.getpid(), "version": __version__}
        while True:
            try:
                seen = {**about, "in_flight": self.pump.in_flight}
                await self.store.announce_worker(self.id, seen, for_seconds=_ALIVE_SECONDS)
            except StoreError:
                _log.warning("store_unavailable_while_announcing")
            await asyncio.sleep(_ALIVE_SECONDS / 4)

    async def _on_complete(self, _job_id: JobId) -> None:
        self.sweeper.wake()  # the script that ended the pass has made its job due

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._services.append(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._services.remove(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("worker_task_failed", error=type(error).__name__, exc_info=error)

    def _keep_our_logging(self, **_: Any) -> None:
        configure_logs(level=self._settings.log_level, format=self._settings.log_format)

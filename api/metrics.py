"""`GET /metrics` for Prometheus, on a port of its own that no client reaches.

Everything is read from the store when it is asked for, so that any API process tells of the whole service, and none has
to count.  No label carries what a tenant has said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import uvicorn
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shared.errors import StoreError
from shared.models import NANO
from shared.store import Store
from shared.store.readings import Readings

_TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
_TOKENS: Final = {
    "prompt": "prompt_tokens",
    "completion": "completion_tokens",
    "cached": "cached_tokens",
    "cache_write": "cache_write_tokens",
    "reasoning": "reasoning_tokens",
}


class _Families:
    """Readings, as prometheus_client collects them."""

    def __init__(self, readings: Readings | None) -> None:
        self._readings = readings

    def collect(self) -> Iterable[Metric]:
        found = self._readings
        yield _gauge("store_up", "Whether the store answers.", float(found is not None))
        if found is None:
            return
        yield _gauges("jobs", "Jobs that are kept, by status.", "status", {str(k): v for k, v in found.jobs.items()})
        yield _gauge("due_rows", "Rows whose time has come and that no worker has looked at.", found.due)
        yield _gauge(
            "oldest_due_seconds", "How long the most overdue row waits; alarm above 60.", found.oldest_due_seconds
        )
        yield _gauge("queue_messages", "Messages to workers that none has taken.", found.queued)
        yield _gauge("workers", "Worker processes that are alive.", found.workers)
        yield _gauge("open_passes", "Passes of jobs that pumps draw from.", found.open_passes)
        yield _gauge("store_memory_bytes", "Memory the store uses.", found.memory_bytes)
        if found.memory_share is not None:
            yield _gauge("store_memory_share", "Of its limit; above 0.8 no job is accepted.", found.memory_share)
        yield _gauge("reserved_usd", "Upper bounds of the calls in flight.", found.reserved_nano / NANO)
        today = found.today
        yield _gauge("spent_today_usd", "Spent since midnight UTC.", today["spent_nano"] / NANO)
        yield _gauge(
            "possibly_billed_today_usd",
            "Upper bounds of calls whose answers were lost since midnight UTC.",
            today["unconfirmed_nano"] / NANO,
        )
        tokens = {kind: today[name] for kind, name in _TOKENS.items()}
        yield _gauges("tokens_today", "Tokens of the answers since midnight UTC, by kind.", "kind", tokens)
        completions = {"bought": today["bought"], "reused": today["reused"]}
        yield _gauges("completions_today", "Completions since midnight UTC.", "origin", completions)


def _gauge(name: str, help_: str, value: float) -> Metric:
    return GaugeMetricFamily(f"distillery_{name}", help_, value=value)


def _gauges(name: str, help_: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"distillery_{name}", help_, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def metrics_app(store: Store) -> Starlette:
    """Only /metrics.  A store that is away is a metric, too."""

    async def metrics(_: Request) -> Response:
        try:
            readings = await store.readings()
        except StoreError:
            readings = None
        registry = CollectorRegistry()
        registry.register(_Families(readings))
        return PlainTextResponse(generate_latest(registry), media_type=_TEXT)

    return Starlette(routes=[Route("/metrics", metrics)])


class MetricsServer(uvicorn.Server):
    """Beside the API in its process.  SIGTERM is the API's to hear: it stops this one at its end."""

    def __init__(self, store: Store, *, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                metrics_app(store), host=host, port=port, access_log=False, log_config=None, server_header=False
            )
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

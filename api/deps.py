"""What routes ask for: the caller, the services, the body."""

from __future__ import annotations

import asyncio
import difflib
import hmac
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, ParamSpec, TypeVar, cast, get_args

import msgspec
from fastapi import Depends, Request
from fastapi.dependencies.utils import get_flat_params
from pydantic import BaseModel, ValidationError

from api.allowance import Allowances
from api.keyring import KeyRing
from api.problems import BodyTooLarge, UnsupportedMediaType
from api.schemas.api_keys import Scope
from api.validation import faults_of, query_fault
from api.watch import Slots, Watcher
from shared.endpoints import Endpoints
from shared.errors import BadRequest, Forbidden, TooMany, Unauthenticated
from shared.files import Files
from shared.ids import TenantId
from shared.jobs import Jobs
from shared.planning import Planner
from shared.preflight import Catalogues, Preflight
from shared.pricing import Prices
from shared.prompts import TOO_DEEP, bounds_fault, json_fault
from shared.provider_events import ProviderEvents
from shared.rules import invalid
from shared.settings import Settings
from shared.store import Store

Body = TypeVar("Body", bound=BaseModel)
T = TypeVar("T")
P = ParamSpec("P")

SCOPES: Final = frozenset(get_args(Scope))
LOCAL: Final = TenantId("local")
_METADATA: Final = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)
_METADATA_PAIRS_MAX: Final = 16
_LARGE_BODY_BYTES: Final = 100_000  # some 5 ms of reading and planning; a thread costs more than that is worth


@dataclass(frozen=True)
class Services:
    """Made once per process by api/app.py."""

    settings: Settings
    store: Store
    planner: Planner
    preflight: Preflight
    catalogues: Catalogues
    prices: Prices
    jobs: Jobs
    files: Files
    endpoints: Endpoints
    keyring: KeyRing
    allowances: Allowances
    provider_events: ProviderEvents
    event_allowances: Allowances
    watcher: Watcher
    waits: Slots
    streams: Slots


async def _services(request: Request) -> Services:
    """async though it awaits nothing, as every dependency here: the framework runs plain functions in threads."""
    return services_of(request)


def services_of(request: Request) -> Services:
    return cast("Services", request.app.state.services)


Wired = Annotated[Services, Depends(_services)]


# --- who asks --------------------------------------------------------------------------------------------------------


class Caller(msgspec.Struct, frozen=True):
    """Whose key it is and what it may do.  operator: it is the key from the settings, which manages all tenants.

    key_providers: those that the key is held to.  providers: those that its jobs may name, by the key and by what the
    tenant may.  Both None for all."""

    tenant: TenantId
    scopes: frozenset[str]
    secret: str
    operator: bool = False
    key_providers: frozenset[str] | None = None
    providers: frozenset[str] | None = None

    def __repr__(self) -> str:  # without the secret
        return f"Caller(tenant={self.tenant!r}, scopes={self.scopes!r}, operator={self.operator!r})"


async def authenticate(request: Request) -> Caller:
    """Who asks, once the request is counted.  Raises Unauthenticated, or TooMany.

    Remembered with the request, not by the framework, which would solve the tree below for everyone who asks."""
    state: dict[str, Any] = request.scope["state"]
    known: Caller | None = state.get("caller")
    if known is not None:
        return known
    services = services_of(request)
    caller = await _caller(request, services)
    try:
        state["rate"] = await services.allowances.spend(caller.tenant)
    except TooMany:
        state["rate"] = services.allowances.exhausted(caller.tenant)
        raise
    state["caller"] = caller
    return caller


async def _caller(request: Request, services: Services) -> Caller:
    """The operator's key, from the settings, or a stored one."""
    scheme, _, key = request.headers.get("authorization", "").strip().partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise Unauthenticated("Send your API key as `Authorization: Bearer …`.", code="missing_api_key")
    admin_key = services.settings.admin_key
    # The header arrives as Latin-1; compared as bytes, because compare_digest takes no text beyond ASCII.
    expected = admin_key.get_secret_value().encode() if admin_key is not None else b""
    if expected and hmac.compare_digest(key.strip().encode("latin-1"), expected):
        return Caller(LOCAL, SCOPES, key.strip(), operator=True, providers=_providers(services, LOCAL, None))
    stored = await services.keyring.find(key.strip())
    if stored is None:
        raise Unauthenticated("The API key is not known.", code="invalid_api_key")
    held_to = None if stored.providers is None else frozenset(stored.providers)
    return Caller(
        stored.tenant,
        frozenset(stored.scopes),
        key.strip(),
        key_providers=held_to,
        providers=_providers(services, stored.tenant, held_to),
    )


@contextmanager
def key_held(services: Services, caller: Caller) -> Iterator[Callable[[], bool]]:
    """While something stays open for the caller: whether the key still opens it.  The operator's cannot be revoked."""
    if caller.operator:
        yield lambda: True
        return
    with services.keyring.held(caller.secret) as held:
        yield lambda: held.opens


def _providers(services: Services, tenant: TenantId, held_to: frozenset[str] | None) -> frozenset[str] | None:
    own = services.settings.tenants.get(tenant)
    allowed = None if own is None else own.providers
    if allowed is None:
        return held_to
    return frozenset(allowed) if held_to is None else held_to.intersection(allowed)


@dataclass(frozen=True)
class Requirement:
    """Lets through who holds the scope; openapi.json names it."""

    scope: Scope

    async def __call__(self, request: Request) -> Caller:
        return await authorized(request, self.scope)


async def authorized(request: Request, scope: Scope) -> Caller:
    """Raises as `authenticate`, and Forbidden."""
    caller = await authenticate(request)
    if scope not in caller.scopes:
        raise Forbidden(f"This route asks for the scope {scope}, which the API key does not have.")
    return caller


def requires(scope: Scope) -> Any:
    """The caller of a route, who must hold `scope`: `caller: Annotated[Caller, requires("jobs:read")]`."""
    return Depends(Requirement(scope))


async def known_query_only(request: Request) -> None:
    """A misspelt filter must not silently select everything."""
    sent = list(request.query_params.multi_items())
    if not sent:
        return
    dependant = getattr(request.scope.get("route"), "dependant", None)
    known = (
        {field.alias for field in get_flat_params(dependant) if _is_query(field)} if dependant is not None else set()
    )
    if dependant is not None and any(inner.call is metadata_filter for inner in dependant.dependencies):
        known |= {name for name, _ in sent if _METADATA.fullmatch(name)} | {"metadata[…]"}
    for name, _ in sent:
        if name not in known:
            near = difflib.get_close_matches(name[:64], sorted(known), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            listed = ", ".join(sorted(known)) or "none"
            raise query_fault("query", "unknown_field", f"A query parameter is not known{hint} (known: {listed})")
    for name in known:
        if sum(sent_name == name for sent_name, _ in sent) > 1:
            raise query_fault(name, "duplicate", f"The query parameter {name} may be given once")


async def metadata_filter(request: Request) -> dict[str, str]:
    """`metadata[team]=a&metadata[env]=prod`: pairs that a job must carry, all of them."""
    pairs = {}
    for name, value in request.query_params.multi_items():
        if found := _METADATA.fullmatch(name):
            pairs[found[1]] = value
    if len(pairs) > _METADATA_PAIRS_MAX:
        raise query_fault("metadata", "wrong_length", f"A job has at most {_METADATA_PAIRS_MAX} pairs of metadata")
    return pairs


MetadataFilter = Annotated[dict[str, str], Depends(metadata_filter)]
METADATA_DOCS: Final[dict[str, Any]] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "style": "deepObject",
            "explode": True,
            "description": "`metadata[team]=a`: pairs that a job must carry, all of them",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}


def _is_query(field: Any) -> bool:
    return getattr(getattr(field.field_info, "in_", None), "value", None) == "query"


# --- what is sent ----------------------------------------------------------------------------------------------------


async def read_body(request: Request, limit: int) -> bytes:
    """The body, counted as it arrives: Content-Length may be missing or untrue."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:18]) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _too_large(limit)
        parts.append(part)
    return b"".join(parts)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body may have at most {limit:,} bytes.")


async def aside(size: int, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Work on a body of `size` bytes: in a thread when it is large, so that others need not wait for it."""
    if size > _LARGE_BODY_BYTES:
        return await asyncio.to_thread(work, *arguments, **named)
    return work(*arguments, **named)


def require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = media_type == "application/json" or (
        media_type.startswith("application/") and media_type.endswith("+json")
    )
    if not is_json or request.headers.get("content-encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("The body must be application/json, without a content encoding.")


def parse_json(body: bytes) -> Any:
    """Strict JSON, of bounded depth.  Raises BadRequest `malformed_json`, which repeats nothing of the body."""
    try:
        value = msgspec.json.decode(body)
    except RecursionError:
        raise BadRequest(f"The body {TOO_DEEP}.") from None
    except UnicodeDecodeError as error:
        raise BadRequest(f"The body is not UTF-8 (byte {error.start} of a text).") from None
    except msgspec.MsgspecError as error:
        raise BadRequest(f"The body {json_fault(error)}.") from None
    if (wrong := bounds_fault(value)) is not None:
        raise BadRequest(f"The body {wrong}.")
    return value


def validated(model: type[Body], value: Any) -> Body:
    """Raises ValidationFailed with pointers; never with values."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise invalid(faults_of(model, value, error)) from None


def json_body(model: type[Body], *, optional: bool = False) -> Any:
    """The validated body of a route.  Read only once the caller is known, unlike the framework's own body parameters.

    optional: no body at all is an empty object."""

    async def dependency(request: Request) -> Body:
        declared_empty = (
            request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
        )
        if optional and declared_empty:
            return validated(model, {})
        return await read_json(request, model)

    return Depends(dependency)


async def read_json(request: Request, model: type[Body]) -> Body:
    """The body.  Raises UnsupportedMediaType, BodyTooLarge, BadRequest, ValidationFailed."""
    require_json(request)
    body = await read_body(request, services_of(request).settings.body_max_bytes)
    request.state.body_bytes = len(body)
    return await aside(len(body), lambda: validated(model, parse_json(body)))


def body_docs(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """What `json_body` hides from the framework: the request body in openapi.json.  See api/openapi.py."""
    REQUEST_MODELS[model.__name__] = model
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema}}}}


REQUEST_MODELS: Final[dict[str, type[BaseModel]]] = {}

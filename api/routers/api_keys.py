"""API keys: made, listed, revoked.  The operator's key manages every tenant's, a stored one with `admin` its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Response

from api.deps import Caller, Wired, authenticate, body_docs, json_body, known_query_only, requires
from api.idempotency import NOT_REPEATABLE
from api.problems import documented
from api.schemas.api_keys import ApiKeyCreate, ApiKeyOut, NewApiKeyOut, Tenant
from api.schemas.common import Deleted, Page, page_of
from shared.errors import BadRequest, Fault, Forbidden, NotFound
from shared.ids import KeyId, TenantId, is_id
from shared.rules import invalid

router = APIRouter(
    prefix="/v1/api_keys",
    tags=["api keys"],
    dependencies=[Depends(authenticate), Depends(known_query_only)],
    responses=documented(401, 403, 422, 429, 503),
)
Admin = Annotated[Caller, requires("admin")]


def _managed(caller: Caller, asked: str | None) -> TenantId | None:
    """Whose keys the caller means; None: everybody's."""
    if caller.operator:
        return None if asked is None else TenantId(asked)
    if asked not in {None, caller.tenant}:
        raise Forbidden("Only the operator's own key manages the keys of other tenants.")
    return caller.tenant


def _providers(
    caller: Caller, asked: list[str] | None, known: Collection[str], tenants: Collection[str] | None
) -> list[str] | None:
    """A key that is held to some providers makes none that is not.  tenants: its tenant's; None for all."""
    own = caller.key_providers
    if asked is None:
        return None if own is None else sorted(own)
    faults = [
        Fault(f"/providers/{place}", "unknown_provider", "is not a configured provider")
        for place, name in enumerate(asked)
        if name not in known
    ]
    if faults:
        raise invalid(faults)
    if own is not None and not own.issuperset(asked):
        raise Forbidden("The key may not use all of these providers itself.", code="provider_not_allowed")
    if tenants is not None and (beyond := sorted(set(asked).difference(tenants))):
        detail = f"must be among the tenant's, and {', '.join(beyond)} is not"
        raise invalid([Fault("/providers", "unknown_provider", detail)])
    return sorted(set(asked))


def _checked(key_id: str) -> KeyId:
    if not is_id("key", key_id):
        raise NotFound("There is no such API key.")
    return KeyId(key_id)


@router.post(
    "",
    status_code=201,
    dependencies=[NOT_REPEATABLE],
    responses=documented(400, 413, 415),
    openapi_extra=body_docs(ApiKeyCreate),
)
async def create_api_key(
    caller: Admin, body: Annotated[ApiKeyCreate, json_body(ApiKeyCreate)], services: Wired, response: Response
) -> NewApiKeyOut:
    """Make a key.  `key` is shown in this answer and never again.  A tenant may have several, to change them over."""
    tenant = _managed(caller, body.tenant) or caller.tenant
    providers = _providers(
        caller, body.providers, services.settings.providers, services.settings.tenant(tenant).providers
    )
    key, secret = await services.store.api_keys.create(tenant, body.scopes, name=body.name, providers=providers)
    response.headers["Location"] = f"/v1/api_keys/{key.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewApiKeyOut.made(key, secret)


@router.get("", responses=documented(400))
async def list_api_keys(
    caller: Admin,
    services: Wired,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=100, description="`last_id` of the page before")] = None,
    order: Annotated[Literal["asc", "desc"], Query()] = "desc",
    tenant: Annotated[Tenant | None, Query()] = None,
) -> Page[ApiKeyOut]:
    """Keys that open something, newest first."""
    if after is not None and not is_id("key", after):
        raise BadRequest("`after` is not the id of an API key.", code="invalid_cursor", param="after")
    found, more = await services.store.api_keys.page(
        _managed(caller, tenant), limit=limit, after=after, newest_first=order == "desc"
    )
    return page_of([ApiKeyOut.of(key) for key in found], has_more=more)


@router.get("/{key_id}", responses=documented(404))
async def get_api_key(key_id: str, caller: Admin, services: Wired) -> ApiKeyOut:
    return ApiKeyOut.of(await services.store.api_keys.get(_managed(caller, None), _checked(key_id)))


@router.delete("/{key_id}", responses=documented(404))
async def revoke_api_key(key_id: str, caller: Admin, services: Wired) -> Deleted:
    """From now on the key opens nothing.  Other API processes follow within 5 seconds."""
    key = await services.store.api_keys.revoke(_managed(caller, None), _checked(key_id))
    services.keyring.forget(key.id)
    return Deleted(id=key.id, object="api_key", deleted=True)

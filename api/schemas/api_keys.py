"""API keys: what they may do, and how they are shown."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from api.schemas.common import Request, Response
from shared.store.api_keys import ApiKey

Scope = Literal["jobs:read", "jobs:write", "data:read", "data:write", "webhooks:write", "admin"]
Tenant = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9_-]*$", examples=["acme"])]


class ApiKeyCreate(Request):
    """tenant: only the operator's key may name another than its own.
    providers: those that jobs asked for with this key may name; null for all that the tenant may."""

    tenant: Tenant | None = None
    scopes: Annotated[list[Scope], AfterValidator(lambda scopes: sorted(set(scopes)))] = Field(
        min_length=1, max_length=16
    )
    name: str | None = Field(None, min_length=1, max_length=200)
    providers: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(
        None, min_length=1, max_length=64
    )


class ApiKeyOut(Response):
    """hint: how the key ends."""

    id: str
    object: Literal["api_key"]
    tenant: str
    name: str | None
    scopes: list[str]
    providers: list[str] | None
    hint: str
    created_at: int

    @classmethod
    def of(cls, key: ApiKey) -> Self:
        return cls(**_key_fields(key))


class NewApiKeyOut(ApiKeyOut):
    """key: shown this once."""

    key: str

    @classmethod
    def made(cls, key: ApiKey, secret: str) -> Self:
        return cls(**_key_fields(key), key=secret)


def _key_fields(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "object": "api_key",
        "tenant": key.tenant,
        "name": key.name,
        "scopes": key.scopes,
        "providers": key.providers,
        "hint": key.hint,
        "created_at": key.created_at_ms // 1000,
    }

"""API keys.  Of a key the store knows the SHA-256 alone: 200 random bits need no slower hash, and cannot be guessed."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.errors import NotFound
from shared.ids import KeyId, TenantId, new_key_id
from shared.models import Record
from shared.store import keys
from shared.store.connection import ask

_ALPHABET: Final = "abcdefghijklmnopqrstuvwxyz234567"
_HINT_CHARS: Final = 4


class ApiKey(Record, frozen=True, kw_only=True):
    """hint: the key's last characters, by which its owner tells one from another.  providers: those that jobs asked for
    with it may name; None for all that the tenant may."""

    id: KeyId
    tenant: TenantId
    scopes: list[str]
    hint: str
    created_at_ms: int
    name: str | None = None
    providers: list[str] | None = None


def new_secret() -> str:
    """`dk_` and 40 base32 characters, which are 200 random bits."""
    return "dk_" + "".join(secrets.choice(_ALPHABET) for _ in range(40))


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


class ApiKeyStore:
    """tenant: None is the operator, who sees the keys of all."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    async def create(
        self,
        tenant: TenantId,
        scopes: Sequence[str],
        *,
        name: str | None = None,
        providers: Sequence[str] | None = None,
    ) -> tuple[ApiKey, str]:
        """The key's row, and the key itself: this is the only time that anybody sees it."""
        secret = new_secret()
        key = ApiKey(
            id=new_key_id(),
            tenant=tenant,
            scopes=list(scopes),
            hint=secret[-_HINT_CHARS:],
            created_at_ms=time.time_ns() // 1_000_000,
            name=name,
            providers=None if providers is None else sorted(providers),
        )
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(keys.api_key(digest(secret)), msgspec.json.encode(key))
        pipe.set(keys.api_key_place(key.id), digest(secret))
        pipe.zadd(keys.api_keys(None), {key.id: 0})
        pipe.zadd(keys.api_keys(tenant), {key.id: 0})
        await ask(pipe.execute())
        return key, secret

    async def find(self, secret: str) -> ApiKey | None:
        """Whose key this is; None when it is nobody's or was revoked."""
        row = await ask(self._redis.get(keys.api_key(digest(secret))))
        return None if row is None else msgspec.json.decode(row, type=ApiKey)

    async def get(self, tenant: TenantId | None, key_id: KeyId) -> ApiKey:
        """Raises NotFound, the same for another tenant's key and for none."""
        _, key = await self._placed(tenant, key_id)
        return key

    async def revoke(self, tenant: TenantId | None, key_id: KeyId) -> ApiKey:
        """From now on it opens nothing, and is listed nowhere.  Raises NotFound as `get` does."""
        place, key = await self._placed(tenant, key_id)
        pipe = self._redis.pipeline(transaction=True)
        pipe.delete(keys.api_key(place), keys.api_key_place(key_id))
        pipe.zrem(keys.api_keys(None), key_id)
        pipe.zrem(keys.api_keys(key.tenant), key_id)
        await ask(pipe.execute())
        return key

    async def _placed(self, tenant: TenantId | None, key_id: KeyId) -> tuple[str, ApiKey]:
        place = await ask(self._redis.get(keys.api_key_place(key_id)))
        row = None if place is None else await ask(self._redis.get(keys.api_key(place.decode())))
        key = None if row is None else msgspec.json.decode(row, type=ApiKey)
        if key is None or tenant not in {None, key.tenant}:
            raise NotFound("There is no such API key.")
        return place.decode(), key

    async def page(
        self, tenant: TenantId | None, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[ApiKey], bool]:
        """Up to `limit` keys in order of creation, and whether there are more.  after: id of the last one seen."""
        index = keys.api_keys(tenant)
        if newest_first:
            ids = await ask(self._redis.zrevrangebylex(index, f"({after}" if after else "+", "-", 0, limit + 1))
        else:
            ids = await ask(self._redis.zrangebylex(index, f"({after}" if after else "-", "+", 0, limit + 1))
        shown = ids[:limit]
        places = await ask(self._redis.mget([keys.api_key_place(KeyId(i.decode())) for i in shown])) if shown else []
        wanted = [keys.api_key(place.decode()) for place in places if place]
        rows = await ask(self._redis.mget(wanted)) if wanted else []
        return [msgspec.json.decode(row, type=ApiKey) for row in rows if row], len(ids) > limit

"""API keys as the store keeps them, on both servers."""

import pytest

from shared.errors import NotFound
from shared.ids import KeyId, TenantId, new_key_id

pytestmark = pytest.mark.anyio
ACME, OTHER = TenantId("acme"), TenantId("other")


async def test_a_key_is_found_by_itself_until_it_is_revoked(store):
    key, secret = await store.api_keys.create(ACME, ["jobs:read"], name="ci")
    assert await store.api_keys.find(secret) == key
    assert (key.tenant, key.scopes, key.name, key.hint) == (ACME, ["jobs:read"], "ci", secret[-4:])
    assert await store.api_keys.revoke(ACME, key.id) == key
    assert await store.api_keys.find(secret) is None
    with pytest.raises(NotFound):
        await store.api_keys.get(ACME, key.id)
    with pytest.raises(NotFound):
        await store.api_keys.revoke(ACME, key.id)


async def test_nothing_in_the_store_is_the_key(store, client):
    _, secret = await store.api_keys.create(ACME, ["jobs:read"])
    for name in await client.keys("*"):
        kept = await client.get(name) if await client.type(name) == b"string" else b""
        assert secret.encode() not in name + kept
        assert secret[3:-4].encode() not in kept


async def test_revoking_leaves_nothing(store, client):
    key, _ = await store.api_keys.create(ACME, ["jobs:read"])
    await store.api_keys.revoke(None, key.id)
    assert await client.keys("*") == []


async def test_another_tenants_key_is_as_unknown_as_none(store):
    key, _ = await store.api_keys.create(ACME, ["admin"])
    for place in (key.id, new_key_id(), KeyId("key_none")):
        with pytest.raises(NotFound) as refused:
            await store.api_keys.get(OTHER, place)
        assert str(refused.value) == "There is no such API key."
    assert await store.api_keys.get(None, key.id) == key


async def test_a_tenant_has_several_keys_and_the_operator_sees_all_in_order(store):
    made = [(await store.api_keys.create(ACME, ["jobs:read"]))[0].id for _ in range(3)]
    foreign = (await store.api_keys.create(OTHER, ["jobs:read"]))[0].id
    oldest_first = sorted(made)

    async def page(tenant, after=None, newest_first=False):
        found, more = await store.api_keys.page(tenant, limit=2, after=after, newest_first=newest_first)
        return [key.id for key in found], more

    assert await page(ACME) == (oldest_first[:2], True)
    assert await page(ACME, after=oldest_first[1]) == (oldest_first[2:], False)
    assert await page(ACME, newest_first=True) == (oldest_first[:0:-1], True)
    assert await page(OTHER) == ([foreign], False)
    assert (await page(None))[1]

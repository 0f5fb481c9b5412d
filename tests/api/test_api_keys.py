"""Keys are shown once, open what their scopes say, for their own tenant, until they are revoked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from api_kit import Api, a_request, begin, problem_of

from api.keyring import KeyRing
from shared.ids import KeyId, TenantId, new_key_id

pytestmark = pytest.mark.anyio


async def make(api: Api, *scopes: str, tenant: str | None = "acme", **more: Any) -> dict[str, Any]:
    answer = await api.http.post("/v1/api_keys", json={"tenant": tenant, "scopes": list(scopes), **more})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/v1/api_keys/{answer.json()['id']}"
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def bearing(key: dict[str, Any]) -> dict[str, str]:
    return {"Authorization": f"Bearer {key['key']}"}


async def test_a_key_works_for_its_tenant_and_is_never_shown_again(api: Api):
    key = await make(api, "jobs:write", "jobs:read", name="ci")
    assert key["key"].startswith("dk_")
    assert (key["tenant"], key["scopes"], key["name"]) == ("acme", ["jobs:read", "jobs:write"], "ci")
    own = await api.http.post("/v1/jobs", json=a_request(), headers=bearing(key))
    assert own.status_code == 202
    assert (await api.http.get("/v1/jobs", headers=bearing(key))).json()["data"][0]["id"] == own.json()["id"]
    assert (await api.http.get("/v1/jobs")).json()["data"] == []  # the operator's own tenant is another
    shown = (await api.http.get(f"/v1/api_keys/{key['id']}")).json()
    assert shown == {name: value for name, value in key.items() if name != "key"}
    assert (await api.http.get("/v1/api_keys")).json()["data"] == [shown]
    stored = [await api.redis.get(name) or b"" for name in await api.keys() if await api.redis.type(name) == b"string"]
    assert not any(key["key"].encode() in text for text in stored)


async def test_two_keys_overlap_while_one_replaces_the_other(api: Api):
    old, new = await make(api, "jobs:read"), await make(api, "jobs:read")
    for key in (old, new):
        assert (await api.http.get("/v1/jobs", headers=bearing(key))).status_code == 200
    gone = await api.http.delete(f"/v1/api_keys/{old['id']}")
    assert gone.json() == {"id": old["id"], "object": "api_key", "deleted": True}
    refused = await api.http.get("/v1/jobs", headers=bearing(old))
    assert (refused.status_code, problem_of(refused)["code"]) == (401, "invalid_api_key")
    assert (await api.http.get("/v1/jobs", headers=bearing(new))).status_code == 200
    assert (await api.http.delete(f"/v1/api_keys/{old['id']}")).status_code == 404


async def test_a_tenants_own_admin_manages_its_tenant_and_no_other(api: Api):
    admin, foreign = await make(api, "admin"), await make(api, "jobs:read", tenant="other")
    made = await api.http.post("/v1/api_keys", json={"scopes": ["jobs:read"]}, headers=bearing(admin))
    assert made.json()["tenant"] == "acme"
    listed = (await api.http.get("/v1/api_keys", headers=bearing(admin))).json()["data"]
    assert {key["tenant"] for key in listed} == {"acme"}
    for answer in (
        await api.http.post("/v1/api_keys", json={"tenant": "other", "scopes": ["admin"]}, headers=bearing(admin)),
        await api.http.get("/v1/api_keys?tenant=other", headers=bearing(admin)),
    ):
        assert (answer.status_code, problem_of(answer)["code"]) == (403, "insufficient_scope")
    for method in ("GET", "DELETE"):
        answer = await api.http.request(method, f"/v1/api_keys/{foreign['id']}", headers=bearing(admin))
        assert answer.status_code == 404
    assert (await api.http.get("/v1/api_keys?tenant=other")).json()["data"][0]["id"] == foreign["id"]


@pytest.mark.parametrize(
    "body",
    [
        {"scopes": []},
        {"scopes": ["jobs:everything"]},
        {"scopes": "admin"},
        {"scopes": ["admin"], "tenant": "Acme Corp"},
        {"scopes": ["admin"], "tenant": "a:b"},
        {"scopes": ["admin"], "tenant": ""},
        {"scopes": ["admin"], "tenant": "acme\n"},
        {"scopes": ["admin"], "key": "dk_mine"},
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(api: Api, body: dict[str, Any]):
    answer = await api.http.post("/v1/api_keys", json=body)
    assert (answer.status_code, problem_of(answer)["code"]) == (422, "validation_failed")
    assert await api.keys() == []


async def test_the_list_takes_no_cursor_but_its_own(api: Api):
    assert problem_of(await api.http.get("/v1/api_keys?after=job_1"))["code"] == "invalid_cursor"
    assert (await api.http.get("/v1/api_keys/nonsense")).status_code == 404
    assert (await api.http.get(f"/v1/api_keys/{new_key_id()}")).status_code == 404


async def test_a_key_revoked_elsewhere_is_refused_within_five_seconds(api: Api):
    now = 0.0
    ring = KeyRing(api.store.api_keys, clock=lambda: now)
    key, secret = await api.store.api_keys.create(TenantId("acme"), ["jobs:read"])
    assert await ring.find(secret) == key
    await api.store.api_keys.revoke(None, key.id)
    now = 3.9
    assert await ring.find(secret) == key, "the store is not asked at each request"
    now = 4.1  # what a busy process takes to answer comes on top
    assert await ring.find(secret) is None


async def test_a_stream_and_a_held_answer_end_when_their_key_is_revoked_in_another_process(api: Api):
    key = await make(api, "jobs:read", "jobs:write")
    job = await begin(api, (await api.http.post("/v1/jobs", json=a_request(), headers=bearing(key))).json())
    path = f"/v1/jobs/{job.id}"
    stream = asyncio.create_task(api.http.get(f"{path}/events", headers=bearing(key) | {"Accept": "text/event-stream"}))
    held = asyncio.create_task(api.http.get(path, headers=bearing(key) | {"Prefer": "wait=60"}))
    await asyncio.sleep(0.1)

    await api.store.api_keys.revoke(None, KeyId(key["id"]))  # so that this process is told of nothing

    async with asyncio.timeout(5.2):
        told, refused = await stream, await held
    assert told.text.endswith(": the API key was revoked\n\n")
    assert (refused.status_code, problem_of(refused)["code"]) == (401, "invalid_api_key")


async def test_a_key_works_from_its_first_moment_though_it_was_tried_before(api: Api):
    ring = KeyRing(api.store.api_keys)
    assert await ring.find("dk_guess") is None
    _, secret = await api.store.api_keys.create(TenantId("acme"), ["jobs:read"])
    assert await ring.find(secret) is not None


async def test_who_asks_whether_a_job_has_changed_is_checked_and_counted_as_everybody(api: Api):
    reader, writer, other = (
        await make(api, "jobs:read"),
        await make(api, "jobs:write"),
        await make(api, "jobs:read", tenant="b"),
    )
    job = (await api.http.post("/v1/jobs", json=a_request(), headers=bearing(writer))).json()
    path, left = f"/v1/jobs/{job['id']}", []

    async def asked(headers: dict[str, str], etag: str = 'W/"1"', query: str = "") -> tuple[int, str | None]:
        answer = await api.http.get(path + query, headers={"If-None-Match": etag} | headers)
        left.append(answer.headers.get("ratelimit"))
        return answer.status_code, problem_of(answer)["code"] if answer.status_code >= 400 else None

    assert await asked(bearing(reader)) == (304, None)
    assert await asked(bearing(reader), 'W/"7"') == (200, None)
    assert await asked(bearing(reader)) == (304, None)
    counts = [int(standing.split("r=")[1].split(";")[0]) for standing in left]
    assert counts == [counts[0], counts[0] - 1, counts[0] - 2], "each once"
    assert await asked(bearing(reader), query="?colour=red") == (422, "validation_failed")
    assert await asked({"Authorization": "Bearer dk_nobody"}) == (401, "invalid_api_key")
    assert await asked(bearing(writer)) == (403, "insufficient_scope")
    assert await asked(bearing(other)) == (404, "not_found")
    await api.http.post(f"{path}/cancel", headers=bearing(writer))
    await api.http.delete(path, headers=bearing(writer))
    assert await asked(bearing(reader)) == (410, "job_deleted")

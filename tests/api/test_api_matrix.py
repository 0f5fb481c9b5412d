"""Tenants and scopes, over every operation that openapi.json knows: no route can be forgotten."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from api_kit import Api, answer_all, begin, some_settings

from api import openapi
from api.app import ROUTERS, create_app
from api.deps import SCOPES
from shared.ids import (
    JobId,
    TenantId,
    completion_id,
    new_delivery_id,
    new_endpoint_id,
    new_file_id,
    new_job_id,
    new_key_id,
)

pytestmark = pytest.mark.anyio
#: The last one asks for a signature instead of a key.
PUBLIC = {"/healthz", "/readyz", "/problems/{code}", "/v1/provider_events/{provider}"}
DOCUMENT = create_app(some_settings()).openapi()
OPERATIONS = [
    (method.upper(), path, [scope for need in operation["security"] for scope in need.get("api_key", ())])
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
GUARDED = [(method, path, scopes[0]) for method, path, scopes in OPERATIONS if scopes]
WITH_ID = [(method, path) for method, path, _ in GUARDED if "{" in path]
ACME, RIVAL = TenantId("acme"), TenantId("rival")

Made = Callable[[Api], Awaitable[str]]


async def _job(api: Api) -> str:
    _, secret = await api.store.api_keys.create(ACME, SCOPES)
    api.http.headers["authorization"] = f"Bearer {secret}"
    job = await begin(api, await api.create())
    await answer_all(api, job)
    return job.id


async def _completion(api: Api) -> str:
    [job] = (await api.http.get("/v1/jobs")).json()["data"]
    return (await api.http.get(f"/v1/jobs/{job['id']}/completions")).json()["data"][2]["id"]


async def _key(api: Api) -> str:
    return (await api.store.api_keys.create(ACME, ["jobs:read"]))[0].id


async def _file(api: Api) -> str:
    _, secret = await api.store.api_keys.create(ACME, SCOPES)
    headers = {"Authorization": f"Bearer {secret}", "Content-Type": "application/jsonl"}
    return (await api.http.post("/v1/files", content=b'"Hello"', headers=headers)).json()["id"]


async def _endpoint(api: Api) -> str:
    made = await api.app.state.services.endpoints.create(
        ACME, "https://hooks.example.com/x", ["job.failed"], description=None, enabled=True
    )
    return str(made.id)


async def _delivery(api: Api) -> str:
    return str((await api.app.state.services.endpoints.test(ACME, await _endpoint(api))).id)


async def _zero(_: Api) -> str:
    return "0"


#: Path parameter → how an object of tenant acme comes to be, and an id of the same kind that nothing has.
OBJECTS: dict[str, tuple[Made, Callable[[Api], str]]] = {
    "job_id": (_job, lambda _: new_job_id()),
    "completion_id": (_completion, lambda api: completion_id(api.settings.secret, JobId("job_x"), 0, 2)),
    "file_id": (_file, lambda _: new_file_id()),
    "endpoint_id": (_endpoint, lambda _: new_endpoint_id()),
    "delivery_id": (_delivery, lambda _: new_delivery_id()),
    "key_id": (_key, lambda _: new_key_id()),
    "number": (_zero, lambda _: "0"),
}
#: Bodies of operations that take none that is empty.
BODIES = {"/v1/jobs/{job_id}/students/{number}/endpoint": {"model": "triage-ft"}}


def test_every_route_declares_its_scope():
    undeclared = {path for _, path, scopes in OPERATIONS if not scopes}
    assert undeclared == PUBLIC, "a route needs `caller: Annotated[Caller, requires(…)]`"
    assert all(len(scopes) == 1 for _, _, scopes in OPERATIONS if scopes)
    hidden = [route.path for route in openapi.routes(ROUTERS) if not route.include_in_schema]
    assert hidden == []


def test_every_kind_of_id_is_in_this_matrix():
    named = {name for _, path in WITH_ID for name in re.findall(r"{(\w+)}", path)}
    assert named == set(OBJECTS), "say in OBJECTS how such an object is made"


@pytest.mark.parametrize(("method", "path", "scope"), GUARDED)
async def test_without_the_scope_the_answer_is_403(api: Api, method: str, path: str, scope: str):
    _, secret = await api.store.api_keys.create(ACME, [other for other in SCOPES if other != scope])
    url = re.sub(r"{\w+}", "whatever", path)
    answer = await api.http.request(method, url, json={}, headers={"Authorization": f"Bearer {secret}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert scope in answer.json()["detail"]


@pytest.mark.parametrize(("method", "path", "scope"), GUARDED)
async def test_without_a_key_the_answer_is_401(api: Api, method: str, path: str, scope: str):
    url = re.sub(r"{\w+}", "whatever", path)
    answer = await api.http.request(method, url, json={}, headers={"Authorization": "Bearer dk_nobody"})
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize(("method", "path"), WITH_ID)
async def test_a_foreign_object_is_told_from_none_by_nothing(api: Api, method: str, path: str):
    names = re.findall(r"{(\w+)}", path)
    foreign = {name: await OBJECTS[name][0](api) for name in names}
    nowhere = {name: OBJECTS[name][1](api) for name in names}
    _, secret = await api.store.api_keys.create(RIVAL, SCOPES)
    before = await _everything(api)
    answers = [
        await api.http.request(
            method,
            path.format_map(ids),
            json=BODIES.get(path, {}),
            headers={"Authorization": f"Bearer {secret}", "X-Request-Id": "same"},
        )
        for ids in (foreign, nowhere)
    ]
    assert [answer.status_code for answer in answers] == [404, 404]
    bodies = [answer.json() | {"instance": None} for answer in answers]
    assert bodies[0] == bodies[1]
    for answer in answers:
        del answer.headers["ratelimit"]  # counts both
    assert answers[0].headers == answers[1].headers
    for ids, answer in zip((foreign, nowhere), answers, strict=True):
        assert answer.json()["instance"] == path.format_map(ids)
    assert await _everything(api) == before


async def _everything(api: Api) -> Any:
    return {name: await api.redis.dump(name) for name in sorted(await api.keys())}

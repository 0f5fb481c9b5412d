"""Webhook endpoints over HTTP: made, changed, tried out; and which deliveries an event makes."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from api_kit import Api, a_request, begin, problem_of

from shared.ids import JobId

pytestmark = pytest.mark.anyio
URL = "https://hooks.example.com/distill"


async def an_endpoint(api: Api, **changes: Any) -> dict[str, Any]:
    answer = await api.http.post("/v1/webhook_endpoints", json={"url": URL} | changes)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def deliveries(api: Api, endpoint: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    answer = await api.http.get(f"/v1/webhook_endpoints/{endpoint['id']}/deliveries", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


async def test_the_secret_is_shown_at_creation_and_never_again(api: Api):
    answer = await api.http.post("/v1/webhook_endpoints", json={"url": URL, "description": "CI"})
    made = answer.json()
    assert answer.headers["location"] == f"/v1/webhook_endpoints/{made['id']}"
    assert answer.headers["cache-control"] == "no-store"
    assert len(base64.b64decode(made["secret"].removeprefix("whsec_"))) == 32

    shown = await api.http.get(f"/v1/webhook_endpoints/{made['id']}")
    listed = await api.http.get("/v1/webhook_endpoints")
    assert shown.json() == {name: value for name, value in made.items() if name != "secret"}
    assert listed.json()["data"] == [shown.json()]
    assert (shown.json()["enabled"], shown.json()["description"], shown.json()["url"]) == (True, "CI", URL)
    assert shown.json()["events"] == [
        "job.succeeded",
        "job.failed",
        "job.cancelled",
        "job.paused",
        "job.awaiting_deployment",
    ]
    endpoint = await api.app.state.services.endpoints.get("local", made["id"])
    assert made["secret"] not in repr(endpoint)


@pytest.mark.parametrize("url", ["http://hooks.example.com/", "https://10.0.0.1/", "https://user:pw@x.example/"])
async def test_a_url_that_deliveries_may_not_reach_is_refused(api: Api, url: str):
    refused = problem_of(await api.http.post("/v1/webhook_endpoints", json={"url": url}))
    assert (refused["status"], refused["code"], refused["param"]) == (422, "url_not_allowed", "url")
    assert refused["errors"][0]["pointer"] == "/url"

    endpoint = await an_endpoint(api)
    changed = await api.http.patch(f"/v1/webhook_endpoints/{endpoint['id']}", json={"url": url})
    assert problem_of(changed)["code"] == "url_not_allowed"


async def test_unknown_events_are_refused(api: Api):
    refused = await api.http.post("/v1/webhook_endpoints", json={"url": URL, "events": ["job.exploded"]})
    assert problem_of(refused)["errors"][0]["pointer"] == "/events"


async def test_what_is_left_out_of_a_change_stays(api: Api):
    endpoint = await an_endpoint(api, description="CI", events=["job.failed"])
    place = f"/v1/webhook_endpoints/{endpoint['id']}"

    disabled = (await api.http.patch(place, json={"enabled": False})).json()
    assert disabled == {name: value for name, value in endpoint.items() if name != "secret"} | {"enabled": False}
    assert (await api.http.patch(place, json={"description": None})).json()["description"] is None
    moved = (await api.http.patch(place, json={"url": URL + "/2", "events": ["job.running"], "enabled": True})).json()
    assert (moved["url"], moved["events"], moved["enabled"]) == (URL + "/2", ["job.running"], True)


async def test_a_deleted_endpoint_is_gone(api: Api):
    endpoint = await an_endpoint(api)
    place = f"/v1/webhook_endpoints/{endpoint['id']}"
    assert (await api.http.delete(place)).json() == {
        "id": endpoint["id"],
        "object": "webhook_endpoint",
        "deleted": True,
    }
    assert problem_of(await api.http.get(place))["code"] == "not_found"
    assert (await api.http.get("/v1/webhook_endpoints")).json()["data"] == []


async def test_a_tenant_has_twenty_endpoints_and_pages_through_them(api: Api):
    ids = [(await an_endpoint(api))["id"] for _ in range(20)]
    refused = problem_of(await api.http.post("/v1/webhook_endpoints", json={"url": URL}))
    assert (refused["status"], refused["code"]) == (409, "too_many_webhook_endpoints")

    first = (await api.http.get("/v1/webhook_endpoints?order=asc&limit=15")).json()
    rest = (await api.http.get(f"/v1/webhook_endpoints?order=asc&limit=15&after={first['last_id']}")).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert sorted(ids) == [item["id"] for page in (first, rest) for item in page["data"]]
    newest = (await api.http.get(f"/v1/webhook_endpoints?after={first['last_id']}")).json()
    assert [item["id"] for item in newest["data"]] == [item["id"] for item in first["data"][-2::-1]]
    assert problem_of(await api.http.get("/v1/webhook_endpoints?after=job_1"))["code"] == "invalid_cursor"


async def test_an_event_goes_to_the_job_s_webhook_and_to_every_endpoint_that_asked_for_it(api: Api):
    asked, also = await an_endpoint(api, events=["job.cancelled"]), await an_endpoint(api)
    other = await an_endpoint(api, events=["job.failed"])
    disabled = await an_endpoint(api, enabled=False)
    job = await api.create(webhook={"url": URL + "/own", "events": ["job.cancelled"]})

    await api.http.post(f"/v1/jobs/{job['id']}/cancel")

    log = await api.store.deliveries.of_job(JobId(job["id"]))
    assert {delivery.endpoint_id for delivery in log} == {None, asked["id"], also["id"]}
    assert len(log) == 3
    assert len({(delivery.event_id, delivery.body) for delivery in log}) == 1, "one event, told to three"
    assert [len(await deliveries(api, endpoint)) for endpoint in (asked, also, other, disabled)] == [1, 1, 0, 0]
    [shown] = await deliveries(api, asked)
    assert (shown["event_type"], shown["job_id"], shown["status"]) == ("job.cancelled", job["id"], "pending")
    assert shown["attempts"] == []
    due = await api.redis.zrange("d:due", 0, -1)
    assert {f"dlv:{delivery.id}".encode() for delivery in log} <= set(due)


async def test_a_pause_is_told_to_endpoints_too(api: Api):
    endpoint = await an_endpoint(api)
    job = await begin(api, (await api.http.post("/v1/jobs", json=a_request())).json())
    await api.http.post(f"/v1/jobs/{job.id}/pause")
    assert [shown["event_type"] for shown in await deliveries(api, endpoint)] == ["job.paused"]


async def test_a_test_is_sent_whatever_the_endpoint_subscribes_to(api: Api):
    endpoint = await an_endpoint(api, events=["job.failed"])
    place = f"/v1/webhook_endpoints/{endpoint['id']}"

    answer = await api.http.post(f"{place}/test")

    assert answer.status_code == 202
    assert (answer.json()["event_type"], answer.json()["job_id"]) == ("webhook.test", None)
    assert await deliveries(api, endpoint) == [answer.json()]
    await api.http.patch(place, json={"enabled": False})
    refused = problem_of(await api.http.post(f"{place}/test"))
    assert (refused["status"], refused["code"]) == (409, "webhook_endpoint_disabled")
    again = await api.http.post(f"/v1/webhook_deliveries/{answer.json()['id']}/redeliver")
    assert problem_of(again)["code"] == "webhook_endpoint_disabled"


async def test_deliveries_are_listed_page_by_page_without_those_that_are_gone(api: Api):
    endpoint = await an_endpoint(api)
    ids = [(await api.http.post(f"/v1/webhook_endpoints/{endpoint['id']}/test")).json()["id"] for _ in range(5)]
    await api.redis.delete(f"d:delivery:{ids[1]}")

    left = sorted({*ids} - {ids[1]})
    assert [shown["id"] for shown in await deliveries(api, endpoint, order="asc", limit=3)] == left[:3]
    assert [shown["id"] for shown in await deliveries(api, endpoint, order="asc", after=left[2])] == left[3:]
    assert [shown["id"] for shown in await deliveries(api, endpoint)] == left[::-1]


async def test_a_rotated_secret_is_shown_once(api: Api):
    endpoint = await an_endpoint(api)
    place = f"/v1/webhook_endpoints/{endpoint['id']}"

    rotated = (await api.http.post(f"{place}/rotate_secret")).json()

    assert rotated["secret"].startswith("whsec_")
    assert rotated["secret"] != endpoint["secret"]
    assert rotated["previous_secret_until"] - endpoint["created_at"] in range(86_400, 86_410)
    assert "secret" not in (await api.http.get(place)).json()


async def test_deleting_a_job_forgets_what_endpoints_were_told_of_it(api: Api):
    endpoint = await an_endpoint(api)
    job = await api.create()
    await api.http.post(f"/v1/jobs/{job['id']}/cancel")
    found = await api.store.jobs.load(JobId(job["id"]))
    assert found is not None
    await api.store.purging.purge(found, passes={"teacher": 1})
    assert await deliveries(api, endpoint) == []

"""The courier against a receiver on loopback: which secrets sign, what a 410 ends, what is sent again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest
import redis.asyncio as redis
from builders import a_delivery, a_job, a_spec, accepted, now_ms, standing_at
from msgspec.structs import replace
from openai import OpenAI
from standardwebhooks import Webhook, WebhookVerificationError

from shared.deletion import mark_deleted
from shared.endpoints import OVERLAP_MS, SECRETS_MAX, Destinations, Endpoints
from shared.errors import Conflict
from shared.ids import DeliveryId, TenantId
from shared.lifecycle import JobStatus
from shared.models import Job, WebhookTarget
from shared.notices import Notices
from shared.store import Store, keys
from shared.store.jobs import Change
from shared.webhook_records import Delivery, WebhookEndpoint
from shared.webhooks import SCHEDULE_SECONDS
from worker.outbound import Outbound
from worker.webhooks import Courier

pytestmark = pytest.mark.anyio
LOOPBACK = (ip_network("127.0.0.0/8"),)


class Receiver:
    """Answers with the statuses it is given, the last one again and again."""

    def __init__(self) -> None:
        self.statuses = [200]
        self.received: list[tuple[dict[str, str], str]] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        body = (await reader.readexactly(int(fields["content-length"]))).decode()
        self.received.append((fields, body))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
        await writer.drain()
        writer.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    it = Receiver()
    server = await asyncio.start_server(it.serve, "127.0.0.1", 0)
    it.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with server:
        yield it


@pytest.fixture
def store(real_store: Store) -> Store:
    return real_store


@pytest.fixture
def endpoints(store: Store) -> Endpoints:
    return Endpoints(store, Destinations(allow_http=True, ports=(), allow_networks=LOOPBACK))


@pytest.fixture
def courier(store: Store) -> Courier:
    outbound = Outbound(allow_http=True, allow_networks=LOOPBACK, ports=(), timeout_seconds=5)
    return Courier(store, outbound, secret=b"s" * 32, timeout_seconds=5)


@pytest.fixture
async def job(store: Store) -> Job:
    return await accepted(store, a_job())


async def an_endpoint(endpoints: Endpoints, job: Job, url: str, *events: str) -> WebhookEndpoint:
    asked = events or ("job.failed", "webhook_endpoint.disabled")
    return await endpoints.create(job.tenant, url, asked, description=None, enabled=True)


async def an_event(store: Store, job: Job, event_type: str = "job.failed") -> None:
    told = await Notices(store).of(job, event_type)
    await store.jobs.change(job, Change(deliveries=told))


async def log(endpoints: Endpoints, endpoint: WebhookEndpoint) -> list[Delivery]:
    found, _ = await endpoints.deliveries(endpoint.tenant, endpoint.id, limit=100, after=None, newest_first=False)
    return found


def verified(received: tuple[dict[str, str], str], secret: str) -> Any:
    fields, body = received
    with OpenAI(api_key="unused", webhook_secret=secret) as client:
        client.webhooks.unwrap(body, fields)
    return Webhook(secret).verify(body, fields)


async def test_a_rotated_secret_and_the_one_before_both_verify_for_a_day(
    store: Store, endpoints: Endpoints, courier: Courier, job: Job, receiver: Receiver
):
    endpoint = await an_endpoint(endpoints, job, receiver.url)
    first = endpoint.secret
    second = (await endpoints.rotate(job.tenant, endpoint.id)).secret
    await an_event(store, job)
    [delivery] = await log(endpoints, endpoint)

    await courier.deliver(DeliveryId(delivery.id))

    assert verified(receiver.received[0], first)["data"]["id"] == job.id
    assert verified(receiver.received[0], second)["data"]["id"] == job.id
    assert receiver.received[0][0]["webhook-signature"].count("v1,") == 2
    [delivery] = await log(endpoints, endpoint)
    assert (delivery.status, [attempt.status for attempt in delivery.attempts]) == ("delivered", [200])

    await a_day_passes(store, endpoint)
    await endpoints.redeliver(job.tenant, delivery.id)
    await courier.deliver(DeliveryId(delivery.id))

    assert verified(receiver.received[1], second)["type"] == "job.failed"
    with pytest.raises(WebhookVerificationError):
        Webhook(first).verify(receiver.received[1][1], receiver.received[1][0])


async def a_day_passes(store: Store, endpoint: WebhookEndpoint) -> None:
    def later(present: WebhookEndpoint) -> WebhookEndpoint:
        retired = [replace(one, until_ms=one.until_ms - OVERLAP_MS) for one in present.retired_secrets]
        return replace(present, retired_secrets=retired)

    await store.webhooks.change(endpoint.tenant, endpoint.id, later)


async def test_rotated_again_within_the_day_every_secret_signs_until_its_own_day_is_over(
    store: Store, endpoints: Endpoints, courier: Courier, job: Job, receiver: Receiver
):
    endpoint = await an_endpoint(endpoints, job, receiver.url)
    rotated = [await endpoints.rotate(job.tenant, endpoint.id) for _ in range(SECRETS_MAX - 1)]
    secrets = [endpoint.secret, *(one.secret for one in rotated)]
    await an_event(store, job)
    [delivery] = await log(endpoints, endpoint)

    await courier.deliver(DeliveryId(delivery.id))

    assert [verified(receiver.received[0], secret)["data"]["id"] for secret in secrets] == [job.id] * SECRETS_MAX
    with pytest.raises(Conflict) as refused:
        await endpoints.rotate(job.tenant, endpoint.id)
    assert refused.value.code == "too_many_webhook_secrets"
    await a_day_passes(store, endpoint)
    await endpoints.rotate(job.tenant, endpoint.id)
    await endpoints.redeliver(job.tenant, delivery.id)
    await courier.deliver(DeliveryId(delivery.id))
    assert receiver.received[1][0]["webhook-signature"].count("v1,") == 2


async def test_redelivery_keeps_the_id_and_has_the_whole_schedule_before_it(
    valkey_client: redis.Redis, store: Store, endpoints: Endpoints, courier: Courier, job: Job, receiver: Receiver
):
    endpoint = await an_endpoint(endpoints, job, receiver.url)
    await an_event(store, job)
    [delivery] = await log(endpoints, endpoint)
    receiver.statuses = [500]
    for _ in SCHEDULE_SECONDS:
        await courier.deliver(DeliveryId(delivery.id))
        await _time_passes(valkey_client, delivery)
    [failed] = await log(endpoints, endpoint)
    assert (failed.status, len(failed.attempts)) == ("failed", 10)

    again = await endpoints.redeliver(job.tenant, delivery.id)
    await courier.deliver(DeliveryId(delivery.id))
    [pending] = await log(endpoints, endpoint)
    assert (again.status, pending.status, len(pending.attempts)) == ("pending", "pending", 11)

    receiver.statuses = [204]
    await endpoints.redeliver(job.tenant, delivery.id)  # also while the next attempt is hours away
    await courier.deliver(DeliveryId(delivery.id))
    [delivered] = await log(endpoints, endpoint)
    assert (delivered.status, len(delivered.attempts)) == ("delivered", 12)
    assert {fields["webhook-id"] for fields, _ in receiver.received} == {delivery.event_id}


async def test_asking_again_while_an_attempt_is_made_makes_no_second_one(
    store: Store, endpoints: Endpoints, job: Job, receiver: Receiver
):
    endpoint = await an_endpoint(endpoints, job, receiver.url)
    await an_event(store, job)
    [delivery] = await log(endpoints, endpoint)
    await store.deliveries.claim(DeliveryId(delivery.id), lease_seconds=30)

    await endpoints.redeliver(job.tenant, delivery.id)

    assert await store.deliveries.claim(DeliveryId(delivery.id), lease_seconds=30) is None


async def test_410_disables_the_endpoint_and_the_others_are_told(
    store: Store, endpoints: Endpoints, courier: Courier, job: Job, receiver: Receiver
):
    gone = await an_endpoint(endpoints, job, receiver.url)
    other = await an_endpoint(endpoints, job, receiver.url, "webhook_endpoint.disabled")
    await an_event(store, job)
    await an_event(store, job)
    first, second = await log(endpoints, gone)
    receiver.statuses = [410, 200]

    await courier.deliver(DeliveryId(first.id))
    await courier.deliver(DeliveryId(second.id))

    now = await endpoints.get(job.tenant, gone.id)
    assert (now.enabled, now.disabled_reason) == (False, "gone")
    assert len(receiver.received) == 1, "what was on its way is not sent any more"
    first, second = await log(endpoints, gone)
    assert [first.status, second.status, len(second.attempts)] == ["failed", "failed", 0]
    [told] = await log(endpoints, other)
    await courier.deliver(DeliveryId(told.id))
    event = verified(receiver.received[1], other.secret)
    assert event["type"] == "webhook_endpoint.disabled"
    assert event["data"] == {"id": gone.id, "object": "webhook_endpoint", "enabled": False}
    await an_event(store, job)
    assert len(await log(endpoints, gone)) == 2, "nothing new is written for it"

    enabled = await endpoints.change(job.tenant, gone.id, {"enabled": True})
    assert (enabled.enabled, enabled.disabled_reason) == (True, None)


async def test_410_ends_what_a_job_tells_its_own_webhook(store: Store, courier: Courier, job: Job, receiver: Receiver):
    first, second = a_delivery(job, url=receiver.url), a_delivery(job, url=receiver.url)
    await store.jobs.change(job, Change(deliveries=[first, second]))
    receiver.statuses = [410, 200]

    await courier.deliver(DeliveryId(first.id))
    await courier.deliver(DeliveryId(second.id))

    assert len(receiver.received) == 1
    assert [delivery.status for delivery in await store.deliveries.of_job(job.id)] == ["failed", "failed"]


async def test_a_mended_url_is_where_the_next_attempt_goes(
    store: Store, endpoints: Endpoints, courier: Courier, job: Job, receiver: Receiver
):
    endpoint = await an_endpoint(endpoints, job, "http://127.0.0.1:1/")
    test = await endpoints.test(job.tenant, endpoint.id)
    await courier.deliver(DeliveryId(test.id))
    await endpoints.change(job.tenant, endpoint.id, {"url": receiver.url})

    await endpoints.redeliver(job.tenant, test.id)
    await courier.deliver(DeliveryId(test.id))

    [delivery] = await log(endpoints, endpoint)
    assert [attempt.error for attempt in delivery.attempts] == ["connection_refused", None]
    assert verified(receiver.received[0], endpoint.secret)["type"] == "webhook.test"


async def test_nothing_is_sent_to_a_deleted_endpoint(
    store: Store, endpoints: Endpoints, courier: Courier, job: Job, receiver: Receiver
):
    endpoint = await an_endpoint(endpoints, job, receiver.url)
    test = await endpoints.test(job.tenant, endpoint.id)
    await endpoints.delete(job.tenant, endpoint.id)

    await courier.deliver(DeliveryId(test.id))

    assert receiver.received == []
    assert (await store.deliveries.get(job.tenant, DeliveryId(test.id))).status == "failed"
    assert await Notices(store).of(job, "job.failed") == []


async def test_events_of_one_tenant_reach_no_endpoint_of_another(
    store: Store, endpoints: Endpoints, job: Job, receiver: Receiver
):
    await endpoints.create(TenantId("rival"), receiver.url, ["job.failed"], description=None, enabled=True)
    assert await Notices(store).of(job, "job.failed") == []


async def test_the_log_tells_each_kind_of_trouble_of_a_receiver_that_is_away_for_an_hour(
    store: Store, endpoints: Endpoints, job: Job, receiver: Receiver, valkey_client: redis.Redis
):
    """Down, hanging, redirecting, and at a private address on the second look-up; then it is back."""

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the courier gives up
        writer.close()

    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = int(receiver.url.rpartition(":")[2].strip("/"))
    looked_up = iter([["127.0.0.1"], ["10.0.0.1"], ["127.0.0.1"], ["127.0.0.1"]])

    async def resolve(*_: Any) -> list[str]:
        return next(looked_up)

    outbound = Outbound(allow_http=True, allow_networks=LOOPBACK, ports=(), timeout_seconds=0.3, resolve=resolve)
    courier = Courier(store, outbound, secret=b"s" * 32, timeout_seconds=0.3)
    named = f"http://hooks.example.com:{port}/"
    endpoint = await an_endpoint(endpoints, job, named)
    test = await endpoints.test(job.tenant, endpoint.id)
    receiver.statuses = [302, 500, 200]
    waits_seconds: list[float] = []
    for url in (
        named,  # redirects
        named,  # and now lies in a private network
        "http://127.0.0.1:1/",  # is down
        f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/",  # hangs
        named,  # is broken
        named,  # is back
    ):
        await endpoints.change(job.tenant, endpoint.id, {"url": url})
        await courier.deliver(DeliveryId(test.id))
        due_ms = await valkey_client.zscore(keys.DUE, f"dlv:{test.id}")
        if due_ms is not None:
            waits_seconds.append((due_ms - now_ms()) / 1000)
        await courier.deliver(DeliveryId(test.id))  # rung before its time: nothing is sent
        await _time_passes(valkey_client, test)
    silent.close()
    await silent.wait_closed()

    [delivery] = await log(endpoints, endpoint)
    assert [(attempt.status, attempt.error) for attempt in delivery.attempts] == [
        (302, "redirect"),
        (None, "address_not_allowed"),
        (None, "connection_refused"),
        (None, "timeout"),
        (500, None),
        (200, None),
    ]
    assert delivery.status == "delivered"
    assert len(receiver.received) == 3
    for waited, wanted in zip(waits_seconds, SCHEDULE_SECONDS[1:], strict=False):
        assert wanted - 2 <= waited <= wanted * 1.1
    assert len(waits_seconds) == 5


async def _time_passes(client: redis.Redis, delivery: Delivery) -> None:
    """Until the next attempt is due."""
    await client.hset(keys.delivery(DeliveryId(delivery.id)), "lease_until_ms", 0)


async def test_the_news_of_a_deletion_is_sent_after_everything_else_of_the_job_is_gone(
    valkey_client: redis.Redis, store: Store, endpoints: Endpoints, courier: Courier, receiver: Receiver
):
    target = WebhookTarget(url=receiver.url + "own", events=["job.succeeded", "job.deleted"])
    spec = replace(a_spec(), webhook=target, metadata={"team": "canary"})
    job = await standing_at(store, await accepted(store, a_job(spec=spec)), JobStatus.SUCCEEDED)
    endpoint = await an_endpoint(endpoints, job, receiver.url, "job.deleted")
    await an_event(store, job, "job.succeeded")
    await mark_deleted(store, job, delete_models=False, now_ms=now_ms())
    await store.purging.bury(job.id, await store.purging.purge(job, passes={"teacher": 0}))
    due = [member.decode() for member in await valkey_client.zrange(keys.DUE, 0, -1)]
    told = [DeliveryId(member[4:]) for member in due if member.startswith("dlv:")]
    assert len(told) == 2  # that it has succeeded went with the job

    receiver.statuses = [500, 200]
    for delivery in told:
        await courier.deliver(delivery)
    assert {body for _, body in receiver.received} == {receiver.received[0][1]}
    assert "canary" not in receiver.received[0][1]
    retried = [m for m in await valkey_client.zrange(keys.DUE, 0, -1) if m.startswith(b"dlv:")]
    assert len(retried) == 1
    [kept] = await log(endpoints, endpoint)
    event = verified(receiver.received[0 if retried[0].decode()[4:] == kept.id else 1], endpoint.secret)
    assert (event["type"], event["data"]["id"], event["data"]["metadata"]) == ("job.deleted", job.id, {})

"""Events that providers send: signed or refused, and only ever a hint to look."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from api_kit import Api, FakeServer, begin, problem_of, some_settings
from standardwebhooks import Webhook

from shared.ids import JobId
from shared.settings import ProviderSettings
from shared.store import Store, keys

pytestmark = pytest.mark.anyio
SECRET = "whsec_" + base64.b64encode(b"a provider's signing key").decode()
PROVIDERS = {
    "openai": ProviderSettings(base_url="http://127.0.0.1:1/v1", api_key="sk-x", webhook_secret=SECRET),
    "silent": ProviderSettings(base_url="http://127.0.0.1:1/v1"),
}


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    redis = FakeServer()
    made = Api(some_settings(providers=PROVIDERS), Store(redis, script_headers=False), redis)
    made.http.headers.pop("authorization")
    async with made.http:
        yield made
    await redis.aclose()


def an_event(about: str = "ftjob-1", kind: str = "fine_tuning.job.succeeded") -> bytes:
    return json.dumps({"id": "evt_1", "object": "event", "type": kind, "data": {"id": about}}).encode()


def signed(body: bytes, *, event_id: str = "wh_1", secret: str = SECRET, age_seconds: float = 0) -> dict[str, str]:
    at = datetime.now(UTC) - timedelta(seconds=age_seconds)
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(event_id, at, body.decode()),
    }


async def send(api: Api, body: bytes, *, to: str = "openai", **how: Any) -> httpx2.Response:
    return await api.http.post(f"/v1/provider_events/{to}", content=body, headers=signed(body, **how))


async def a_job_waiting_for(api: Api, object_id: str) -> JobId:
    """Due in an hour, as when it was looked at just now."""
    job = await begin(api, (await _with_key(api)))
    await api.store.followed.expect("openai", object_id, job.id)
    await api.redis.zadd(keys.DUE, {f"job:{job.id}": 9_999_999_999_999})
    api.bell.rung.clear()
    return job.id


async def _with_key(api: Api) -> dict[str, Any]:
    api.http.headers["authorization"] = "Bearer dk_test_0123456789abcdef"
    job = await api.create()
    api.http.headers.pop("authorization")
    return job


async def due_at(api: Api, job_id: str) -> float:
    score: float = await api.redis.zscore(keys.DUE, f"job:{job_id}")
    return score / 1000


@pytest.mark.parametrize(("about", "kind"), [("ftjob-1", "fine_tuning.job.succeeded"), ("batch_1", "batch.completed")])
async def test_an_event_makes_the_job_that_waits_for_it_due_and_rings(api: Api, about: str, kind: str):
    job_id = await a_job_waiting_for(api, about)

    answer = await send(api, an_event(about, kind))

    assert (answer.status_code, answer.content) == (204, b"")
    assert await due_at(api, job_id) == pytest.approx(datetime.now().timestamp(), abs=5)
    await api.app.state.services.jobs.close()
    assert [id_ for _, id_ in api.bell.rung] == [job_id]


async def test_an_event_that_comes_again_does_nothing(api: Api):
    job_id = await a_job_waiting_for(api, "ftjob-1")
    await send(api, an_event())
    await api.redis.zadd(keys.DUE, {f"job:{job_id}": 9_999_999_999_999})

    again, other = await send(api, an_event()), await send(api, an_event(), event_id="wh_2")

    assert (again.status_code, other.status_code) == (204, 204)
    await api.app.state.services.jobs.close()
    assert len(api.bell.rung) == 2


@pytest.mark.parametrize(
    "body",
    [
        an_event("ftjob-nobody"),
        an_event("ftjob-1", "response.completed"),
        an_event("resp_1", "fine_tuning.job.succeeded"),
        an_event("ftjob-" + "1" * 1000),
        b'{"type": "fine_tuning.job.succeeded"}',
        b'{"type": 7, "data": []}',
        b"no JSON at all",
        b"[" * 60_000,
        b"",
    ],
)
async def test_what_is_about_nothing_of_ours_is_taken_and_does_nothing(api: Api, body: bytes):
    job_id = await a_job_waiting_for(api, "ftjob-1")

    answer = await send(api, body)

    assert answer.status_code == 204
    assert await due_at(api, job_id) > 9_000_000_000
    assert api.bell.rung == []


async def test_a_job_that_has_ended_is_not_due_again(api: Api):
    job_id = await a_job_waiting_for(api, "ftjob-1")
    await api.redis.zrem(keys.DUE, f"job:{job_id}")

    await send(api, an_event())

    assert await api.redis.zscore(keys.DUE, f"job:{job_id}") is None


OTHER = "whsec_" + base64.b64encode(b"somebody else's signing key").decode()


@pytest.mark.parametrize(
    "wrong",
    [
        {"webhook-signature": "v1,AAAA"},
        {"webhook-signature": "no comma"},
        {"webhook-signature": "v1,not base64!"},
        {"webhook-signature": "v1,a,b"},
        {"webhook-signature": "v1,\u00e9"},
        {"webhook-signature": ""},
        {"webhook-timestamp": "yesterday"},
        {"webhook-timestamp": "inf"},
        {"webhook-timestamp": "1e400"},
        {"webhook-id": "another"},
        {"webhook-id": ""},
        signed(an_event(), secret=OTHER),
        signed(an_event(), age_seconds=4_000),
        signed(an_event(), age_seconds=-4_000),
    ],
)
async def test_whatever_is_not_signed_is_refused_and_moves_nothing(api: Api, wrong: dict[str, str]):
    job_id = await a_job_waiting_for(api, "ftjob-1")
    headers = {name: value.encode("latin-1") for name, value in {**signed(an_event()), **wrong}.items()}

    answer = await api.http.post("/v1/provider_events/openai", content=an_event(), headers=headers)

    assert (answer.status_code, problem_of(answer)["code"]) == (400, "invalid_signature")
    assert await due_at(api, job_id) > 9_000_000_000


async def test_a_body_changed_by_one_byte_is_refused(api: Api):
    answer = await api.http.post("/v1/provider_events/openai", content=an_event() + b" ", headers=signed(an_event()))
    assert problem_of(answer)["code"] == "invalid_signature"
    answer = await api.http.post("/v1/provider_events/openai", content=b"\xff\xfe", headers=signed(an_event()))
    assert problem_of(answer)["code"] == "invalid_signature"


async def test_a_provider_without_a_secret_is_told_from_none_by_nothing(api: Api):
    bodies = [problem_of(await send(api, an_event(), to=name)) for name in ("silent", "nobody")]
    assert [body["status"] for body in bodies] == [404, 404]
    assert bodies[0]["detail"] == bodies[1]["detail"]


async def test_a_large_body_is_not_read(api: Api):
    answer = await send(api, an_event("x" * 70_000))
    assert problem_of(answer)["code"] == "body_too_large"


async def test_strangers_cannot_use_up_what_the_provider_may_send(api: Api):
    allowances = api.app.state.services.event_allowances
    allowances._per_minute = lambda _: 1
    unsigned = {
        "content-type": "application/json",
        "webhook-id": "a",
        "webhook-timestamp": "1",
        "webhook-signature": "v1,AAAA",
    }
    statuses = set()
    for _ in range(5):
        answer = await api.http.post("/v1/provider_events/openai", content=b"{}", headers=unsigned)
        statuses.add(answer.status_code)

    assert statuses == {400, 429}
    assert (await send(api, an_event())).status_code == 204


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_short", "not base64 at all"])
def test_a_secret_that_could_verify_nothing_is_refused_at_start(secret: str):
    with pytest.raises(ValueError, match="whsec_"):
        ProviderSettings(base_url="http://127.0.0.1:1/v1", webhook_secret=secret)


def test_openais_secret_comes_from_its_own_variable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", SECRET)
    found = some_settings(providers={}).providers["openai"].webhook_secret
    assert found is not None
    assert found.get_secret_value() == SECRET

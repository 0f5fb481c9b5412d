"""Models: who sees which, and what a request is told of them before anything is spent."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from api_kit import Api, FakeServer, a_request, loaded, problem_of, some_settings

from api.deps import SCOPES
from shared.catalogue import Catalogue, ListedModel
from shared.ids import TenantId
from shared.models import FineTune
from shared.preflight import Catalogues, Named
from shared.settings import ProviderSettings, TenantSettings
from shared.store import Store, keys
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
ACME, RIVAL = TenantId("acme"), TenantId("rival")
TEACHER, STUDENT = "gpt-6.1-sol", "gpt-4.1-mini-2025-04-14"
TODAY = datetime.now(UTC).date()
TUNED = f"ft:{STUDENT}:org:triage:abc"
RATED = {"min_accepted": 5}
SCORE = {"type": "score_model", "provider": "openai", "model": TEACHER}


async def read(
    api: Api,
    *more: str,
    provider: str = "openai",
    ago: float = 60,
    today: date = TODAY,
    outcome: Any = "ok",
    **dates: str,
) -> None:
    """As a worker has read the provider's models.  dates: of the day that `teacher` or `student` retires."""
    at_ms = int((time.time() - ago) * 1000)
    models = {name: ListedModel(owned_by="system") for name in (TEACHER, STUDENT, *more)}
    for role, name in (("teacher", TEACHER), ("student", STUDENT)):
        models[name] = ListedModel(owned_by="system", shutdown_date=dates.get(role))
    catalogue = Catalogue(outcome=outcome, tried_at_ms=at_ms, read_at_ms=at_ms, today=today.isoformat(), models=models)
    await api.store.catalogues.put(provider, catalogue)
    api.app.state.services.catalogues._seen.clear()


async def as_tenant(api: Api, tenant: TenantId, **more: Any) -> dict[str, str]:
    _, secret = await api.store.api_keys.create(tenant, SCOPES, **more)
    return {"Authorization": f"Bearer {secret}"}


async def tuned(api: Api, headers: dict[str, str], model: str = TUNED) -> None:
    """A job of this tenant has made this model."""
    job = (await api.http.post("/v1/jobs", json=a_request(), headers=headers)).json()
    change = Change(set={"fine_tunes": [FineTune(step="ended", status="succeeded", fine_tuned_model=model)]})
    await api.store.jobs.change(await loaded(api, job), change)


def in_days(days: int) -> str:
    return (TODAY + timedelta(days=days)).isoformat()


async def names(api: Api, headers: dict[str, str] | None = None, query: str = "") -> list[str]:
    return [row["id"] for row in (await api.http.get(f"/v1/models{query}", headers=headers)).json()["data"]]


# --- the list --------------------------------------------------------------------------------------------------------


async def test_models_are_listed_with_their_price_and_the_day_they_retire(api: Api):
    await read(api, "house-model", student=in_days(50))

    [student, teacher, house] = (await api.http.get("/v1/models?provider=openai")).json()["data"]

    assert student == {
        "id": f"openai/{STUDENT}",
        "object": "model",
        "provider": "openai",
        "model": STUDENT,
        "created": None,
        "owned_by": "system",
        "prices": {"input_usd": "0.4", "cached_input_usd": "0.1", "output_usd": "1.6", "training_usd": "5"},
        "shutdown_date": in_days(50),
        "retired": False,
        "can_train": True,
        "fine_tuned": False,
    }
    assert teacher["prices"]["input_usd"] is not None
    assert set(house["prices"].values()) == {None}


async def test_a_retired_model_is_listed_as_one_that_cannot_be_trained(api: Api):
    await read(api, student=in_days(0), teacher=in_days(1))
    [student, teacher] = (await api.http.get("/v1/models?provider=openai")).json()["data"]
    assert (student["retired"], student["can_train"], student["prices"]["training_usd"]) == (True, False, None)
    assert (teacher["retired"], teacher["can_train"]) == (False, True)


async def test_models_are_paged_over_all_providers(api: Api):
    await read(api)
    await read(api, "zeta", provider="closed")
    wanted = [f"closed/{STUDENT}", f"closed/{TEACHER}", "closed/zeta", f"openai/{STUDENT}", f"openai/{TEACHER}"]

    assert await names(api) == wanted
    assert await names(api, query="?order=desc") == wanted[::-1]
    found: list[str] = []
    while True:
        after = f"&after={found[-1]}" if found else ""
        page = (await api.http.get(f"/v1/models?limit=2{after}")).json()
        found += [row["id"] for row in page["data"]]
        if not page["has_more"]:
            break
    assert found == wanted
    assert problem_of(await api.http.get("/v1/models?after=x"))["code"] == "invalid_cursor"
    assert problem_of(await api.http.get("/v1/models?provider=nowhere"))["code"] == "validation_failed"


async def test_a_fine_tuned_model_is_shown_to_the_tenant_whose_job_made_it(api: Api):
    acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
    await tuned(api, acme)
    await tuned(api, rival, "house-tuned-7")
    await read(api, TUNED, "house-tuned-7", "ft:gpt-4.1:org:somebody:xyz")

    public = [f"openai/{STUDENT}", f"openai/{TEACHER}"]
    assert await names(api, acme) == sorted([f"openai/{TUNED}", *public])
    assert await names(api, rival) == sorted([*public, "openai/house-tuned-7"])
    assert await names(api) == public, "nobody's, and not the operator's either"
    row = (await api.http.get("/v1/models", headers=acme)).json()["data"][0]
    assert (row["model"], row["fine_tuned"]) == (TUNED, True)
    assert row["prices"]["input_usd"] == "0.8"


async def test_a_tenants_new_model_is_listed_to_it_alone_before_the_providers_list_is_read_again(api: Api):
    acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
    await read(api)
    public = await names(api, rival)

    await tuned(api, acme)

    assert await names(api, acme) == sorted([*public, f"openai/{TUNED}"])
    assert await names(api, rival) == public
    row = next(row for row in (await api.http.get("/v1/models", headers=acme)).json()["data"] if row["model"] == TUNED)
    assert (row["fine_tuned"], abs(row["created"] - time.time()) < 60) == (True, True)
    await api.store.catalogues.forget_owner("openai", TUNED)
    assert await names(api, acme) == public


async def test_a_model_that_the_provider_has_not_listed_within_the_hour_is_not_listed_any_more(api: Api):
    acme = await as_tenant(api, ACME)
    await read(api)
    await tuned(api, acme)
    await api.redis.zincrby(keys.models_made_lately("openai"), -3_600_001, TUNED)

    assert f"openai/{TUNED}" not in await names(api, acme)


async def test_a_provider_without_a_list_of_models_lists_no_new_one(api: Api):
    acme = await as_tenant(api, ACME)
    await read(api, outcome="unlisted")
    await tuned(api, acme)

    assert f"openai/{TUNED}" not in await names(api, acme)


# --- at submit -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"teacher": {"provider": "openai", "model": "gpt-6.1-sool"}}, "teacher.model"),
        ({"students": [{"provider": "openai", "model": "gpt-6.1-sool"}]}, "students.0.model"),
        ({"evaluation": {"graders": [SCORE | {"model": "gpt-6.1-sool"}]}}, "evaluation.graders.0.model"),
        ({"curation": RATED | {"grader": SCORE | {"model": "gpt-6.1-sool"}}}, "curation.grader.model"),
    ],
)
async def test_a_model_that_the_provider_lacks_is_refused_with_near_ones(api: Api, change: dict[str, Any], param: str):
    await read(api)

    problem = problem_of(await api.http.post("/v1/jobs", json=a_request(**change)))

    assert (problem["status"], problem["code"], problem["param"]) == (422, "model_unknown", param)
    assert problem["detail"].endswith("?"), "a question, without a full stop"
    assert f"did you mean {TEACHER}" in problem["detail"]


async def test_another_tenants_model_is_told_from_none_by_nothing(api: Api):
    acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
    await tuned(api, acme)
    await read(api, TUNED)
    asked = [a_request(students=[{"provider": "openai", "model": name}]) for name in (TUNED, TUNED[:-1] + "d")]

    details = [problem_of(await api.http.post("/v1/jobs", json=body, headers=rival))["detail"] for body in asked]
    assert details[0] == details[1]
    assert TUNED not in details[0]
    assert (await api.http.post("/v1/jobs", json=asked[0], headers=acme)).status_code == 202
    await read(api)
    assert (await api.http.post("/v1/jobs", json=asked[0], headers=acme)).status_code == 202, "not listed yet"
    await api.redis.delete(keys.catalogue("openai"))
    api.app.state.services.catalogues._seen.clear()
    assert (await api.http.post("/v1/jobs", json=asked[0], headers=rival)).status_code == 422


async def test_providers_at_one_address_have_the_same_models_and_owners(api: Api):
    acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
    await tuned(api, acme)
    await read(api, TUNED, provider="open")  # another name for the same account
    body = a_request(teacher={"provider": "open", "model": TUNED})

    refused = await api.http.post("/v1/jobs", json=body, headers=rival)

    assert problem_of(refused)["code"] == "model_unknown"
    assert (await api.http.post("/v1/jobs", json=body, headers=acme)).status_code == 202
    assert f"open/{TUNED}" in await names(api, acme)
    assert f"open/{TUNED}" not in await names(api, rival)


async def test_whose_a_model_is_need_not_be_read_again_for_one_that_is_listed_and_nobodys(api: Api, monkeypatch: Any):
    await tuned(api, await as_tenant(api, ACME))
    await read(api, TUNED)
    clock = [time.time()]
    openai = api.app.state.services.settings.providers["openai"]
    catalogues = Catalogues(api.store, {"openai": openai}, clock=lambda: clock[0])
    asked: list[list[str]] = []
    whole = api.store.catalogues.look_up

    async def look_up(models: Any, providers: Any) -> Any:
        asked.append([model for _, model in models])
        return await whole(models, providers)

    monkeypatch.setattr(api.store.catalogues, "look_up", look_up)
    named = [Named("/teacher/model", "openai", name) for name in (TEACHER, TUNED, "gpt-17")]

    for _ in range(2):
        owners, known = await catalogues.look_up(named, ["openai"])
        assert (owners, [*known]) == ([None, ACME, None], ["openai"])
    assert await catalogues.look_up(named[:1], ["openai"]) == ([None], known)
    clock[0] += 11
    await catalogues.look_up(named[:1], ["openai"])

    assert asked == [[TEACHER, TUNED, "gpt-17"], [TUNED, "gpt-17"], [TEACHER]]


@pytest.mark.parametrize("days", [0, -30])
async def test_a_retired_model_is_refused(api: Api, days: int):
    await read(api, student=in_days(days))
    problem = problem_of(await api.http.post("/v1/jobs", json=a_request()))
    assert (problem["status"], problem["code"], problem["param"]) == (422, "model_retired", "students.0.model")


async def test_a_day_is_counted_by_the_providers_calendar(api: Api):
    await read(api, student=in_days(-3), today=TODAY - timedelta(days=100), ago=0)
    assert (await api.http.post("/v1/jobs", json=a_request())).status_code == 202


async def test_models_that_retire_while_the_job_is_kept_are_warned_of(api: Api):
    await read(api, teacher=in_days(8), student=in_days(7))

    async def warned(**changes: Any) -> list[str]:
        job = await api.create(**changes)
        return [row["message"] for row in job["warnings"] if row["code"] == "model_retires_soon"]

    teacher, student = await warned(retention_days=7)
    assert teacher.startswith(f"teacher.model retires on {in_days(8)}")
    assert student.startswith(f"students.0.model retires on {in_days(7)}")
    assert await warned(retention_days=5) == []


@pytest.mark.parametrize("ago", [4_000.0, None])
async def test_without_a_fresh_catalogue_nothing_is_refused(api: Api, ago: float | None):
    if ago is not None:
        await read(api, ago=ago, student=in_days(-30))
    students = [{"provider": "openai", "model": "gpt-4.1-nano-new"}]
    assert (await api.http.post("/v1/jobs", json=a_request(students=students))).status_code == 202


async def test_a_provider_that_does_not_list_all_its_models_has_no_other_refused():
    redis = FakeServer()
    provider = ProviderSettings(base_url="http://127.0.0.1:1/v1", prices="openai", lists_models=False)
    api = Api(some_settings(providers={"openai": provider}), Store(redis, script_headers=False), redis)
    async with api.http:
        acme, rival = await as_tenant(api, ACME), await as_tenant(api, RIVAL)
        await tuned(api, acme)
        await read(api, student=in_days(-3))

        async def code(headers: dict[str, str], teacher: str, student: str) -> str | None:
            teaching = {"provider": "openai", "model": teacher}
            body = a_request(teacher=teaching, students=[{"provider": "openai", "model": student}])
            answer = await api.http.post("/v1/jobs", json=body, headers=headers)
            return None if answer.status_code == 202 else str(problem_of(answer)["code"])

        assert await code(rival, "our-deployment", "a-base-model") is None
        assert await code(rival, "our-deployment", STUDENT) == "model_retired", "what is listed counts"
        assert await code(rival, TUNED, "a-base-model") == "model_unknown", "another tenant's stays another's"
        assert await code(acme, TUNED, "a-base-model") is None


async def test_a_key_that_was_refused_lately_is_warned_of(api: Api):
    await read(api, outcome="auth_failed", ago=4_000)
    job = await api.create()
    assert [row["code"] for row in job["warnings"]].count("provider_key_refused") == 1


@pytest.mark.parametrize(("days", "code"), [(46, None), (45, "soon"), (0, "soon"), (-1, "closed")])
async def test_a_provider_that_stops_training_is_warned_of_and_then_refused(days: int, code: str | None):
    redis = FakeServer()
    last_day = TODAY + timedelta(days=days)
    provider = ProviderSettings(base_url="http://127.0.0.1:1/v1", prices="openai", training_closes=last_day)
    api = Api(some_settings(providers={"openai": provider}), Store(redis, script_headers=False), redis)
    async with api.http:
        answer = await api.http.post("/v1/jobs", json=a_request())
        if code == "closed":
            problem = problem_of(answer)
            assert (problem["code"], problem["param"]) == ("provider_training_closed", "students.0.provider")
        else:
            codes = [row["code"] for row in answer.json()["warnings"]]
            assert ("provider_training_closes_soon" in codes) is (code == "soon")


# --- providers -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def fenced() -> Any:
    """acme may use `openai` alone; there is `lab` too."""
    redis = FakeServer()
    provider = ProviderSettings(base_url="http://127.0.0.1:1/v1", prices="openai", can_store=True)
    settings = some_settings(
        providers={"openai": provider, "lab": provider}, tenants={"acme": TenantSettings(providers=("openai",))}
    )
    api = Api(settings, Store(redis, script_headers=False), redis)
    async with api.http:
        yield api
    await redis.aclose()


LAB: dict[str, Any] = {"provider": "lab", "model": STUDENT}
STORED = {"type": "stored_completions", "provider": "lab", "metadata": {"a": "b"}}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"teacher": LAB}, "teacher.provider"),
        ({"students": [LAB]}, "students.0.provider"),
        ({"evaluation": {"graders": [SCORE | {"provider": "lab"}]}}, "evaluation.graders.0.provider"),
        ({"curation": RATED | {"grader": SCORE | {"provider": "lab"}}}, "curation.grader.provider"),
        ({"source": STORED}, "source.provider"),
    ],
)
@pytest.mark.parametrize("query", ["", "?validate_only=true"])
async def test_a_provider_that_the_tenant_may_not_use_is_refused(
    fenced: Api, change: dict[str, Any], param: str, query: str
):
    acme, rival = await as_tenant(fenced, ACME), await as_tenant(fenced, RIVAL)
    body = a_request(**change)

    problem = problem_of(await fenced.http.post(f"/v1/jobs{query}", json=body, headers=acme))

    assert (problem["status"], problem["code"], problem["param"]) == (403, "provider_not_allowed", param)
    assert (await fenced.http.post(f"/v1/jobs{query}", json=body, headers=rival)).status_code in {200, 202}


async def test_a_key_can_be_held_to_some_of_the_tenants_providers(fenced: Api):
    made = await fenced.http.post(
        "/v1/api_keys", json={"tenant": "rival", "scopes": list(SCOPES), "providers": ["lab"]}
    )
    assert made.json()["providers"] == ["lab"]
    key = {"Authorization": f"Bearer {made.json()['key']}"}

    assert problem_of(await fenced.http.post("/v1/jobs", json=a_request(), headers=key))["status"] == 403
    own = a_request(teacher=LAB, students=[LAB])
    assert (await fenced.http.post("/v1/jobs", json=own, headers=key)).status_code == 202
    assert (await fenced.http.get("/v1/limits", headers=key)).json()["providers"] == ["lab"]
    assert problem_of(await fenced.http.get("/v1/models?provider=openai", headers=key))["status"] == 422


async def test_a_key_that_is_held_to_providers_makes_none_that_is_not(fenced: Api):
    key = await as_tenant(fenced, RIVAL, providers=["lab"])

    async def made(**more: Any) -> Any:
        return await fenced.http.post("/v1/api_keys", json={"scopes": ["jobs:read"], **more}, headers=key)

    assert (await made()).json()["providers"] == ["lab"]
    assert problem_of(await made(providers=["openai"]))["code"] == "provider_not_allowed"
    unknown = problem_of(await made(providers=["nowhere"]))
    assert (unknown["status"], unknown["errors"][0]["pointer"]) == (422, "/providers/0")


@pytest.mark.parametrize("providers", [["lab"], ["openai", "lab"], []])
async def test_a_key_that_could_ask_nobody_is_not_made(fenced: Api, providers: list[str]):
    body = {"tenant": "acme", "scopes": ["jobs:write"], "providers": providers}
    problem = problem_of(await fenced.http.post("/v1/api_keys", json=body))
    assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/providers")


async def test_a_job_does_not_go_on_and_is_not_run_again_with_a_provider_that_is_not_allowed(fenced: Api):
    free, held = await as_tenant(fenced, RIVAL), await as_tenant(fenced, RIVAL, providers=["lab"])
    paused, job = [(await fenced.http.post("/v1/jobs", json=a_request(), headers=free)).json() for _ in range(2)]
    await fenced.http.post(f"/v1/jobs/{paused['id']}/pause", headers=free)
    await fenced.http.post(f"/v1/jobs/{job['id']}/cancel", headers=free)

    resumed = await fenced.http.post(f"/v1/jobs/{paused['id']}/resume", headers=held)
    retried = await fenced.http.post(f"/v1/jobs/{job['id']}/retry", headers=held)

    assert [problem_of(answer)["code"] for answer in (resumed, retried)] == ["provider_not_allowed"] * 2
    assert (await fenced.http.post(f"/v1/jobs/{paused['id']}/resume", headers=free)).status_code == 200
    assert (await fenced.http.post(f"/v1/jobs/{job['id']}/retry", headers=free)).status_code == 202

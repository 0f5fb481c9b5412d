"""Every error answer is a problem document, says nothing of what was sent, and leaves nothing stored."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
from api_kit import ADMIN_KEY, Api, FakeServer, a_request, problem_of, some_settings

import api as api_package
from api import problem_table
from api.app import NoAdminKey, create_app
from api.deps import SCOPES
from shared.errors import DistillError, ProviderError
from shared.ids import TenantId
from shared.rules import NAMED_FAULTS
from shared.store import Store, keys

pytestmark = pytest.mark.anyio
REPO = Path(__file__).parents[2]
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/jobs/", 404, "not_found"),
        ("GET", "/v1/jobs/job_none", 404, "not_found"),
        ("GET", "/v1/jobs/%ff%00", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{'0' * 34}", 404, "not_found"),
        ("GET", f"/v1/jobs/job_{'0' * 34}/dataset", 404, "not_found"),
        ("GET", "/problems/nonsense", 404, "not_found"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
        ("PUT", "/openapi.json", 405, "method_not_allowed"),
        ("GET", "/v1/jobs?stauts=queued", 422, "validation_failed"),
        ("GET", "/v1/jobs?limit=0", 422, "validation_failed"),
        ("GET", "/v1/jobs?limit=101", 422, "validation_failed"),
        ("GET", "/v1/jobs?limit=5&limit=6", 422, "validation_failed"),
        ("GET", "/v1/jobs?order=sideways", 422, "validation_failed"),
        ("GET", "/v1/jobs?status=nonsense", 422, "validation_failed"),
        ("GET", "/v1/jobs?after=evt_1", 400, "invalid_cursor"),
        ("GET", "/v1/webhook_event_types?x=1", 422, "validation_failed"),
    ],
)
async def test_whatever_goes_wrong_is_told_as_a_problem(api: Api, method: str, path: str, status: int, code: str):
    answer = await api.http.request(method, path)
    assert (answer.status_code, problem_of(answer)["code"]) == (status, code)


async def test_a_wrong_method_is_told_every_right_one(api: Api):
    answer = await api.http.put("/v1/jobs")
    assert answer.headers["allow"] == "GET, HEAD, POST"
    for method in ("PUT", "OPTIONS"):
        assert (await api.http.request(method, "/openapi.json")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "accept", ["image/png", "application/xml", "application/json;q=0", "text/event-stream; q=0.00"]
)
async def test_an_accept_header_that_nothing_fits_is_passed_over_as_the_page_says(api: Api, accept: str):
    """RFC 9110, 12.5.1: a server may disregard it; then 406 is a code that no route gives and no page tells of."""
    job = (await api.create())["id"]
    await api.http.post(f"/v1/jobs/{job}/cancel")  # or a stream would not end
    for path in ("/healthz", "/openapi.json", "/v1/jobs", f"/v1/jobs/{job}", f"/v1/jobs/{job}/events", "/nowhere"):
        plain, asked = [await api.http.get(path, headers={"Accept": wanted}) for wanted in ("*/*", accept)]
        assert (asked.status_code, asked.headers["content-type"]) == (plain.status_code, plain.headers["content-type"])
    assert 406 not in {problem.status for problem in problem_table.PROBLEMS.values()}
    assert "| `Accept` |" in (REPO / "docs" / "api.md").read_text(encoding="utf-8")


async def test_a_misspelt_filter_is_answered_with_the_closest_known_one(api: Api):
    body = problem_of(await api.http.get("/v1/jobs?stauts=queued"))
    assert "did you mean status?" in body["detail"]
    assert body["errors"][0]["pointer"] is None


HOSTILE: dict[str, tuple[bytes, int]] = {
    "empty": (b"", 400),
    "cut short": (b'{"teacher": ', 400),
    "two documents": (b"{}{}", 400),
    "lone surrogate": (b'{"name": "\\ud800"}', 400),
    "lone surrogate as a name": (b'{"\\udfff": 1}', 400),
    "surrogate as bytes": (b'{"name": "\xed\xa0\x80"}', 400),
    "not UTF-8": (b'{"name": "\xff"}', 400),
    "byte order mark": (b"\xef\xbb\xbf{}", 400),
    "NaN": (b'{"deadline_seconds": NaN}', 400),
    "Infinity": (b'{"deadline_seconds": Infinity}', 400),
    "too large a number": (b'{"deadline_seconds": 1e999}', 400),
    "too many digits": (b'{"deadline_seconds": ' + b"9" * 5_000 + b"}", 400),
    "200,000 brackets": (b"[" * 200_000, 400),
    "200,000 objects": (b'{"a":' * 200_000, 400),
    "deep but closed": (b'{"teacher":' + b"[" * 500 + b"]" * 500 + b"}", 400),
    "900 KB name": (b'{"' + b"k" * 900_000 + b'": 1}', 422),
    "control characters in a name": (b'{"\\u0000\\u001b[31m": 1}', 422),
    "a million names": (b"{" + b",".join(b'"k%d":1' % n for n in range(300_000)) + b"}", 422),
    "a million prompts": (b'{"source": {"type": "inline", "prompts": [' + b"1," * 900_000 + b"1]}}", 422),
    "a list": (b"[]", 422),
    "a text": (b'"text"', 422),
    "null": (b"null", 422),
    "a huge whole number": (b'{"teacher": {"params": {"x": [12345678901234567890123]}}}', 400),
    "true for a number": (b'{"deadline_seconds": true}', 422),
    "a text for a number": (b'{"deadline_seconds": "60"}', 422),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_bodies_are_refused_briefly_and_leave_nothing(api: Api, name: str):
    body, status = HOSTILE[name]
    answer = await api.http.post("/v1/jobs", content=body, headers=JSON)
    assert answer.status_code == status
    problem = problem_of(answer)
    assert len(answer.content) < 12_000
    assert len(problem["errors"]) <= 20
    assert all(len(fault["pointer"] or "") <= 200 for fault in problem["errors"])
    assert await api.keys() == []


async def test_a_prompt_that_is_wrong_in_a_million_places_costs_few_errors(api: Api):
    million = [{} for _ in range(300_000)]
    request = a_request(
        source={"type": "inline", "prompts": [{"messages": million}, {f"k{n}": n for n in range(9_999)}]}
    )
    answer = await api.http.post("/v1/jobs", json=request)
    assert answer.status_code == 422
    assert len(problem_of(answer)["errors"]) <= 21


async def test_no_value_of_the_caller_is_repeated(api: Api):
    secret = "sk-proj-verysecretvalue0123456789"
    request = a_request(
        name=[secret],
        teacher={"provider": secret, "model": [secret], "params": {secret: secret}},
        split={"holdout": secret},
        metadata={secret: 1},
        budget={"max_cost_usd": secret},
        webhook={"url": secret, "events": [secret]},
        **{secret: 1},
    )
    for body in (request, a_request(webhook={"url": f"https://u:{secret}@example.com/"}), a_request(**{secret: 1})):
        answer = await api.http.post("/v1/jobs", json=body)
        assert answer.status_code == 422
        assert "verysecret" not in answer.text
    unknown = await api.http.post(
        "/v1/jobs", json=a_request(teacher={"provider": secret, "model": "gpt-4o", "params": {secret: 1}})
    )
    assert "verysecret" not in unknown.text
    for path in (f"/v1/{secret}", f"/v1/jobs/{secret}", f"/v1/jobs?{secret}={secret}"):
        assert "verysecret" not in (await api.http.get(path)).text


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"a": [1,]}', "is not valid JSON; reading stopped at byte 9."),
        (b'{"a": 1e999}', "holds a number that is out of range."),
        (b'{"a": ' + b"9" * 5_000 + b"}", "holds a number that is out of range."),
        (b'{"a": ' + b"9" * 30 + b"}", "holds a whole number of more than 64 bits."),
        (b'{"a": ', "is not valid JSON."),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "is nested deeper than 64 levels."),
    ],
)
async def test_a_body_that_is_no_json_is_told_what_is_wrong_with_it(api: Api, body: bytes, says: str):
    answer = await api.http.post("/v1/jobs", content=body, headers=JSON)
    problem = problem_of(answer)
    assert (answer.status_code, problem["code"], problem["detail"]) == (400, "malformed_json", f"The body {says}")


async def test_a_body_may_be_64_levels_deep(api: Api):
    answer = await api.http.post("/v1/jobs", content=b'{"a": ' + b"[" * 63 + b"]" * 63 + b"}", headers=JSON)
    assert answer.status_code == 422


async def test_a_body_over_the_limit_is_refused_declared_or_not():
    redis = FakeServer()
    api = Api(some_settings(body_max_bytes=1_000), Store(redis, script_headers=False), redis)

    async def undeclared() -> Any:
        for _ in range(100):
            yield b" " * 100

    for content in (b" " * 1_001, undeclared()):
        answer = await api.http.post("/v1/jobs", content=content, headers=JSON)
        assert answer.status_code == 413
        assert problem_of(answer)["code"] == "body_too_large"
    assert (await api.http.post("/v1/jobs", content=b" " * 1_000, headers=JSON)).status_code == 400


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_declared_as_json_is_not_read(api: Api, headers: dict[str, str]):
    answer = await api.http.post("/v1/jobs", content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert problem_of(answer)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Basic dXNlcjpwYXNz", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Bearer wrong", "invalid_api_key"),
        (f"Bearer {ADMIN_KEY}x", "invalid_api_key"),
        ("Bearer k\xe9y", "invalid_api_key"),
    ],
)
async def test_without_the_key_nothing_opens(api: Api, authorization: str | None, code: str):
    headers = [] if authorization is None else [(b"authorization", authorization.encode("latin-1"))]
    del api.http.headers["authorization"]
    for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/jobs?unknown=1")):
        answer = await api.http.request(method, path, headers=headers, content=b"{" if method == "POST" else None)
        assert answer.status_code == 401
        assert problem_of(answer)["code"] == code
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_the_api_does_not_start_without_a_key():
    with pytest.raises(NoAdminKey):
        create_app(some_settings(admin_key=None))


@pytest.mark.parametrize(
    ("sent", "kept"), [("abc-DEF_123", True), ("a" * 64, True), ("a" * 65, False), ("a b", False), ("ä", False)]
)
async def test_a_plain_request_id_is_kept_and_any_other_replaced(api: Api, sent: str, kept: bool):
    answer = await api.http.get("/healthz", headers=[(b"x-request-id", sent.encode())])
    assert (answer.headers["x-request-id"] == sent) is kept
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", answer.headers["x-request-id"])


async def test_a_bug_is_answered_with_nothing_but_the_request_id(api: Api, monkeypatch: pytest.MonkeyPatch):
    async def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(api.store.jobs, "page", broken)
    answer = await api.http.get("/v1/jobs")
    assert answer.status_code == 500
    assert problem_of(answer)["code"] == "internal"
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("status", "archived"),
        ("stage", "distilling"),
        ("paused_reason", "holiday"),
        ("spec", '{"teacher": {"mode": "stream"}}'),
        ("spec", '{"teacher": {"mode": "stream", "samples":2}}'),  # of which more than the row is read
    ],
)
async def test_a_job_of_a_newer_version_is_a_503_that_names_it_where_a_list_meets_it(api: Api, field: str, value: str):
    job, other = await api.create(), await api.create()
    await api.redis.hset(keys.job(job["id"]), field, value)
    for path in (f"/v1/jobs/{job['id']}", f"/v1/jobs/{job['id']}/events", "/v1/jobs", "/v1/jobs?limit=1&order=asc"):
        answer = await api.http.get(path)
        problem = problem_of(answer)
        assert (answer.status_code, problem["code"], answer.headers["retry-after"]) == (503, "newer_version", "30")
        assert problem["retryable"]
        assert job["id"] in problem["detail"]
        assert value not in answer.text
    assert (await api.http.get(f"/v1/jobs/{other['id']}")).status_code == 200
    _, secret = await api.store.api_keys.create(TenantId("rival"), SCOPES)
    rival = {"Authorization": f"Bearer {secret}"}
    assert (await api.http.get(f"/v1/jobs/{job['id']}", headers=rival)).status_code == 404


async def test_an_event_of_a_newer_version_is_a_503_that_names_its_job(api: Api):
    job = await api.create()
    event = b'{"id":"evt_1","level":"info","type":"message","message":"","created_at_ms":1,"stage":"distilling"}'
    await api.redis.xadd(keys.events(job["id"]), {"e": event}, id="2-0")
    for order in ("asc", "desc"):
        answer = await api.http.get(f"/v1/jobs/{job['id']}/events?order={order}")
        problem = problem_of(answer)
        assert (answer.status_code, problem["code"]) == (503, "newer_version")
        assert job["id"] in problem["detail"]


async def test_a_store_that_is_away_or_full_is_a_503_worth_a_retry(api: Api):
    api.redis.used_memory = 81
    answer = await api.http.post("/v1/jobs", json=a_request())
    assert (answer.status_code, problem_of(answer)["code"]) == (503, "store_full")
    assert answer.headers["retry-after"]
    away = Api(some_settings(), Store.at("redis://127.0.0.1:1/0", patient=False), None)
    for path in ("/v1/jobs", f"/v1/jobs/job_{'0' * 34}", "/readyz"):
        answer = await away.http.get(path)
        assert answer.status_code == 503
        assert problem_of(answer)["retryable"]
    assert (await away.http.get("/healthz")).status_code == 200


# --- the table -------------------------------------------------------------------------------------------------------


def every_error() -> list[type[DistillError]]:
    for module in pkgutil.walk_packages(api_package.__path__, "api."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, layer = [], [DistillError]
    while layer:
        found += layer
        layer = [child for parent in layer for child in parent.__subclasses__()]
    return found


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_a_row(kind: type[DistillError]):
    row = problem_table.PROBLEMS[kind.code]
    assert row.status is not None or issubclass(kind, ProviderError) or kind.__name__ == "JobFailed"
    assert row.retryable == kind.retryable or kind is ProviderError or row.status is None


def test_every_code_in_the_sources_and_in_the_contract_has_a_row():
    named = set(NAMED_FAULTS)
    for folder in ("api", "shared", "worker"):
        for path in (REPO / folder).rglob("*.py"):
            named |= set(re.findall(r'\bcode(?:: str)? ?= ?"([a-z_]+)"', path.read_text(encoding="utf-8")))
    sources = [
        path.read_text(encoding="utf-8") for folder in ("shared", "worker") for path in (REPO / folder).rglob("*.py")
    ]
    advice = set(re.findall(r'Advice\(\s*code="([a-z_]+)"', "".join(sources)))
    assert named - advice <= set(problem_table.PROBLEMS)


async def test_every_type_resolves_to_a_page_that_loads_nothing(api: Api):
    del api.http.headers["authorization"]
    for code in problem_table.PROBLEMS:
        answer = await api.http.get(f"/problems/{code}")
        assert answer.status_code == 200
        assert code in answer.text
        assert "src=" not in answer.text


def test_the_page_of_errors_is_written_from_the_table():
    written = (REPO / "docs" / "errors.md").read_text(encoding="utf-8")
    assert written == problem_table.as_markdown(), "run: python -m api.problem_table > docs/errors.md"
    assert all(f"## `{code}`" in written for code in problem_table.PROBLEMS)

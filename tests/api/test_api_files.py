"""Files of prompts over HTTP: streamed in, checked line by line, used by jobs."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from api_kit import (
    ADMIN_KEY,
    AUTHORIZED,
    NOT_STORED,
    Api,
    Bridge,
    a_request,
    an_api_process,
    begin,
    loaded,
    problem_of,
    some_settings,
)
from openai import DefaultHttpx2Client, OpenAI

from api.schemas.job_requests import PromptIn
from cli import embedded
from shared.ids import FileId, JobId
from shared.lifecycle import JobStatus
from shared.prompts import FIELDS, read_prompt
from shared.store import Store
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
REPO = Path(__file__).parents[2]
LINES = {"Content-Type": "application/jsonl"}


def lines(*prompts: Any, and_more: int = 0) -> bytes:
    more = (f"Ticket {n}: my invoice is wrong." for n in range(and_more))
    return b"".join(json.dumps(prompt).encode() + b"\n" for prompt in (*prompts, *more))


def saying(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


async def post(api: Api, body: Any, headers: dict[str, str] = LINES) -> httpx2.Response:
    return await api.http.post("/v1/files", content=body, headers=headers)


async def uploaded(api: Api, body: bytes) -> dict[str, Any]:
    answer = await post(api, body)
    assert answer.status_code == 201, answer.text
    return answer.json()


async def prompts_of(api: Api, file: dict[str, Any]) -> list[Any]:
    found = []
    for chunk in range(-(-file["prompts"] // api.settings.chunk_size)):
        found += await api.store.files.chunk(FileId(file["id"]), chunk)
    return found


def from_file(file: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return a_request(source={"type": "file", "file_id": file["id"]}, **changes)


# --- what is taken ---------------------------------------------------------------------------------------------------


async def test_a_file_is_described_whole_and_found_again(api: Api):
    body = lines("Hello", saying("Hi", key="t-2"), saying("Hey", completion="Ho", reference="Hu"))
    answer = await post(api, body)
    file = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/v1/files/{file['id']}"
    assert file["id"].startswith("pf_")
    assert file["expires_at"] - file["created_at"] == 30 * 86_400
    assert {name: file[name] for name in ("object", "filename", "bytes", "prompts", "sha256")} == {
        "object": "distillation.file",
        "filename": None,
        "bytes": len(body),
        "prompts": 3,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    assert (await api.http.get(answer.headers["location"])).json() == file
    found = await prompts_of(api, file)
    assert [prompt.messages[0]["content"] for prompt in found] == ["Hello", "Hi", "Hey"]
    assert (found[1].key, found[2].reference) == ("t-2", "Hu")
    assert found[2].completion == {"role": "assistant", "content": "Ho"}


SAME = {
    "plain": lines("ä", "b"),
    "without a last line end": lines("ä", "b")[:-1],
    "with CRLF": lines("ä", "b").replace(b"\n", b"\r\n"),
    "with a byte order mark": b"\xef\xbb\xbf" + lines("ä", "b"),
    "with blank lines": b"\n\n" + lines("ä", "b").replace(b"\n", b"\n \t\r\n\n") + b"   ",
    "not escaped": '"ä"\n"b"'.encode(),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("block", [1, 3, 100_000])
async def test_lines_are_read_alike_however_they_end_and_arrive(api: Api, name: str, block: int):
    async def blocks() -> AsyncIterator[bytes]:
        for start in range(0, len(SAME[name]), block):
            yield SAME[name][start : start + block]

    file = (await post(api, blocks())).json()
    assert [prompt.messages[0]["content"] for prompt in await prompts_of(api, file)] == ["ä", "b"]


async def test_openais_sdk_uploads_lists_and_deletes(api: Api):
    bridge = Bridge(api)

    def talk() -> None:
        client = DefaultHttpx2Client(transport=bridge, base_url="http://test/v1")
        openai = OpenAI(api_key=ADMIN_KEY, base_url="http://test/v1", max_retries=0, http_client=client)
        body = lines(and_more=250)
        made = [
            openai.files.create(file=(f"tickets-{n}.jsonl", io.BytesIO(body)), purpose="fine-tune") for n in range(3)
        ]
        assert made[0].filename == "tickets-0.jsonl"
        assert made[0].bytes == len(body)
        assert [file.id for file in openai.files.list(limit=2)] == [file.id for file in reversed(made)]
        assert openai.files.retrieve(made[1].id).id == made[1].id
        assert openai.files.delete(made[1].id).deleted
        assert len(list(openai.files.list())) == 2
        openai.close()

    await asyncio.to_thread(talk)


async def test_the_name_of_an_uploaded_file_is_only_a_name(api: Api):
    answer = await api.http.post("/v1/files", files={"file": ("../../etc/tickets\n.jsonl", lines("a"))})
    assert answer.json()["filename"] in {"tickets.jsonl", "tickets%0A.jsonl"}


async def test_files_are_listed_newest_first_and_only_to_their_owner(api: Api):
    files = [await uploaded(api, lines(f"{n}")) for n in range(3)]
    page = (await api.http.get("/v1/files?limit=2")).json()
    assert [file["id"] for file in page["data"]] == [files[2]["id"], files[1]["id"]]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (files[2]["id"], files[1]["id"], True)
    rest = (await api.http.get(f"/v1/files?limit=2&after={page['last_id']}")).json()
    assert ([file["id"] for file in rest["data"]], rest["has_more"]) == ([files[0]["id"]], False)
    bad = await api.http.get("/v1/files?after=pf_x")
    assert (bad.status_code, problem_of(bad)["code"]) == (400, "invalid_cursor")
    del api.http.headers["authorization"]
    for method, path in (("POST", ""), ("GET", ""), ("GET", f"/{files[0]['id']}"), ("DELETE", f"/{files[0]['id']}")):
        assert (await api.http.request(method, f"/v1/files{path}")).status_code == 401


async def test_a_deleted_file_is_gone(api: Api):
    file = await uploaded(api, lines("a"))
    answer = await api.http.delete(f"/v1/files/{file['id']}")
    assert answer.json() == {"id": file["id"], "object": "distillation.file", "deleted": True}
    assert await api.keys() == []
    for answer in (await api.http.delete(f"/v1/files/{file['id']}"), await api.http.get("/v1/files/pf_x")):
        assert (answer.status_code, problem_of(answer)["code"]) == (404, "not_found")


# --- what is refused -------------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[bytes, str, str]] = {
    "not JSON": (b"hello", "malformed_json", ""),
    "two values": (b'"a" "b"', "malformed_json", ""),
    "NaN": (b'{"messages": NaN}', "malformed_json", ""),
    "a lone surrogate": (b'"\\ud800"', "malformed_json", ""),
    "not UTF-8": (b'"\xff"', "malformed_json", ""),
    "a control character": (b'"a\x00b"', "malformed_json", ""),
    "deep nesting": (b'{"messages":' + b"[" * 500 + b"]" * 500 + b"}", "malformed_json", ""),
    "very deep nesting": (b"[" * 200_000, "malformed_json", ""),
    "a huge whole number": (
        json.dumps(saying("x", response_format={"type": "text", "n": 2**70})).encode(),
        "malformed_json",
        "",
    ),
    "a number": (b"7", "wrong_type", ""),
    "an empty text": (b'""', "wrong_type", ""),
    "no messages": (b"{}", "required", "/messages"),
    "no message": (b'{"messages": []}', "wrong_length", "/messages"),
    "messages that are none": (b'{"messages": "x"}', "wrong_type", "/messages"),
    "a message that is none": (b'{"messages": ["x"]}', "wrong_type", "/messages/0"),
    "a strange role": (b'{"messages": [{"role": "boss", "content": "x"}]}', "invalid_value", "/messages/0/role"),
    "no content": (b'{"messages": [{"role": "user"}]}', "invalid_value", "/messages/0/content"),
    "empty parts": (b'{"messages": [{"role": "user", "content": []}]}', "invalid_value", "/messages/0/content"),
    "a misspelt field": (json.dumps(saying("x", refrence="y")).encode(), "unknown_field", "/refrence"),
    "a number as key": (json.dumps(saying("x", key=7)).encode(), "wrong_type", "/key"),
    "a long key": (json.dumps(saying("x", key="k" * 201)).encode(), "wrong_length", "/key"),
    "tools that are none": (json.dumps(saying("x", tools=[1])).encode(), "invalid_value", "/tools"),
    "no response format": (json.dumps(saying("x", response_format={})).encode(), "invalid_value", "/response_format"),
    "a user's completion": (
        json.dumps(saying("x", completion={"role": "user", "content": "y"})).encode(),
        "invalid_value",
        "/completion",
    ),
    "too long a prompt": (json.dumps("x" * 400_001).encode(), "prompt_too_long", ""),
    "too long a line": (b'"' + b"x" * 6_000_000 + b'"', "prompt_too_long", ""),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_wrong_line_is_named_by_its_number_and_nothing_is_stored(api: Api, name: str):
    line, code, place = BROKEN[name]
    body = lines(and_more=150) + b"\n" + line + b"\n" + lines("after")
    answer = await post(api, body)
    problem = problem_of(answer)
    assert answer.status_code == 422
    assert [(fault["pointer"], fault["code"]) for fault in problem["errors"]] == [(f"/lines/152{place}", code)]
    assert problem["code"] in {"validation_failed", code}
    assert len(answer.content) < 2_000
    assert await api.keys() == []


@pytest.mark.parametrize("name", [name for name, (_, code, _) in BROKEN.items() if code != "malformed_json"])
async def test_a_prompt_is_refused_alike_inline_and_in_a_file(api: Api, name: str):
    line, code, place = BROKEN[name]
    request = a_request(source={"type": "inline", "prompts": [json.loads(line)]}, curation={"min_accepted": 1})
    answer = await api.http.post("/v1/jobs", content=json.dumps(request), headers={"Content-Type": "application/json"})
    found = problem_of(answer)["errors"][0]
    assert (found["pointer"], found["code"]) == (f"/source/prompts/0{place}", code)


async def test_what_openapi_says_of_a_prompt_is_what_is_read(api: Api):
    assert tuple(PromptIn.model_fields) == FIELDS
    rich = saying("x", key="k", completion={"role": "assistant", "content": "y"}, reference="z")
    assert not isinstance(read_prompt(rich), list)
    assert PromptIn.model_validate(rich)


async def test_at_most_twenty_faults_are_told(api: Api):
    answer = await post(api, b"nonsense\n" * 1_000_000)
    assert [fault["pointer"] for fault in problem_of(answer)["errors"]] == [f"/lines/{n}" for n in range(1, 21)]
    assert await api.keys() == []


async def test_a_key_given_twice_is_refused_across_chunks(api: Api):
    body = b"".join(lines(saying(f"{n}", key=f"k{n % 400}")) for n in range(401))
    problem = problem_of(await post(api, body))
    assert problem["code"] == "duplicate_prompt_key"
    assert [fault["pointer"] for fault in problem["errors"]] == ["/lines/401/key"]


async def test_an_empty_file_is_refused(api: Api):
    for body in (b"", b"\n \n"):
        problem = problem_of(await post(api, body))
        assert problem["errors"][0]["detail"] == "must hold at least one prompt"


async def test_the_operators_limits_hold(api: Api):
    limited = Api(some_settings(file_max_prompts=5, file_max_bytes=1_000), api.store, api.redis)
    async with limited.http:
        answer = await post(limited, lines(and_more=6))
        assert (answer.status_code, problem_of(answer)["code"]) == (422, "too_many_prompts")
        assert problem_of(answer)["errors"][0]["pointer"] == "/lines/6"

        async def endless() -> AsyncIterator[bytes]:
            while True:
                yield b" " * 100

        for body in (b" " * 1_001, endless()):
            answer = await post(limited, body)
            assert (answer.status_code, problem_of(answer)["code"]) == (413, "body_too_large")
    assert await api.keys() == []


FORMS: dict[str, tuple[bytes, int, str]] = {
    "cut short": (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n"a"', 400, "malformed_form"),
    "no boundary in it": (b'"a"\n', 400, "malformed_form"),
    "empty": (b"", 400, "malformed_form"),
    "without a file": (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nx\r\n--b--\r\n',
        422,
        "validation_failed",
    ),
    "with an unknown part": (
        b'--b\r\nContent-Disposition: form-data; name="fiel"\r\n\r\nx\r\n--b--\r\n',
        422,
        "validation_failed",
    ),
    "with two files": (
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n"a"\r\n' * 2 + b"--b--\r\n",
        422,
        "validation_failed",
    ),
    "with a part that has no name": (b"--b\r\nX: y\r\n\r\nx\r\n--b--\r\n", 422, "validation_failed"),
    "with a long purpose": (
        b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 101 + b"\r\n--b--\r\n",
        422,
        "validation_failed",
    ),
}


@pytest.mark.parametrize("name", FORMS)
async def test_a_broken_form_leaves_nothing(api: Api, name: str):
    body, status, code = FORMS[name]
    answer = await post(api, body, {"Content-Type": "multipart/form-data; boundary=b"})
    assert (answer.status_code, problem_of(answer)["code"]) == (status, code)
    assert await api.keys() == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "text/plain"},
        {"Content-Type": "multipart/form-data"},
        {},
        {**LINES, "Content-Encoding": "gzip"},
    ],
)
async def test_other_bodies_are_not_taken(api: Api, headers: dict[str, str]):
    answer = await post(api, lines("a"), headers)
    assert (answer.status_code, problem_of(answer)["code"]) == (415, "unsupported_media_type")


async def test_other_methods_are_told_which_there_are(api: Api):
    answer = await api.http.put("/v1/files")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


async def test_an_upload_that_breaks_off_leaves_nothing(api: Api):
    written = 0

    async def breaking() -> AsyncIterator[bytes]:
        nonlocal written
        for _ in range(40):
            yield lines(and_more=100)
            written = max(written, len(await api.keys()))
        raise ConnectionResetError

    assert (await post(api, breaking())).status_code == 500
    assert written == 1, "part of it was in the store"
    assert await api.keys() == []


async def test_an_upload_that_is_cancelled_leaves_nothing(api: Api):
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield lines(and_more=100)
        begun.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(post(api, stuck()))
    await begun.wait()
    assert len(await api.keys()) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await api.keys() == []


async def test_a_full_server_takes_no_file_and_keeps_nothing_of_it(api: Api):
    api.redis.used_memory = 90
    answer = await post(api, lines(and_more=10))
    assert (answer.status_code, problem_of(answer)["code"]) == (503, "store_full")
    assert await api.keys() == []


# --- jobs from files -------------------------------------------------------------------------------------------------


async def test_a_job_from_a_file_is_asked_as_the_same_job_with_inline_prompts(api: Api):
    own = {"role": "system", "content": "Mine."}
    tool = {"type": "function", "function": {"name": "f"}}
    prompts = [
        "Hello",
        {"messages": [own, {"role": "user", "content": "Hey"}], "tools": [tool], "reference": "Yes"},
        saying("Hi", completion="Ho"),
        *(f"Ticket {n}: my invoice is wrong." for n in range(247)),
    ]
    general = {"type": "function", "function": {"name": "general"}}
    params = {"tools": [general], "response_format": {"type": "text"}}
    same = {"system_prompt": "Ours.", "teacher": {"provider": "openai", "model": "gpt-4.1", "params": params}}
    file = await uploaded(api, lines(*prompts))
    requests = [a_request(source={"type": "inline", "prompts": prompts}, **same), from_file(file, **same)]

    estimates = [(await api.http.post("/v1/jobs?validate_only=true", json=request)).json() for request in requests]
    inline, job = [(await api.http.post("/v1/jobs", json=request)).json() for request in requests]

    assert job["source"] == {"type": "file", "file_id": file["id"], "job_id": None, **NOT_STORED, "prompts_total": 250}
    differing = {"source"}
    assert {**estimates[0], "request": None} == {**estimates[1], "request": None}
    for name in set(estimates[0]["request"]) - differing:
        assert estimates[0]["request"][name] == estimates[1]["request"][name]
    assert job["teacher"] == inline["teacher"]
    content = api.store.content
    for chunk in range(4):
        read = [await content.prompt_chunk(JobId(made["id"]), "source", chunk) for made in (inline, job)]
        assert read[0] == read[1]
    assert await content.chunk_count(JobId(job["id"]), "source") == 3
    keys_of_job = [key for key in await api.keys() if job["id"].encode() in key]
    assert not any(b"prompts" in key for key in keys_of_job), "nothing was copied"


async def test_a_job_outlives_the_deletion_of_its_file_and_so_does_its_retry(api: Api):
    file = await uploaded(api, lines(and_more=30))
    job = (await api.http.post("/v1/jobs", json=from_file(file, system_prompt="Ours."))).json()
    assert (await api.http.delete(f"/v1/files/{file['id']}")).status_code == 200
    refused = await api.http.post("/v1/jobs", json=from_file(file))
    assert problem_of(refused)["errors"][0]["pointer"] == "/source/file_id"

    started = await begin(api, job)
    await api.store.jobs.change(started, Change(status=JobStatus.FAILED))
    again = (await api.http.post(f"/v1/jobs/{job['id']}/retry")).json()

    assert (again["retry_of"], again["system_prompt"]) == (job["id"], "Ours.")
    assert again["cost"] == job["cost"]
    content = api.store.content
    first = await content.prompt_chunk(JobId(again["id"]), "source", 0)
    assert first == await content.prompt_chunk(JobId(job["id"]), "source", 0)
    assert len(first) == 30
    assert (await loaded(api, again)).chunk_size == (await loaded(api, job)).chunk_size


async def test_a_foreign_or_missing_file_makes_no_job(api: Api):
    file = await uploaded(api, lines(and_more=30))
    row = await api.store.files.load(FileId(file["id"]))
    assert row is not None
    await api.redis.hset(
        f"d:{{{file['id']}}}:file", "row", msgspec.json.encode(msgspec.structs.replace(row, tenant="other"))
    )
    for file_id in (file["id"], "pf_" + "0" * 34, "pf_x", "../x"):
        answer = await api.http.post("/v1/jobs", json=a_request(source={"type": "file", "file_id": file_id}))
        problem = problem_of(answer)
        assert (answer.status_code, problem["code"]) == (422, "validation_failed")
        assert problem["errors"] == [
            {
                "pointer": "/source/file_id",
                "code": "unknown_file",
                "detail": "is not one of your files; it may have expired",
            }
        ]


SOURCES: dict[str, tuple[Any, str]] = {
    "without a type": ({"file_id": "x"}, "/source/type"),
    "of no kind we know": ({"type": "ftp"}, "/source/type"),
    "without a file": ({"type": "file"}, "/source/file_id"),
    "with a misspelt file": ({"type": "file", "file_id": "x", "fileid": "x"}, "/source/fileid"),
    "with prompts and a file": ({"type": "file", "file_id": "x", "prompts": ["a"]}, "/source/prompts"),
    "that is a text": ("file", "/source"),
}


@pytest.mark.parametrize("name", SOURCES)
async def test_a_wrong_source_is_placed(api: Api, name: str):
    source, place = SOURCES[name]
    answer = await api.http.post("/v1/jobs", json=a_request(source=source))
    assert [fault["pointer"] for fault in problem_of(answer)["errors"]] == [place]
    if name == "with a misspelt file":
        assert "did you mean file_id?" in answer.text


async def test_too_few_prompts_for_what_is_asked_are_known_at_submit(api: Api):
    small, large = await uploaded(api, lines(and_more=8)), await uploaded(api, lines(and_more=5_000))
    cases = [
        (small, {"curation": {"min_accepted": 100}}, "too_few_prompts"),
        (small, {"curation": {"min_accepted": 1}, "split": {"holdout": 0.0001}}, "holdout_too_small"),
        (large, {"curation": {"min_accepted": 4_900}}, "too_few_prompts"),
        (large, {"system_prompt": "x" * 399_999}, "prompt_too_long"),
        (large, {"budget": {"max_cost_usd": "0.0001"}}, "cost_above_limit"),
    ]
    for file, changes, code in cases:
        assert problem_of(await api.http.post("/v1/jobs", json=from_file(file, **changes)))["code"] == code
    fine = await api.http.post("/v1/jobs?validate_only=true", json=from_file(large, curation={"min_accepted": 3_000}))
    assert fine.status_code == 200
    assert fine.json()["request"]["source"]["prompts_total"] == 5_000


async def test_tools_in_a_file_count_for_what_the_model_takes(api: Api):
    tool = {"type": "function", "function": {"name": "f"}}
    file = await uploaded(api, lines(saying("x", tools=[tool]), and_more=30))
    teacher = {"provider": "openai", "model": "gpt-6-astra", "params": {}}
    assert problem_of(await api.http.post("/v1/jobs", json=from_file(file, teacher=teacher)))["code"] == (
        "unsupported_param"
    )


# --- the real process ------------------------------------------------------------------------------------------------


@pytest.fixture
def process(valkey: embedded.Embedded, valkey_client: Any) -> Iterator[tuple[int, str]]:
    with an_api_process(valkey.url, LOG_LEVEL="warning") as (running, url):
        yield running.pid, url
        running.kill()
        log = running.communicate(timeout=15)[1]
    assert b"request_failed" not in log


def memory_mb(pid: int, field: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith(f"{field}:"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the process's memory from /proc")
@pytest.mark.parametrize("as_form", [False, True])
def test_fifty_thousand_lines_are_taken_in_with_flat_memory(process: tuple[int, str], as_form: bool):
    pid, url = process

    def body(count: int) -> bytes:
        text = "my invoice is wrong. " * 11
        return b"".join(lines(saying(f"Ticket {n}: {text}", key=f"k{n}")) for n in range(count))

    def upload(http: httpx2.Client, content: bytes) -> httpx2.Response:
        if as_form:
            return http.post("/v1/files", files={"file": ("prompts.jsonl", io.BytesIO(content))})
        return http.post("/v1/files", content=content, headers=LINES)

    with httpx2.Client(base_url=url, headers=AUTHORIZED, timeout=60) as http:
        assert upload(http, body(2_000)).status_code == 201  # what a first request loads is not what is measured
        request = a_request(source={"type": "inline", "prompts": [f"Ticket {n}" for n in range(50)]})
        assert http.post("/v1/jobs", params={"validate_only": True}, json=request).status_code == 200
        large, before = body(50_000), memory_mb(pid, "VmRSS")
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="utf-8")  # the peak counts from here
        assert len(large) > 14_000_000

        answer = upload(http, large)
        assert answer.status_code == 201, answer.text
        job = http.post("/v1/jobs", json=from_file(answer.json()))
        grown = memory_mb(pid, "VmHWM") - before

        assert job.json()["progress"]["prompts_total"] == 50_000
        assert grown < 30, f"{grown:.1f} MB"


async def test_a_client_that_hangs_up_leaves_nothing(process: tuple[int, str], real_store: Store, valkey_client: Any):
    _, url = process
    host, _, port = url.removeprefix("http://").partition(":")
    _reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\nContent-Type: application/jsonl"
    writer.write(f"{head}\r\nContent-Length: 9000000\r\n\r\n".encode() + lines(and_more=20_000))
    await writer.drain()
    for _ in range(100):
        if await valkey_client.keys("d:{pf_*"):
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("nothing was written")
    writer.close()
    for _ in range(100):
        if not await valkey_client.keys("d:{pf_*"):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("something was left")

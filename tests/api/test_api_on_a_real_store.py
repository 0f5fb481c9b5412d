"""The same API on a real server, as a process of its own: what a crash leaves, what a full server says."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import pytest
import redis.asyncio as redis
from api_kit import (
    ADMIN_KEY,
    AUTHORIZED,
    REPO,
    Api,
    a_request,
    an_api_process,
    answer_all,
    begin,
    curate,
    problem_of,
    some_settings,
)
from typer.testing import CliRunner

from cli import embedded
from cli.main import app
from shared.store import Store

pytestmark = pytest.mark.anyio


@pytest.fixture
async def real(valkey_client: redis.Redis) -> AsyncIterator[Api]:
    made = Api(some_settings(), Store(valkey_client), valkey_client)
    async with made.http:
        yield made
    await made.store.close()


async def test_a_job_is_accepted_read_and_cancelled(real: Api):
    job = await real.create()
    path = f"/v1/jobs/{job['id']}"
    assert (await real.http.get(path)).json() == job
    assert (await real.http.get(path, headers={"If-None-Match": 'W/"1"'})).status_code == 304
    assert (await real.http.post(f"{path}/cancel")).json()["status"] == "cancelled"
    assert [found["id"] for found in (await real.http.get("/v1/jobs?status=cancelled")).json()["data"]] == [job["id"]]
    assert [event["sequence"] for event in (await real.http.get(f"{path}/events")).json()["data"]] == [2, 1]


async def test_a_dataset_is_exported(real: Api):
    job = await begin(real, await real.create())
    await answer_all(real, job)
    manifest = await curate(real, job)
    answer = await real.http.get(f"/v1/jobs/{job.id}/dataset")
    assert len(answer.text.splitlines()) == manifest.train


async def test_a_full_server_takes_no_job_and_keeps_nothing_of_it(real: Api, valkey_client: redis.Redis):
    used = (await valkey_client.info("memory"))["used_memory"]
    await valkey_client.config_set("maxmemory", str(int(used * 1.1)))
    answer = await real.http.post("/v1/jobs", json=a_request())
    assert (answer.status_code, problem_of(answer)["code"]) == (503, "store_full")
    assert await real.keys() == []


async def test_the_embedded_server_is_durable_and_says_so(real: Api):
    await real.store.announce_worker("w1", {}, for_seconds=5)
    assert (await real.http.get("/readyz")).json()["checks"]["durability"] == "ok"


@pytest.fixture
def process(valkey: embedded.Embedded) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with an_api_process(valkey.url) as running:
        yield running


@pytest.fixture(scope="module")
def served(valkey: embedded.Embedded) -> Iterator[str]:
    """The address of a process that tests share: none of them ends it."""
    with an_api_process(valkey.url) as (_, url):
        yield url


def test_an_accepted_job_survives_the_death_of_the_api_and_sigterm_ends_it_in_order(
    process: tuple[subprocess.Popen[bytes], str],
):
    running, url = process
    with httpx2.Client(base_url=url, headers=AUTHORIZED) as http:
        job = http.post("/v1/jobs", json=a_request()).json()
        assert http.get(f"/v1/jobs/{job['id']}").json()["status"] == "queued"
        huge = http.post("/v1/jobs", content=b" " * 8_000_001, headers={"Content-Type": "application/json"})
        assert (huge.status_code, problem_of(huge)["code"]) == (413, "body_too_large")
        denied = http.post("/v1/jobs", content=b" " * 8_000_001, headers={"Authorization": "Bearer wrong"})
        assert denied.status_code == 401
        assert "server" not in denied.headers
    running.send_signal(signal.SIGTERM)
    log = running.communicate(timeout=15)[1].decode()
    assert running.returncode in {0, -signal.SIGTERM}
    lines = [json.loads(line) for line in log.splitlines()]
    posted = next(line for line in lines if line["event"] == "request" and line["method"] == "POST")
    assert posted["route"] == "/v1/jobs"
    assert posted["request_id"].startswith("req_")
    assert "invoice" not in log
    assert ADMIN_KEY not in log


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error_of_ours(
    process: tuple[subprocess.Popen[bytes], str],
):
    running, url = process
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN_KEY}\r\nContent-Type: application/json"
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(f'{head}\r\nContent-Length: 100\r\n\r\n{{"name": "half'.encode())
        time.sleep(0.3)  # until the route waits for the rest
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    lines = [json.loads(line) for line in running.communicate(timeout=15)[1].decode().splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert [line["status"] for line in lines if line["event"] == "request" and line["method"] == "POST"] == [499]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"name": NaN}', "malformed_json"),
        (b'{"name": 1e999}', "malformed_json"),
        (b'{"name": "\\ud800"}', "malformed_json"),
        (b'\xef\xbb\xbf{"name": "of an editor"}', "validation_failed"),
    ],
)
def test_a_job_file_is_sent_as_it_is_written(served: str, tmp_path: Path, body: bytes, code: str):
    (tmp_path / "job.json").write_bytes(body)
    ended = CliRunner().invoke(app, ["submit", str(tmp_path / "job.json"), "--url", served, "--api-key", ADMIN_KEY])
    assert (getattr(ended.exception, "code", ended.exception), ended.exit_code) == (code, 1)


@pytest.mark.parametrize(
    ("request_line", "status", "media_type"),
    [
        (b"GET http://elsewhere.example/v1/jobs?limit=1 HTTP/1.1\r\nHost: x", b"200", b"application/json"),
        (b"GET HTTP://elsewhere.example/healthz HTTP/1.1\r\nHost: x", b"200", b"application/json"),
        (b"GET http://elsewhere.example HTTP/1.1\r\nHost: x", b"404", b"application/problem+json"),
        (b"OPTIONS * HTTP/1.1\r\nHost: x", b"404", b"application/problem+json"),
        (b"GET /v1/jobs HTTP/1.1\r\nX: no host", b"400", b"text/plain"),
    ],
)
def test_a_target_may_be_written_as_for_a_proxy_and_what_is_not_http_is_told_in_plain_text(
    served: str, request_line: bytes, status: bytes, media_type: bytes
):
    port = int(served.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        authorization = f"Authorization: Bearer {ADMIN_KEY}".encode()
        connection.sendall(request_line + b"\r\nConnection: close\r\n" + authorization + b"\r\n\r\n")
        head = connection.makefile("rb").read().partition(b"\r\n\r\n")[0].lower()
    assert head.split(b" ")[1] == status
    assert b"content-type: " + media_type in head


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux tells of another process's limits")
def test_a_thousand_streams_do_not_meet_a_low_limit_of_open_files(valkey: embedded.Embedded):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with an_api_process(valkey.url) as (running, _):
            assert resource.prlimit(running.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_key_the_process_says_what_is_missing():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DISTILL_")} | {
        "DISTILL_REDIS_URL": "redis://127.0.0.1:1/0",
        "DISTILL_SECRET_KEY": "s" * 32,
    }
    ended = subprocess.run([sys.executable, "-m", "api"], cwd=REPO, env=environment, capture_output=True, check=False)
    assert ended.returncode == 2
    assert b"DISTILL_ADMIN_KEY" in ended.stderr


def test_the_command_line_makes_a_key_that_works_and_revokes_it(served: str):
    def distill(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *arguments, "--url", served, "--api-key", ADMIN_KEY]
        return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)

    scopes = ("--scope", "jobs:write", "--scope", "jobs:read")
    made = distill("keys", "create", "--tenant", "acme", *scopes, "--provider", "openai")
    secret, key_id = made.stdout.strip(), made.stderr.split()[0]
    with httpx2.Client(base_url=served, headers={"Authorization": f"Bearer {secret}"}) as http:
        assert http.post("/v1/jobs", json=a_request()).status_code == 202
        assert http.get("/v1/api_keys").status_code == 403
        [listed] = [key for key in distill("keys", "list", "--tenant", "acme").stdout.splitlines() if key_id in key]
        assert "jobs:write,jobs:read  at openai alone" in listed or "jobs:read,jobs:write  at openai alone" in listed
        assert distill("keys", "revoke", key_id).returncode == 0
        assert http.get("/v1/jobs").status_code == 401
    assert distill("keys", "create", "--scope", "everything").returncode == 1


def test_a_live_stream_resumes_and_does_not_hold_up_the_end_of_the_process(
    process: tuple[subprocess.Popen[bytes], str],
):
    running, url = process
    with httpx2.Client(base_url=url, headers=AUTHORIZED, timeout=10) as http:
        path = f"/v1/jobs/{http.post('/v1/jobs', json=a_request()).json()['id']}"
        with http.stream("GET", f"{path}/events", headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.iter_lines()
            assert [line for line in (next(lines), next(lines), next(lines)) if line.startswith("id: ")] == ["id: 1"]
            assert http.post(f"{path}/cancel").status_code == 200
            assert [line for line in lines if line.startswith("id: ")] == ["id: 2"]
        again = {"Accept": "text/event-stream", "Last-Event-ID": "1"}
        assert "id: 2" in http.get(f"{path}/events", headers=again).text
        other = http.post("/v1/jobs", json=a_request()).json()["id"]
        with http.stream("GET", f"/v1/jobs/{other}/events", headers={"Accept": "text/event-stream"}) as stream:
            next(stream.iter_lines())
            running.send_signal(signal.SIGTERM)
            assert running.wait(timeout=5) in {0, -signal.SIGTERM}

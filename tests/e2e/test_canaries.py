"""Canaries in all that a caller can say, and every key there is: none leaves by logs, messages, errors or metrics."""

from __future__ import annotations

import base64
import json
import re
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import redis
from system import System, a_request

from cli.stack import free_port

CANARY = "canary-4d7a"
_ID = re.compile(r"job_[a-z0-9]+")


@contextmanager
def commands_of(url: str) -> Iterator[list[str]]:
    """What every client says to Redis while the block runs, however long none says anything."""
    said: list[str] = []
    with redis.Redis.from_url(url, socket_timeout=None) as client, client.monitor() as monitor:
        listening = threading.Thread(target=lambda: said.extend(_listened(monitor)), daemon=True)
        listening.start()
        yield said
        with redis.Redis.from_url(url) as other:
            other.echo("the end")
        listening.join(timeout=10)
        assert not listening.is_alive()


def _listened(monitor: Any) -> Iterator[str]:
    for heard in monitor.listen():
        yield heard["command"]
        if heard["command"] == "ECHO the end":
            return


@contextmanager
def a_receiver() -> Iterator[str]:
    """Of webhooks: refuses each, with a body that should not be kept."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(500)
            self.send_header("content-length", str(len(CANARY)))
            self.end_headers()
            self.wfile.write(CANARY.encode())

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{CANARY}"
    finally:
        server.shutdown()
        server.server_close()


def messages_in(commands: list[str]) -> list[dict[str, Any]]:
    """What was published for Celery, as it lay in Redis."""
    pushed = [command for command in commands if command.startswith("LPUSH ")]
    return [json.loads(command[command.index("{") :]) for command in pushed]


def test_nothing_private_leaves_by_logs_messages_errors_or_metrics(tmp_path: Path) -> None:
    metrics, of_worker = free_port("127.0.0.1"), free_port("127.0.0.1")
    settings = {"LOG_LEVEL": "debug", "METRICS_PORT": str(metrics), "WORKER_METRICS_PORT": str(of_worker)}
    with System(tmp_path, settings=settings) as system, a_receiver() as hooks, commands_of(system.redis.url) as said:
        system.private.add(CANARY)
        system.start_worker()
        key = a_tenants_key(system)
        system.private.add(key)
        endpoint = system.client.post("/v1/webhook_endpoints", json={"url": hooks, "events": ["job.succeeded"]})
        system.private.add(endpoint.json()["secret"])

        # A provider that quotes what it is sent, breaks off, and answers what cannot be read.
        quoting = {"kind": "error", "status": 400, "message": f"I will not say {CANARY}", "code": f"not {CANARY}"}
        chat = {"path": "/chat/completions", "method": "POST"}
        system.sandbox.faults(
            [
                {"match": chat, "skip": 10, "times": 2, "fault": quoting},
                {"match": chat, "skip": 12, "times": 2, "fault": {**quoting, "status": 500}},
                {"match": chat, "skip": 14, "times": 2, "fault": {"kind": "drop_mid_body"}},
                {"match": chat, "skip": 16, "times": 1, "fault": {"kind": "wrong_shape", "body": {"x": CANARY}}},
                {"match": {"path": "/files"}, "times": 1, "fault": {**quoting, "status": 500}},
                {"match": {"path": "/fine_tuning/jobs*"}, "times": 2, "fault": {**quoting, "status": 503}},
            ]
        )
        prompts = [f"{CANARY}: my invoice number {n} is wrong, please help." for n in range(40)]
        good = a_request(
            name=CANARY,
            system_prompt=f"You triage support tickets for {CANARY}.  Answer with JSON: category, priority, team.",
            source={"type": "inline", "prompts": prompts},
            metadata={"customer": CANARY},
            store=True,
            webhook={"url": hooks, "events": ["job.running", "job.succeeded", "job.deleted"]},
        )
        job = system.client.post("/v1/jobs", json=good, headers={"Idempotency-Key": CANARY}).json()
        assert system.finished(job["id"])["status"] == "succeeded"
        ask_wrongly(system, job["id"], good)
        told = system.client.get(f"http://127.0.0.1:{metrics}/metrics").text
        assert 'distillery_jobs{status="succeeded"} 1.0' in told
        assert system.client.get("/metrics").status_code == 404  # not where clients are
        told += system.client.get(f"http://127.0.0.1:{of_worker}/metrics").text
        assert "distillery_worker_calls_in_flight 0.0" in told
        for word in system.private:
            assert word not in told
        system.client.delete(f"/v1/jobs/{job['id']}", params={"delete_models": "true"})
        system.until(lambda: system.client.delete(f"/v1/jobs/{job['id']}").status_code == 200, "the job is purged")

    assert len(system.problems) > 12
    assert '"level": "debug"' in system.logs()
    messages = messages_in(said)
    assert {message["headers"]["task"] for message in messages} == {"advance_job", "purge_job", "clean_up_job"}
    for message in messages:
        arguments, named, embedded = json.loads(base64.b64decode(message["body"]))
        [id_] = arguments
        assert _ID.fullmatch(id_)
        assert (named, set(embedded.values())) == ({}, {None})
        headers = message["headers"]
        assert (headers["argsrepr"], headers["kwargsrepr"]) == (f"({id_!r},)", "{}")
        del message["properties"]["priority"]  # kombu's own, and a word of every answer
        for word in system.private:
            assert word not in json.dumps(message)
    # What Flower would show are events of tasks and workers: none is sent.
    assert not [command for command in said if command.startswith(("PUBLISH", "LPUSH")) and "celeryev" in command]


def a_tenants_key(system: System) -> str:
    made = system.client.post("/v1/api_keys", json={"tenant": "acme", "scopes": ["jobs:read"]})
    assert made.status_code == 201, made.text
    return str(made.json()["key"])


def ask_wrongly(system: System, job_id: str, good: dict[str, Any]) -> None:
    """Every kind of error answer we know how to get, each to a request that is full of canaries."""
    ask, key = system.client.request, {"Idempotency-Key": CANARY}
    for body in (
        {**good, "colour": CANARY},
        {**good, "teacher": {"provider": CANARY, "model": CANARY, "params": {"temperature": CANARY}}},
        {**good, "source": {"type": "inline", "prompts": [{"messages": [{"role": CANARY, "content": CANARY}]}] * 3}},
        {**good, "source": {"type": CANARY}},
        {**good, "webhook": {"url": f"http://{CANARY}.example/", "events": [CANARY]}},
        {**good, "budget": {"max_cost_usd": CANARY}},
    ):
        assert ask("POST", "/v1/jobs", json=body).status_code == 422
    assert ask("POST", "/v1/jobs", json={**good, "name": "x"}, headers=key).status_code == 422
    assert ask("POST", "/v1/jobs", content=f'{{"{CANARY}": '.encode()).status_code in {400, 415}
    assert ask("GET", "/v1/nothing").status_code == 404
    assert ask("GET", "/v1/jobs/nothing").status_code == 404
    assert ask("GET", "/v1/jobs", params={CANARY: CANARY}).status_code == 422
    assert ask("GET", "/v1/jobs", params={"after": CANARY}).status_code == 400
    assert ask("GET", f"/v1/jobs/{job_id}", headers={"Authorization": f"Bearer {CANARY}"}).status_code == 401
    assert ask("POST", f"/v1/files?{CANARY}={CANARY}", files={"file": (CANARY, CANARY)}).is_error
    assert ask("POST", "/v1/files", files={"file": (CANARY, f'"{CANARY}"\n{{"key": ["{CANARY}"]}}')}).is_error
    assert ask("GET", f"/v1/jobs/{job_id}/completions", params={"reason": CANARY}).is_error
    assert ask("GET", f"/v1/jobs/{job_id}", headers={"X-Request-Id": str(uuid.uuid4())}).status_code == 200

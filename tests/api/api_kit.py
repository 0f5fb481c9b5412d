"""What the tests of the API share: a client, a store behind it, requests that pass."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fakeredis
import httpx2
import msgspec

from api.app import create_app
from api.problem_table import PROBLEMS
from shared.completions import StoredCompletion
from shared.curation import Curator
from shared.dataset import Digest, example_line
from shared.ids import JobId, completion_id
from shared.lifecycle import JobStatus
from shared.models import Job, JobError, Manifest, Usage
from shared.plan import teacher_plans
from shared.settings import ProviderSettings, Settings
from shared.store import Store, keys
from shared.store.content import pack_completion
from shared.store.jobs import TEACHER, Change

REPO = Path(__file__).parents[2]
ADMIN_KEY = "dk_test_0123456789abcdef"
SECRET_KEY = "s" * 32
WEBHOOK_SECRET = "whsec_" + "c2VjcmV0LXNlY3JldC1zZWNyZXQh"
MEMBERS = {
    "type",
    "title",
    "status",
    "code",
    "param",
    "detail",
    "message",
    "instance",
    "request_id",
    "retryable",
    "errors",
}
#: What `source` shows of stored completions when a job has another source.
NOT_STORED = {"provider": None, "model": None, "metadata": None}
AUTHORIZED = {"Authorization": f"Bearer {ADMIN_KEY}"}


@contextmanager
def an_api_process(redis_url: str, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`python -m api` on a store, as (process, its address).  settings: DISTILL_… without the prefix."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    openai = {"base_url": "http://127.0.0.1:1/v1", "prices": "openai", "webhook_secret": WEBHOOK_SECRET}
    given = {
        "REDIS_URL": redis_url,
        "SECRET_KEY": SECRET_KEY,
        "ADMIN_KEY": ADMIN_KEY,
        "API_PORT": str(port),
        "PROVIDERS": json.dumps({"openai": openai}),
        **settings,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DISTILL_", "OPENAI_"))}
    environment |= {f"DISTILL_{name}": value for name, value in given.items()}
    running = subprocess.Popen([sys.executable, "-m", "api"], cwd=REPO, env=environment, stderr=subprocess.PIPE)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx2.get(f"{url}/healthz")
                break
            except httpx2.TransportError:
                time.sleep(0.1)
        yield running, url
    finally:
        running.kill()
        running.communicate()


class FakeServer(fakeredis.FakeAsyncRedis):
    """fakeredis, with the two commands about the server itself that it lacks."""

    used_memory = 10

    async def info(self, section: str | None = None, *args: Any, **kwargs: Any) -> Any:
        return {"used_memory": self.used_memory, "maxmemory": 100}

    async def config_get(self, pattern: str = "*", *args: Any, **kwargs: Any) -> Any:
        durable = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
        return {pattern: durable[pattern]}


class RecordingBell:
    def __init__(self) -> None:
        self.rung: list[tuple[str, str]] = []

    async def ring(self, task: str, id_: str) -> bool:
        self.rung.append((task, id_))
        return True


class Api:
    """A client of the application, and what lies behind it."""

    def __init__(self, settings: Settings, store: Store, redis: Any) -> None:
        self.store, self.redis, self.settings = store, redis, settings
        self.bell = RecordingBell()
        self.app = create_app(settings, store=store, doorbell=self.bell)
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        self.http = httpx2.AsyncClient(transport=transport, base_url="http://test", headers=AUTHORIZED)

    async def keys(self) -> list[bytes]:
        """All but the count of requests."""
        return [key for key in await self.redis.keys("*") if not key.endswith(b":requests")]

    async def create(self, **changes: Any) -> dict[str, Any]:
        answer = await self.http.post("/v1/jobs", json=a_request(**changes))
        assert answer.status_code == 202, answer.text
        return answer.json()


class Bridge(httpx2.BaseTransport):
    """From a client's thread to the application, which lives on the loop that made this."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._loop = asyncio.get_running_loop()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {k: v for k, v in request.headers.items() if k in {"authorization", "content-type"}}
        sent = self._api.http.request(request.method, request.url, content=request.read(), headers=headers)
        answer = asyncio.run_coroutine_threadsafe(sent, self._loop).result(10)
        return httpx2.Response(answer.status_code, headers=answer.headers, content=answer.content)


def a_request(**changes: Any) -> dict[str, Any]:
    """The smallest request that passes, with twenty prompts."""
    return {
        "teacher": {"provider": "openai", "model": "gpt-6.1-sol", "params": {"temperature": 0.01}},
        "students": [{"provider": "openai", "model": "gpt-4.1-mini-2025-04-14"}],
        "source": {"type": "inline", "prompts": [f"Ticket {n}: my invoice is wrong." for n in range(20)]},
        "curation": {"min_accepted": 5},
    } | changes


def some_settings(**changes: Any) -> Settings:
    openai = ProviderSettings(base_url="http://127.0.0.1:1/v1", api_key="sk-x", prices="openai", can_store=True)
    free = ProviderSettings(base_url="http://127.0.0.1:1/v1", can_train=False)
    open_weights = openai.model_copy(update={"hyperparameters": ("lora", "lora_r", "house_rule"), "can_dpo": False})
    values: dict[str, Any] = {
        "redis_url": "redis://127.0.0.1:1/0",
        "secret_key": SECRET_KEY,
        "admin_key": ADMIN_KEY,
        "providers": {"openai": openai, "closed": free, "open": open_weights},
        "active_jobs_max": 0,
    }
    return Settings(_env_file=None, **(values | changes))


def problem_of(answer: httpx2.Response) -> dict[str, Any]:
    """The body of an error answer, once it is known to be a whole problem document."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert set(body) >= MEMBERS
    assert body["status"] == answer.status_code
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["type"] == f"/problems/{body['code']}"
    assert body["message"] == body["detail"]
    assert body["code"] in PROBLEMS
    return body


async def loaded(api: Api, job: dict[str, Any]) -> Job:
    found = await api.store.jobs.load(JobId(job["id"]))
    assert found is not None
    return found


async def begin(api: Api, job: dict[str, Any]) -> Job:
    """As a worker would take it up."""
    await api.store.jobs.change(await loaded(api, job), Change(status=JobStatus.RUNNING, set={"stage": "generating"}))
    return await loaded(api, job)


async def answer_all(api: Api, job: Job, *, sample: int = 0) -> None:
    """Every teacher completion: the first refused, the second failed, the others usable."""
    plan = teacher_plans(job)[sample]
    for index in range(job.counters.prompts_total):
        text = f"Answer {index}" + (f", sample {sample}" if sample else "")
        message = {"role": "assistant", "content": text, "refusal": "No." if index == 0 else None}
        raw = {"id": f"chatcmpl-{index}", "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        common = {
            "id": completion_id(api.settings.secret, job.id, plan.number, index),
            "index": index,
            "model": job.spec.teacher.model,
            "created_at_ms": 1_795_345_200_000,
        }
        if index == 1:
            error = JobError(code="provider_rejected", message="The provider said no.")
            kept = StoredCompletion(**common, status="failed", error=error)
        else:
            kept = StoredCompletion(
                **common,
                status="answered",
                reason="refused" if index == 0 else None,
                raw=msgspec.Raw(msgspec.json.encode(raw)),
                usage=Usage(prompt_tokens=10, completion_tokens=5),
                cost_nano=70_000,
                latency_ms=1_500,
            )
        key = keys.completions(job.id, plan.name, index // job.chunk_size)
        await api.redis.hset(key, str(index), pack_completion(kept))


async def curate(api: Api, job: Job) -> Manifest:
    """As the worker's stage does it."""
    curator, content = Curator(job.spec.curation, job.spec.split), api.store.content
    digests = {"train": Digest(), "validation": Digest(), "holdout": Digest()}
    for chunk in range(await content.chunk_count(job.id, "source")):
        decisions = []
        kept = await content.completion_chunk(job.id, TEACHER, chunk)
        for index, prompt in enumerate(await content.prompt_chunk(job.id, "source", chunk), chunk * job.chunk_size):
            failed = kept[index].status == "failed"
            message = None if failed else msgspec.json.decode(kept[index].raw)["choices"][0]["message"]
            decisions.append(curator.decide(prompt, message, "stop", kept[index].reason, failed=failed))
            if decisions[-1].status == "accepted":
                digests[decisions[-1].split].update(example_line(job.spec, prompt, message))
        await content.put_decisions(job.id, chunk, decisions)
    manifest = Manifest(
        sha256=digests["train"].sha256,
        holdout_sha256=digests["holdout"].sha256,
        train=digests["train"].lines,
        validation=digests["validation"].lines,
        holdout=digests["holdout"].lines,
        rejected={"refused": 1, "provider_error": 1},
    )
    await api.store.jobs.change(job, Change(set={"manifest": manifest}))
    return manifest

"""A finished job is deleted by real processes: nothing of it stays in the store or in a log."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from tests.system import System

CANARY = "canary-9b2e"


def everything_in(url: str) -> str:
    """Every key with its value; what is compressed has no canary to find, and its keys must be gone instead."""
    with redis.Redis.from_url(url) as client:
        read: dict[bytes, Callable[[bytes], Any]] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"list": lambda name: client.lrange(name, 0, -1),
            b"set": client.smembers,
            b"zset": lambda name: client.zrange(name, 0, -1),
            b"stream": client.xrange,
        }
        return repr([(name, read[client.type(name)](name)) for name in client.scan_iter(count=1_000)])


def test_a_deleted_job_leaves_a_receipt_and_nothing_else(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        system.start_worker()
        key = {"Idempotency-Key": str(uuid.uuid4())}
        prompts = [f"{CANARY}: my invoice number {n} is wrong, please help." for n in range(40)]
        request = {
            "teacher": {"provider": "sandbox", "model": "gpt-6.1-sol", "params": {"max_completion_tokens": 100}},
            "students": [{"provider": "sandbox", "model": "qwen3-8b"}],
            "system_prompt": f"You triage support tickets for {CANARY}.  Answer with JSON: category, priority, team.",
            "source": {"type": "inline", "prompts": prompts},
            "metadata": {"customer": CANARY},
        }
        created = system.client.post("/v1/jobs", json=request, headers=key)
        assert created.status_code == 202, created.text
        path = f"/v1/jobs/{created.json()['id']}"
        assert system.client.delete(path).status_code == 409
        assert system.finished(created.json()["id"])["status"] == "succeeded"
        assert CANARY in everything_in(system.redis.url)

        assert system.client.delete(path).status_code == 202
        receipt = system.until(
            lambda: (answer := system.client.delete(path)).status_code == 200 and answer.json(), "the job is purged"
        )

        assert receipt["status"] == "purged"
        assert receipt["purged"]["completions"] > 40  # the teacher's, and those of the evaluation
        assert receipt["purged"]["left_at_provider"]["fine_tuned_models"]
        assert system.client.get(path).status_code == 410
        assert system.client.post("/v1/jobs", json=request, headers=key).status_code == 410
        left = everything_in(system.redis.url)
        assert CANARY not in left
        assert ":ledger:" not in left
        job_id = created.json()["id"]
        assert left.count(f"d:{{{job_id}}}") == left.count(f"d:{{{job_id}}}:job") == 1
        assert CANARY not in system.logs()

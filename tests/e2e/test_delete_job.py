"""A finished job is deleted by real processes: nothing of it stays in the store, at the provider or in a log."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import redis
import zstandard
from system import System

CANARY = "canary-9b2e"
_ZSTD = b"\x28\xb5\x2f\xfd"


def everything_in(url: str) -> str:
    """Every key with its value, unpacked where it is compressed."""
    with redis.Redis.from_url(url) as client:
        read: dict[bytes, Any] = {
            b"string": client.get,
            b"hash": client.hgetall,
            b"list": lambda name: client.lrange(name, 0, -1),
            b"set": client.smembers,
            b"zset": lambda name: client.zrange(name, 0, -1),
            b"stream": client.xrange,
            b"none": lambda _: None,  # expired since it was named
        }
        found = [(name, read[client.type(name)](name)) for name in client.scan_iter(count=1_000)]
        return "\n".join(text for entry in found for text in _texts(entry))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, bytes):
        plain = zstandard.ZstdDecompressor().decompress(value) if value.startswith(_ZSTD) else value
        yield plain.decode(errors="replace")
    elif isinstance(value, dict):
        yield from _texts(list(value.items()))
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _texts(part)


def everything_at(provider: Path) -> str:
    """What the sandbox, which must not run, keeps in its data directory: documents and contents."""
    with sqlite3.connect(provider / "sandbox.sqlite3") as database:
        documents = [repr(row) for row in database.execute("SELECT kind, id, body FROM documents")]
    database.close()
    return "\n".join([*documents, *(path.read_text() for path in (provider / "contents").iterdir())])


def stored_completions(system: System) -> int:
    return len(listed(system, "chat/completions"))


def listed(system: System, what: str) -> list[dict[str, Any]]:
    answer = system.client.get(
        f"{system.sandbox.base_url}/{what}", params={"limit": 100}, headers={"Authorization": "Bearer sk-sandbox"}
    )
    found: list[dict[str, Any]] = answer.raise_for_status().json()["data"]
    return found


def test_a_deleted_job_leaves_a_receipt_and_nothing_else_wherever_a_worker_dies(tmp_path: Path) -> None:
    provider = tmp_path / "provider"
    with System(tmp_path, data_dir=provider) as system:
        worker = system.start_worker()
        key = {"Idempotency-Key": str(uuid.uuid4())}
        prompts = [f"{CANARY}: my invoice number {n} is wrong, please help." for n in range(40)]
        request = {
            "teacher": {"provider": "sandbox", "model": "gpt-6.1-sol", "params": {"max_completion_tokens": 100}},
            "students": [{"provider": "sandbox", "model": "qwen3-8b"}],
            "system_prompt": f"You triage support tickets for {CANARY}.  Answer with JSON: category, priority, team.",
            "source": {"type": "inline", "prompts": prompts},
            "metadata": {"customer": CANARY},
            "store": True,
        }
        created = system.client.post("/v1/jobs", json=request, headers=key)
        assert created.status_code == 202, created.text
        job_id = created.json()["id"]
        path = f"/v1/jobs/{job_id}"
        assert system.client.delete(path).status_code == 409
        assert system.finished(job_id)["status"] == "succeeded"
        users = {"model": "gpt-6.1-sol", "messages": [{"role": "user", "content": "Not the job's."}], "store": True}
        authorized = {"Authorization": "Bearer sk-sandbox"}
        system.client.post(f"{system.sandbox.base_url}/chat/completions", json=users, headers=authorized)
        assert CANARY in everything_in(system.redis.url)
        assert stored_completions(system) == 41

        # The provider is slow, and fails now and then; the worker dies in the middle.
        once = {"times": 3, "skip": 5, "fault": {"kind": "server_error"}}
        deleting = {"match": {"path": "/chat/completions/*", "method": "DELETE"}}
        system.sandbox.faults([deleting | once, deleting | {"times": 30, "fault": {"kind": "delay", "seconds": 0.2}}])
        assert system.client.delete(path, params={"delete_models": "true"}).status_code == 202
        system.until(lambda: stored_completions(system) < 35, "some are deleted")
        system.kill(worker)
        assert 1 < stored_completions(system) < 35
        system.start_worker()

        receipt = system.until(
            lambda: (answer := system.client.delete(path)).status_code == 200 and answer.json(), "the job is purged"
        )
        assert receipt["status"] == "purged"
        assert receipt["purged"]["completions"] > 40  # the teacher's, and those of the evaluation
        left = receipt["purged"]["left_at_provider"]
        assert len(left.pop("fine_tuning_jobs")) == 1
        assert not any(left.values()), left
        assert [found["metadata"] for found in listed(system, "chat/completions")] == [{}]
        assert listed(system, "files") == []
        assert not any(model["id"].startswith("ft:") for model in listed(system, "models"))

        assert system.client.get(path).status_code == 410
        assert system.client.post("/v1/jobs", json=request, headers=key).status_code == 410
        kept = everything_in(system.redis.url)
        assert CANARY not in kept
        assert ":ledger:" not in kept
        names = {name for name in kept.split("\n") if name.startswith(f"d:{{{job_id}}}")}
        assert names == {f"d:{{{job_id}}}:job", f"d:{{{job_id}}}:cleanup"}
        assert CANARY not in system.logs()
        system.sandbox.kill()
        assert CANARY not in everything_at(provider)


def test_a_fine_tune_whose_submission_was_lost_is_stopped_when_its_job_is_deleted(tmp_path: Path) -> None:
    with System(tmp_path, settings={"STAGE_ATTEMPTS_MAX": "2"}, training_seconds=600) as system:
        lost = {"match": {"method": "POST", "path": "/fine_tuning/jobs"}, "fault": {"kind": "drop_after_work"}}
        at_list = {"method": "GET", "path": "/fine_tuning/jobs"}
        away = {"match": at_list, "probability": 1.0, "fault": {"kind": "server_error"}}
        system.sandbox.faults([lost])
        system.start_worker()
        job_id = system.submit(prompts=20)["id"]
        system.until(lambda: system.sandbox.ledger()["fine_tuning_jobs_created"], "the fine-tuning job is made")
        system.sandbox.faults([away])  # before anybody looks for it
        system.client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        job = system.finished(job_id)
        assert (job["status"], job["students"][0]["fine_tuning_job_id"]) == ("cancelled", None)
        system.sandbox.clear_faults()
        [left] = listed(system, "fine_tuning/jobs")
        assert left["status"] in {"queued", "validating_files", "running"}, "nobody could stop it"

        path = f"/v1/jobs/{job_id}"
        receipt = system.until(
            lambda: (answer := system.client.delete(path)).status_code == 200 and answer.json(), "the job is purged"
        )

        assert receipt["purged"]["left_at_provider"]["fine_tuning_jobs"] == [left["id"]]
        assert [training["status"] for training in listed(system, "fine_tuning/jobs")] == ["cancelled"]
        assert listed(system, "files") == []

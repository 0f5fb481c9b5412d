"""A dataset from stored completions: how fast is it curated and exported, and does memory stay flat?

Prompts and completions are written straight into a real Valkey; nothing is bought.  The curate stage runs in a process
of its own, the export is what GET /v1/jobs/{id}/dataset of a real API process streams, twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import msgspec
import redis

from bench.api import AUTHORIZED, api_process, bare_process
from bench.processes import cost, python, reset_peak
from bench.tables import show
from cli import embedded
from shared.completions import StoredCompletion
from shared.ids import JobId, TenantId, new_event_id, new_job_id
from shared.lifecycle import JobStatus, Stage
from shared.models import Counters, Event, FineTune, Job, JobSpec, Manifest, Prompt, Student, Teacher
from shared.store import Store, keys
from shared.store.content import pack_completion, pack_prompts
from shared.store.jobs import TEACHER, Change

CHUNK = 100
ANSWER_CHARS = 2_000
_QUESTION_CHARS = 200
_REPEATED_EVERY = 50  # prompts, so that not everything is kept


@dataclass(frozen=True)
class Exported:
    """before_mb: the server's memory when it was asked.  peak_mb: its largest while it answered."""

    bytes: int
    sha256: str
    seconds: float
    cpu_seconds: float
    before_mb: float
    peak_mb: float

    @property
    def rate(self) -> float:
        """MB/s."""
        return self.bytes / 1e6 / self.seconds


def main(*, quick: bool) -> None:
    rows: list[list[object]] = []
    for count in (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000):
        rows += _measured(count)
    show(
        f"dataset: answers of {ANSWER_CHARS / 1000:.0f} KB, one in {_REPEATED_EVERY} prompts a repetition",
        ["", "prompts", "MB", "s", "MB/s", "of baseline", "CPU s", "MB before", "at its peak"],
        rows,
        [
            "curate: MB of all its chat lines, hashed; baseline: as many lines of JSON, read from a file, decoded,",
            "encoded, hashed and written out.  export: the training split; baseline: the same bytes from a file by a",
            "bare FastAPI StreamingResponse.  Both exports have the bytes and the sha256 that the manifest names.",
        ],
    )


def _measured(count: int) -> list[list[object]]:
    folder = Path(tempfile.mkdtemp(prefix="distill-bench-"))
    try:
        with embedded.start(folder) as server:
            job_id = asyncio.run(_in_curating(server.url, count))
            curated = _child("job", server.url, job_id)
            manifest = asyncio.run(_manifest(server.url, job_id))
            lines = folder / "train.jsonl"
            with api_process(server.url) as (port, pid):
                first = _export(port, pid, job_id, lines)
                second = _export(port, pid, job_id, None)
        with bare_process(str(lines)) as (port, pid):
            _export(port, pid, job_id, None)  # so that both have served before
            bare = _export(port, pid, job_id, None)
        copied = _child("lines", str(lines), str(folder / "copy.jsonl"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wanted = (manifest.train_bytes, manifest.sha256)
    for exported in (first, second, bare):
        if (exported.bytes, exported.sha256) != wanted:
            raise RuntimeError("An export is not what the manifest names.")
    size = sum(file.bytes or 0 for file in manifest.files if file.format == "openai_chat") / 1e6
    rate, base_rate = size / curated["seconds"], first.bytes / 1e6 / copied["seconds"]
    return [
        ["curate", count, size, curated["seconds"], rate, rate / base_rate, *_costs(curated)],
        ["  lines copied", manifest.train, first.bytes / 1e6, copied["seconds"], base_rate, None, *_costs(copied)],
        *(
            [what, manifest.train, one.bytes / 1e6, one.seconds, one.rate, share, *_costs(vars(one))]
            for what, one, share in (
                ("export", first, first.rate / bare.rate),
                ("  once more", second, second.rate / bare.rate),
                ("  bare FastAPI", bare, None),
            )
        ),
    ]


def _costs(measured: dict[str, float]) -> list[float]:
    return [measured["cpu_seconds"], measured["before_mb"], measured["peak_mb"]]


def _child(*arguments: str) -> dict[str, float]:
    child = python("-m", "bench.curating", *arguments, stdout=subprocess.PIPE)
    out, _ = child.communicate()
    if child.returncode:
        raise RuntimeError("The measured process has failed.")
    return json.loads(out)


def _export(port: int, pid: int, job_id: JobId, target: Path | None) -> Exported:
    """target: where the bytes go; None for nowhere."""
    url = f"http://127.0.0.1:{port}/v1/jobs/{job_id}/dataset?split=train&format=openai_chat"
    digest, size = hashlib.sha256(), 0
    reset_peak(pid)
    before, started = cost(pid), time.monotonic()
    with httpx2.stream("GET", url, headers=AUTHORIZED, timeout=600) as answer:
        answer.raise_for_status()
        with (target or Path("/dev/null")).open("wb") as out:
            for block in answer.iter_raw():
                digest.update(block)
                size += len(block)
                out.write(block)
    seconds, after = time.monotonic() - started, cost(pid)
    return Exported(
        size, digest.hexdigest(), seconds, after.cpu_seconds - before.cpu_seconds, before.peak_mb, after.peak_mb
    )


async def _manifest(url: str, job_id: JobId) -> Manifest:
    store = Store.at(url, patient=True)
    job = await store.jobs.load(job_id)
    await store.close()
    assert job is not None
    assert job.manifest is not None
    return job.manifest


async def _in_curating(url: str, count: int) -> JobId:
    """A job of which every completion is stored, as the last of them left it."""
    now = time.time_ns() // 1_000_000
    job = Job(
        id=new_job_id(),
        tenant=TenantId("local"),
        spec=JobSpec(
            teacher=Teacher(provider="bench", model="bench-teacher"),
            students=[Student(provider="bench", model="bench-student")],
            source="inline",
        ),
        status=JobStatus.QUEUED,
        version=1,
        created_at_ms=now,
        counters=Counters(prompts_total=count, settled=count, accepted=count),
        fine_tunes=[FineTune()],
        chunk_size=CHUNK,
    )
    _write(url, job.id, count)
    store = Store.at(url, patient=True)
    event = Event(id=new_event_id(), level="info", type="status", message="queued", created_at_ms=now)
    await store.jobs.accept(job, [], event)
    await store.jobs.change(job, Change(status=JobStatus.RUNNING, set={"stage": Stage.CURATING}))
    await store.close()
    return job.id


def _write(url: str, job_id: JobId, count: int) -> None:
    """Chunk by chunk, so that the content is never in memory together."""
    rng = random.Random(7)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(2_000)]
    text = " ".join(rng.choices(words, k=100_000))

    def passage(length: int) -> str:
        start = rng.randrange(len(text) - length)
        return text[start : start + length]

    client = redis.Redis.from_url(url)
    question = ""
    for chunk in range(-(-count // CHUNK)):
        pipe = client.pipeline(transaction=False)
        asked: list[Prompt] = []
        answers: dict[str, bytes] = {}
        for index in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            if index % _REPEATED_EVERY != _REPEATED_EVERY - 1:
                question = f"Ticket {index}: {passage(_QUESTION_CHARS)}"
            system = {"role": "system", "content": "You triage support tickets."}
            asked.append(Prompt(key=f"t-{index}", messages=[system, {"role": "user", "content": question}]))
            answers[str(index)] = pack_completion(_completion(index, passage(ANSWER_CHARS)))
        pipe.hset(keys.prompts(job_id, "source"), str(chunk), pack_prompts(asked))
        pipe.hset(keys.completions(job_id, TEACHER, chunk), mapping=answers)
        pipe.execute()
    client.close()


def _completion(index: int, text: str) -> StoredCompletion:
    message = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    answer = {
        "id": f"chatcmpl-{index}",
        "object": "chat.completion",
        "created": 1,
        "model": "bench-teacher",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 60, "completion_tokens": 400, "total_tokens": 460},
    }
    return StoredCompletion(
        id=f"cmp_{index}",
        index=index,
        model="bench-teacher",
        status="answered",
        created_at_ms=1,
        raw=msgspec.Raw(msgspec.json.encode(answer)),
    )

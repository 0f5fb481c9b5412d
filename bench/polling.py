"""Jobs in training at one provider: what looking at them costs, one by one and by list pages."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass

import httpx2

from bench.processes import cost
from bench.stack import Stack
from bench.tables import show
from sandbox.testing import SandboxProcess
from shared.ids import TenantId, new_event_id, new_job_id
from shared.lifecycle import JobStatus, Stage
from shared.models import Event, FineTune, Job, JobSpec, Student, Teacher
from shared.store import Store
from shared.store.jobs import Change

STUDENT = "gpt-4.1-mini-2025-04-14"
NEVER = 1_000_000_000
JOBS = "/v1/fine_tuning/jobs"


@dataclass(frozen=True)
class Asked:
    """Requests per interval, in the interval that was watched."""

    pages: float
    retrieved: float
    events: float
    cpu_seconds: float

    @property
    def polls(self) -> float:
        return self.pages + self.retrieved


class _Provider:
    """The sandbox, as the stack knows a provider."""

    def __init__(self, sandbox: SandboxProcess) -> None:
        self.url = sandbox.base_url


async def _submitted(url: str, count: int) -> list[str]:
    """So many fine-tuning jobs at the provider, which will train for longer than we watch."""
    lines = b'{"messages":[{"role":"user","content":"Hello"},{"role":"assistant","content":"Hi"}]}\n' * 10
    async with httpx2.AsyncClient(base_url=url, headers={"Authorization": "Bearer sk-bench"}, timeout=60) as http:
        sent = await http.post(
            "/files", data={"purpose": "fine-tune"}, files={"file": ("bench.jsonl", lines, "application/jsonl")}
        )
        body = {"model": STUDENT, "training_file": sent.raise_for_status().json()["id"]}
        return [(await http.post("/fine_tuning/jobs", json=body)).raise_for_status().json()["id"] for _ in range(count)]


async def _in_training(redis_url: str, fine_tuning_jobs: list[str], *, within_seconds: float) -> None:
    """A job of ours for each, as if all had been submitted an hour ago and followed since, due one after the other."""
    store = Store.at(redis_url, patient=True)
    turn_ms = within_seconds * 1000 * max(1, len(fine_tuning_jobs) / 20)
    now = time.time_ns() // 1_000_000
    for number, fine_tuning_job_id in enumerate(fine_tuning_jobs):
        tune = FineTune(
            step="submitted",
            training_file="file-bench",
            intent_at_ms=now - 3_600_000,
            submissions=1,
            fine_tuning_job_id=fine_tuning_job_id,
            status="validating_files",
            events_at_ms=now - int(turn_ms * number / len(fine_tuning_jobs)),
        )
        job = Job(
            id=new_job_id(),
            tenant=TenantId("bench"),
            spec=JobSpec(
                teacher=Teacher(provider="bench", model="gpt-4.1"),
                students=[Student(provider="bench", model=STUDENT)],
                source="inline",
            ),
            status=JobStatus.QUEUED,
            version=1,
            created_at_ms=now,
            fine_tunes=[tune],
        )
        event = Event(id=new_event_id(), level="info", type="status", message="queued", created_at_ms=now)
        await store.jobs.accept(job, [], event)
        due = within_seconds * number / len(fine_tuning_jobs)
        change = Change(status=JobStatus.RUNNING, set={"stage": Stage.TRAINING}, due_in_seconds=due)
        await store.jobs.change(job, change)
        await store.followed.look(
            "bench", fine_tuning_job_id, job.id, since=now // 1000 - 600, every_ms=int(within_seconds * 1000)
        )
    await store.close()


def _watched(count: int, *, interval: float, intervals: int, list_from: int) -> Asked:
    with (
        SandboxProcess(training_seconds=10_000_000, latency_seconds=0) as sandbox,
        Stack(_Provider(sandbox)) as made,  # type: ignore[arg-type]  # of a provider only the address is asked
    ):
        known = asyncio.run(_submitted(sandbox.base_url, count))
        asyncio.run(_in_training(made.server.url, known, within_seconds=interval))
        worker = made.start_worker(10, poll_min_seconds=interval, poll_max_seconds=interval, poll_list_from=list_from)
        time.sleep(2 * interval)  # until looks and readings have found their rhythm
        before, spent = _requests(sandbox), cost(worker.pid).cpu_seconds
        time.sleep(intervals * interval)
        after, spent = _requests(sandbox), cost(worker.pid).cpu_seconds - spent
    asked = after - before
    return Asked(
        pages=asked[f"GET {JOBS}"] / intervals,
        retrieved=asked[f"GET {JOBS}/{{job_id}}"] / intervals,
        events=asked[f"GET {JOBS}/{{job_id}}/events"] / intervals,
        cpu_seconds=spent / intervals,
    )


def _requests(sandbox: SandboxProcess) -> Counter[str]:
    return Counter({route: sum(counts.values()) for route, counts in sandbox.ledger()["requests"].items()})


def main(*, quick: bool) -> None:
    interval, intervals, sizes = (8.0, 2, (10, 100, 500)) if quick else (15.0, 2, (10, 100, 1_000))
    rows = []
    for count in sizes:
        alone = _watched(count, interval=interval, intervals=intervals, list_from=NEVER)
        paged = _watched(count, interval=interval, intervals=intervals, list_from=3)
        for name, asked in (("one by one", alone), ("list pages", paged)):
            rows.append(
                [
                    f"{count:,} in training, {name}",
                    asked.polls,
                    asked.pages,
                    asked.retrieved,
                    asked.events,
                    asked.cpu_seconds,
                    alone.polls / asked.polls if asked.polls else None,
                ]
            )
    show(
        f"polling: requests per interval of {interval:.0f} s, mean of {intervals}, one worker, the sandbox as provider",
        ["", "polls", "pages", "retrieved", "events", "CPU s", "times fewer"],
        rows,
        [
            "Target: polls grow with pages (one per 100 jobs), not with jobs.",
            "A reading more or less falls into so short a time.",
            "Events are read of 20 jobs an interval, in turn, and of each whose status has changed.",
        ],
    )

"""What the benchmarks run against: a real Valkey (appendfsync always), our provider, real workers.

Everything is started here, listens on 127.0.0.1 or a unix socket, and ends with the `with` block."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import urlopen

import redis

from bench.processes import Cost, cost, end, python
from cli import embedded
from shared.ids import JobId, TenantId, new_event_id, new_job_id
from shared.lifecycle import JobStatus
from shared.models import Counters, Event, FineTune, Job, JobSpec, Money, Prompt, Student, Teacher
from shared.queue import ADVANCE_JOB, Doorbell, celery_app
from shared.store import Store, keys
from shared.store.content import pack_prompts
from shared.store.jobs import TEACHER

CHUNK = 100
_TENANT = "bench"
_PARAMS = {"max_completion_tokens": 400}


class Provider:
    """`bench.provider` in a process of its own."""

    def __init__(self, **options: float) -> None:
        arguments = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        self._process = python("-m", "bench.provider", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.port: int = json.loads(self._process.stdout.readline())["port"]
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, float]:
        with urlopen(f"http://127.0.0.1:{self.port}/stats", timeout=10) as answer:  # our own server
            return json.load(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._process)


def broker_url(redis_url: str) -> str:
    """The embedded server's address in Celery's spelling."""
    return "redis+socket://" + redis_url.removeprefix("unix://").replace("?db=", "?virtual_host=")


@dataclass(frozen=True)
class Drawn:
    """One job whose teacher's pass has been waited for.

    seconds: from the first call at the provider to the last completion stored.  start_seconds: from the job's
    acceptance to that first call.  worker: what the workers spent from acceptance to the end, together; its peak is
    the largest of them.  redis_bytes: what the server holds more than before the first call."""

    prompts: int
    settled: int
    seconds: float
    start_seconds: float
    worker: Cost
    redis_cpu: float
    provider_cpu: float
    redis_bytes: int
    stats: dict[str, float]

    @property
    def rate(self) -> float:
        return self.settled / self.seconds

    @property
    def provider_share(self) -> float:
        return self.provider_cpu / self.seconds


def prompts(count: int, *, words: int = 40) -> Iterator[Prompt]:
    """Prompts of about `6 * words` bytes, never the same twice: the ledger would not buy them again."""
    rng = random.Random()
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 8))) for _ in range(2_000)]
    for number in range(count):
        text = f"Ticket {number}: " + " ".join(rng.choices(vocabulary, k=words))
        yield Prompt(
            key=f"t-{number}",
            messages=[{"role": "system", "content": "You triage support tickets."}, {"role": "user", "content": text}],
        )


class Stack:
    """A store and a provider; workers and jobs on demand."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._folder = Path(tempfile.mkdtemp(prefix="distill-bench-"))
        self.server = embedded.start(self._folder)
        self.redis = redis.Redis.from_url(self.server.url)
        self._celery = celery_app(broker_url(self.server.url))
        self._doorbell = Doorbell(self._celery)
        self.workers: list[subprocess.Popen] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_workers()
        self._doorbell.close()
        self._celery.close()
        self.redis.close()
        self.server.stop()
        if kind is not None and os.environ.get("BENCH_KEEP"):
            print(f"kept: {self._folder}")
            return
        shutil.rmtree(self._folder, ignore_errors=True)

    def start_worker(self, in_flight: int, **settings: object) -> subprocess.Popen:
        """One worker process, ready to work."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("DISTILL_", "OPENAI_"))}
        env |= {
            "DISTILL_REDIS_URL": self.server.url,
            "DISTILL_SECRET_KEY": "benchmark-" * 4,
            "DISTILL_PROVIDERS__BENCH__BASE_URL": self.provider.url,
            "DISTILL_PROVIDERS__BENCH__API_KEY": "sk-bench",
            "DISTILL_PROVIDERS__BENCH__MAX_IN_FLIGHT": str(in_flight),
            "DISTILL_WORKER_MAX_IN_FLIGHT": str(in_flight),
            "DISTILL_LOG_LEVEL": "warning",
            **{f"DISTILL_{name.upper()}": str(value) for name, value in settings.items()},
        }
        before = self._alive()
        worker = python("-m", "worker", env=env, log=self._folder / f"worker-{len(self.workers)}.log")
        self.workers.append(worker)
        deadline = time.monotonic() + 30
        while self._alive() == before:
            if worker.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The worker did not start:\n{self.logs()}")
            time.sleep(0.02)
        return worker

    def _alive(self) -> int:
        return self.redis.zcard(keys.WORKERS)

    def stop_workers(self) -> None:
        while self.workers:
            end(self.workers.pop())

    def logs(self) -> str:
        return "\n".join(log.read_text()[-3000:] for log in sorted(self._folder.glob("worker-*.log")))

    def accept(self, what: Iterable[Prompt], count: int, *, tenant: str = _TENANT, tokens: int = 400) -> JobId:
        """Put a job in as the API does.  Its students are never reached: we look at the teacher's pass alone."""
        return self.accept_all([(what, count)], tenant=tenant, tokens=tokens)[0]

    def accept_all(
        self, sources: Iterable[tuple[Iterable[Prompt], int]], *, tenant: str = _TENANT, tokens: int = 400
    ) -> list[JobId]:
        """Put many jobs in, one after the other.  sources: the prompts of each, and how many they are."""

        async def write() -> list[JobId]:
            store = Store.at(self.server.url, patient=True)
            accepted = []
            for what, count in sources:
                job, event = self._job(count, tenant=tenant, tokens=tokens)
                self._put(job.id, what)
                await store.jobs.accept(job, [], event)
                await self._doorbell.ring(ADVANCE_JOB, job.id)
                accepted.append(job.id)
            await store.close()
            return accepted

        return asyncio.run(write())

    @staticmethod
    def _job(count: int, *, tenant: str, tokens: int) -> tuple[Job, Event]:
        now = time.time_ns() // 1_000_000
        job = Job(
            id=new_job_id(),
            tenant=TenantId(tenant),
            spec=JobSpec(
                teacher=Teacher(
                    provider="bench", model="bench-teacher", params={**_PARAMS, "max_completion_tokens": tokens}
                ),
                students=[Student(provider="bench", model="bench-student")],
                source="inline",
            ),
            status=JobStatus.QUEUED,
            version=1,
            created_at_ms=now,
            deadline_at_ms=now + 86_400_000,
            counters=Counters(prompts_total=count),
            money=Money(),
            fine_tunes=[FineTune()],
            chunk_size=CHUNK,
        )
        return job, Event(id=new_event_id(), level="info", type="status", message="queued", created_at_ms=now)

    def _put(self, job_id: JobId, what: Iterable[Prompt]) -> None:
        """The chunks go one by one, before the row, so that a million prompts are never in memory together."""
        pipe = self.redis.pipeline(transaction=False)
        chunk: list[Prompt] = []
        number = 0
        for prompt in what:
            chunk.append(prompt)
            if len(chunk) == CHUNK:
                pipe.hset(keys.prompts(job_id, "source"), str(number), pack_prompts(chunk))
                chunk, number = [], number + 1
                if number % 100 == 0:
                    pipe.execute()
        if chunk:
            pipe.hset(keys.prompts(job_id, "source"), str(number), pack_prompts(chunk))
        pipe.execute()

    def settled(self, job_id: JobId) -> tuple[int, bool]:
        """(completions stored, whether the pass is complete)."""
        settled, complete, halt = self.redis.hmget(keys.pass_row(job_id, TEACHER), "settled", "complete", "halt")
        if halt is not None:
            raise RuntimeError(f"The pass was halted: {halt.decode()}\n{self.logs()}")
        return int(settled or 0), complete is not None

    def wait(self, job_id: JobId, *, for_seconds: float) -> float:
        """Unix seconds (monotonic) at which the pass was complete, or at which we stopped waiting."""
        deadline = time.monotonic() + for_seconds
        while not self.settled(job_id)[1]:
            if time.monotonic() > deadline:
                break
            for worker in self.workers:
                if worker.poll() is not None:
                    raise RuntimeError(f"A worker has ended:\n{self.logs()}")
            time.sleep(0.01)
        return time.monotonic()

    def draw(self, count: int, *, for_seconds: float = 120, words: int = 40, tokens: int = 400) -> Drawn:
        """One job, from acceptance to its teacher's last completion."""
        before = self.provider.stats()
        workers = [cost(worker.pid) for worker in self.workers]
        server = cost(self.server.pid)
        text = prompts(count, words=words)
        job_id = self.accept(text, count, tokens=tokens)
        memory = self.redis.info("memory")["used_memory"]
        accepted = time.monotonic()
        ended = self.wait(job_id, for_seconds=for_seconds)
        costs = [cost(worker.pid) for worker in self.workers]
        redis_cpu = cost(self.server.pid).cpu_seconds - server.cpu_seconds
        after = self.provider.stats()
        settled, _ = self.settled(job_id)
        first = accepted if after["first_at"] is None else max(accepted, after["first_at"])
        spent = sum(now.cpu_seconds - then.cpu_seconds for now, then in zip(costs, workers, strict=True))
        return Drawn(
            prompts=count,
            settled=settled,
            seconds=ended - first,
            start_seconds=first - accepted,
            worker=Cost(spent, max(now.peak_mb for now in costs)),
            redis_cpu=redis_cpu,
            provider_cpu=after["cpu_seconds"] - before["cpu_seconds"],
            redis_bytes=self.redis.info("memory")["used_memory"] - memory,
            stats=after,
        )


@contextmanager
def stack(**provider: float) -> Iterator[Stack]:
    with Provider(**provider) as server, Stack(server) as made:
        yield made

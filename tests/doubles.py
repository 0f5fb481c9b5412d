"""Teachers and trainers in memory: product ports, spoken by scripts.  Each keeps what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from shared.catalogue import ListedModel
from shared.errors import ProviderModelMissing, StoreError
from shared.models import Checkpoint
from shared.ports import (
    Batch,
    BatchFault,
    Completion,
    CompletionRequest,
    ModelFacts,
    ModelList,
    TrainingEvent,
    TrainingJob,
    TrainingPage,
    TrainingRequest,
)
from shared.pricing import Prices
from shared.settings import ProviderSettings
from shared.store import Store
from worker.providers.answers import parse_completion

Line = str | BaseException | Awaitable[Any]


def an_answer(text: str = "Billing", *, prompt_tokens: int = 10, completion_tokens: int = 5) -> Completion:
    """As a provider's JSON would be read."""
    body = {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }
    return parse_completion(msgspec.json.encode(body), {"x-request-id": "req_1"}.get, latency_ms=7)


class ScriptedTeacher:
    """Answers each prompt by its script: what to say or raise at the first call, the second, …; the last line stays.

    script: the lines of every prompt, or a function from the prompt's text to its lines.  asked: the prompts' texts in
    the order of the calls.  seconds: how long an answer takes."""

    def __init__(self, script: Sequence[Line] | Callable[[str], Sequence[Line]] = ("Billing",), *, seconds: float = 0):
        self.script = script
        self.seconds = seconds
        self.asked: list[str] = []
        self.at_once = 0
        self.most_at_once = 0

    @property
    def calls(self) -> Counter[str]:
        return Counter(self.asked)

    async def complete(self, request: CompletionRequest) -> Completion:
        text = request.body["messages"][-1]["content"]
        lines = self.script(text) if callable(self.script) else self.script
        line = lines[min(self.asked.count(text), len(lines) - 1)]
        self.asked.append(text)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
            if isinstance(line, BaseException):
                raise line
            if not isinstance(line, str):
                line = await line
            return line if isinstance(line, Completion) else an_answer(str(line))
        finally:
            self.at_once -= 1

    async def close(self) -> None:
        pass


class _Scripted:
    """Notes each call, and fails it before it is done (`faults["submit"]`) or after (`faults["submit!"]`), once."""

    faults: dict[str, BaseException]
    calls: list[str]

    @contextlib.contextmanager
    def _call(self, name: str) -> Any:
        self.calls.append(name)
        if (error := self.faults.pop(name, None)) is not None:
            raise error
        yield
        if (error := self.faults.pop(name + "!", None)) is not None:
            raise error


class ScriptedTrainer(_Scripted):
    """A fine-tuning provider that remembers.  faults: raised once each, by the name of the call it interrupts; a name
    ending in `!` interrupts after the work was done, as when the answer was lost."""

    def __init__(self, *, keeps_metadata: bool = True) -> None:
        self.keeps_metadata = keeps_metadata
        self.files: list[tuple[str, str, bytes]] = []
        self.jobs: list[TrainingJob] = []
        self.submitted: list[TrainingRequest] = []
        self.cancelled: list[str] = []
        self.models: set[str] = set()
        self.faults: dict[str, BaseException] = {}
        self.calls: list[str] = []
        self.visible_after = 0  # finds that do not see a new job yet
        self.uploads = 0
        self.checkpoint_steps: list[int] = []
        self.names_a_model = True
        self.files_unlisted = 0  # the newest files, which the next list does not show yet
        self.status = "succeeded"
        self.statuses: dict[str, str] = {}  # of single jobs, over `status`
        self.states = {"queued": "waiting"}  # of statuses that are not their own
        self.trained_tokens: dict[str, int] = {}  # of fine-tuning jobs, by status
        self.unlisted: set[str] = set()
        self.deleted: set[str] = set()
        self.page_size = 100
        self.pauses = self.resumes = True  # as asked
        self.training_events: list[TrainingEvent] = []  # of every job
        self.kept_checkpoints: list[Checkpoint] = []
        self.results: dict[str, bytes] = {}  # result files of every job

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        with self._call("find_files"):
            shown = self.files[: len(self.files) - self.files_unlisted]
            self.files_unlisted = max(0, self.files_unlisted - 1)
            return [id_ for id_, name, _ in reversed(shown) if name.startswith(prefix)]

    async def delete_file(self, file_id: str) -> bool:
        with self._call("delete_file"):
            self.files = [file for file in self.files if file[0] != file_id]
        return True

    async def upload(self, path: Path, filename: str) -> str:
        self.uploads += 1
        file_id = f"file-{self.uploads}"
        with self._call("upload"):
            self.files.append((file_id, filename, path.read_bytes()))
        return file_id

    async def submit(self, request: TrainingRequest) -> TrainingJob:
        with self._call("submit"):
            self.submitted.append(request)
            self.jobs.append(
                TrainingJob(
                    id=f"ftjob-{len(self.jobs)}",
                    status="running",
                    state="running",
                    created_at=2_000_000_000 + len(self.jobs),
                    training_file=request.training_file,
                    metadata=request.metadata if self.keeps_metadata else {},
                )
            )
        return self.jobs[-1]

    async def find(self, metadata: dict[str, str], training_file: str, *, not_before: int) -> list[TrainingJob]:
        with self._call("find"):
            if self.visible_after > 0:
                self.visible_after -= 1
                return []
            return [
                job
                for job in self.jobs
                if job.created_at >= not_before
                and (job.training_file == training_file or all(job.metadata.get(k) == v for k, v in metadata.items()))
            ]

    async def poll(self, job_id: str) -> TrainingJob | None:
        with self._call("poll"):
            return next((self._now(job) for job in self.jobs if job.id == job_id and job.id not in self.deleted), None)

    def _now(self, job: TrainingJob) -> TrainingJob:
        status = self.statuses.get(job.id, self.status)
        if job.id in self.cancelled:
            status = "cancelled"
        model = f"ft:{job.id}" if status == "succeeded" and self.names_a_model else None
        changed = {"status": status, "state": self.states.get(status, status), "fine_tuned_model": model}
        changed |= {"result_files": [*self.results], "trained_tokens": self.trained_tokens.get(status)}
        return msgspec.structs.replace(job, **changed)

    async def cancel(self, job_id: str) -> None:
        with self._call("cancel"):
            if self.statuses.get(job_id, self.status) not in {"succeeded", "failed"}:
                self.cancelled.append(job_id)

    async def delete_model(self, model: str) -> bool:
        with self._call("delete_model"):
            there = model in self.models
            self.models.discard(model)
        return there

    async def page(self, *, after: str | None) -> TrainingPage:
        """Newest first, by `page_size`."""
        with self._call("page"):
            listed = [self._now(job) for job in reversed(self.jobs) if job.id not in self.unlisted | self.deleted]
            start = 0 if after is None else [job.id for job in listed].index(after) + 1
            end = start + self.page_size
            return TrainingPage(listed[start:end], end < len(listed))

    async def pause(self, job_id: str) -> bool:
        with self._call("pause"):
            if not self.pauses or self.statuses.get(job_id, self.status) == "paused":
                return False
            self.statuses[job_id] = "paused"
        return True

    async def resume(self, job_id: str) -> bool:
        with self._call("resume"):
            if not self.resumes or self.statuses.get(job_id) != "paused":
                return False
            del self.statuses[job_id]
        return True

    async def events(self, job_id: str, *, after: str | None, known_until: int | None) -> Sequence[TrainingEvent]:
        """Newest first at the provider, as it were: those behind `after`, or not older than `known_until`."""
        with self._call("events"):
            listed = self.training_events
            known = [event.id for event in listed].index(after) + 1 if after in {e.id for e in listed} else 0
            return [e for e in listed[known:] if known_until is None or e.created_at >= known_until]

    async def result_file(self, file_id: str) -> bytes:
        with self._call("result_file"):
            return self.results[file_id]

    async def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        with self._call("checkpoints"):
            return self.kept_checkpoints or [
                Checkpoint(
                    id=f"ftckpt-{step}", created_at=2_000_000_000, step=step, model=f"ft:{job_id}:ckpt-step-{step}"
                )
                for step in self.checkpoint_steps
            ]

    async def close(self) -> None:
        pass


class ScriptedBatcher(_Scripted):
    """A provider that answers a batch when it is polled.

    lines_of: from (custom_id, attempt) to what becomes of it: an answer's text, a status code, or None for expired.
    faults: raised once each, by the name of the call; with `!` after the work was done.  status: of every batch when it
    is polled; statuses: of single ones, over that.  files_gone: those that cannot be read any more."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.batches: list[Batch] = []
        self.asked: list[list[str]] = []  # custom ids of each batch
        self.cancelled: list[str] = []
        self.faults: dict[str, BaseException] = {}
        self.calls: list[str] = []
        self.lines_of: Callable[[str, int], str | int | None] = lambda custom_id, attempt: "Billing"
        self.status = "completed"
        self.statuses: dict[str, str] = {}
        self.visible_after = 0  # finds that do not see a new batch yet
        self.ends_when_cancelled = True
        self.extra_lines: list[bytes] = []
        self.files_gone: set[str] = set()
        self.refusals: list[list[BatchFault]] = []  # validation faults of the next batches, one list each

    async def find_file(self, filename: str) -> str | None:
        with self._call("find_file"):
            return self.names.get(filename)

    async def upload(self, path: Path, filename: str) -> str:
        with self._call("upload"):
            self.names[filename] = f"file-{len(self.files)}"
            self.files[f"file-{len(self.files)}"] = path.read_bytes()
        return self.names[filename]

    async def submit(self, input_file: str, metadata: dict[str, str]) -> Batch:
        with self._call("submit"):
            batch = Batch(f"batch-{len(self.batches)}", "validating", "waiting", 2_000_000_000, input_file, metadata)
            self.batches.append(batch)
            lines = self.files[input_file].splitlines()
            self.asked.append([msgspec.json.decode(line)["custom_id"] for line in lines])
        return batch

    async def find(self, metadata: dict[str, str], input_file: str, *, not_before: int) -> list[Batch]:
        with self._call("find"):
            if self.visible_after > 0:
                self.visible_after -= 1
                return []
            return [self._now(batch) for batch in self.batches if batch.metadata == metadata]

    async def poll(self, batch_id: str) -> Batch | None:
        with self._call("poll"):
            return None if self.statuses.get(batch_id) == "deleted" else self._now(self._batch(batch_id))

    def _batch(self, batch_id: str) -> Batch:
        return self.batches[int(batch_id.rpartition("-")[2])]

    def _now(self, batch: Batch) -> Batch:
        number = int(batch.id.rpartition("-")[2])
        if number < len(self.refusals) and self.refusals[number]:
            return msgspec.structs.replace(batch, status="failed", state="failed", faults=self.refusals[number])
        status = self.statuses.get(batch.id, self.status)
        if batch.id in self.cancelled:
            status = "cancelled" if self.ends_when_cancelled else "cancelling"
        if status in {"in_progress", "cancelling"}:
            return msgspec.structs.replace(
                batch, status=status, state="running" if status == "in_progress" else "cancelling"
            )
        output, error = f"out-{number}", f"err-{number}"
        answered = sum(isinstance(said, str) for _, said in self._said(number))
        return msgspec.structs.replace(
            batch, status=status, state="over", output_file=output, error_file=error, completed=answered
        )

    async def cancel(self, batch_id: str) -> None:
        with self._call("cancel"):
            if self._now(self._batch(batch_id)).state in {"waiting", "running"}:
                self.cancelled.append(batch_id)

    def _said(self, number: int) -> list[tuple[str, str | int | None]]:
        attempt = {id_: sum(id_ in asked for asked in self.asked[: number + 1]) for id_ in self.asked[number]}
        return [(id_, self.lines_of(id_, attempt[id_])) for id_ in reversed(self.asked[number])]

    async def lines(self, file_id: str) -> AsyncIterator[bytes]:
        with self._call("lines"):
            if file_id in self.files_gone:
                raise ProviderModelMissing("It is gone.", status=404)
            kind, _, number = file_id.partition("-")
            found = [
                a_line(id_, said) for id_, said in self._said(int(number)) if isinstance(said, str) == (kind == "out")
            ]
            found += self.extra_lines if kind == "out" else []
        for line in found:
            yield line

    async def close(self) -> None:
        pass


def a_line(custom_id: str, said: str | int | None) -> bytes:
    """said: an answer's text, the status of a refusal, or None for an expired request."""
    response: dict[str, Any] | None = None
    if isinstance(said, str):
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 3, "completion_tokens": 2}
        body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
        response = {"status_code": 200, "request_id": "req_1", "body": body}
    elif said is not None:
        response = {"status_code": said, "request_id": "req_1", "body": {"error": {"code": "no", "type": "no"}}}
    error = {"code": "batch_expired"} if said is None else None
    return msgspec.json.encode({"custom_id": custom_id, "response": response, "error": error})


class ScriptedModels:
    """A provider's models.  retire: the day each retires; missing: models it lacks; faults: raised once each, by the
    name of the call.  asked: what was looked up."""

    def __init__(self, *, retire: Mapping[str, str] | None = None, missing: Collection[str] = ()) -> None:
        self.retire = dict(retire or {})
        self.missing = set(missing)
        self.today = "2026-11-22"
        self.faults: dict[str, BaseException] = {}
        self.asked: list[str] = []

    def _call(self, name: str) -> None:
        if (error := self.faults.pop(name, None)) is not None:
            raise error

    async def listed(self) -> ModelList:
        self._call("listed")
        return ModelList({name: ListedModel(shutdown_date=day) for name, day in self.retire.items()}, self.today)

    async def look_up(self, model: str) -> ModelFacts:
        self._call("look_up")
        self.asked.append(model)
        if model in self.missing:
            raise ProviderModelMissing("The provider has no such model.", status=404)
        return ModelFacts(ListedModel(shutdown_date=self.retire.get(model)), self.today)

    async def require_training(self) -> None:
        self._call("require_training")

    async def close(self) -> None:
        pass


class Lab:
    """All providers of a test, under the name `lab`.  prices: a price list of 1 nano-dollar per token, or None."""

    def __init__(
        self,
        teacher: Any = None,
        trainer: ScriptedTrainer | None = None,
        *,
        batcher: ScriptedBatcher | None = None,
        prices: str | None = None,
        **of_provider: Any,
    ) -> None:
        self.the_batcher = batcher or ScriptedBatcher()
        self.the_teacher = teacher or ScriptedTeacher()
        self.the_trainer: ScriptedTrainer = trainer or ScriptedTrainer()
        self.the_models = ScriptedModels()
        self._settings = ProviderSettings(base_url="http://lab.invalid/v1", prices=prices, **of_provider)

    def settings(self, name: str) -> ProviderSettings:
        return self._settings

    def teacher(self, name: str) -> Any:
        return self.the_teacher

    def trainer(self, name: str) -> ScriptedTrainer:
        return self.the_trainer

    def batcher(self, name: str) -> ScriptedBatcher:
        return self.the_batcher

    def models(self, name: str) -> ScriptedModels:
        return self.the_models

    def archive(self, name: str) -> None:
        return None

    async def close(self) -> None:
        pass


def prices_of_a_nano(folder: Path) -> Prices:
    """1 nano-dollar per token, trained ones too, for the price list `lab`."""
    file = folder / "prices.toml"
    file.write_text('[lab."*"]\ninput = "0.001"\noutput = "0.001"\ntraining = "0.001"\n', encoding="utf-8")
    return Prices(file)


class Flaky:
    """Something of the store's that fails on command.  fail: names of methods that raise StoreError, so many times.
    -1: until told otherwise."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.fail: dict[str, int] = {}
        self.failed: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if not callable(value):
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.fail.get(name, 0) != 0:
                self.fail[name] -= 1
                self.failed[name] += 1
                raise StoreError("The store is away.")
            return await value(*args, **kwargs)

        return call


def flaky(store: Store) -> Store:
    """The same store, whose parts can be told to fail."""
    for part in ("jobs", "passes", "content"):
        setattr(store, part, Flaky(getattr(store, part)))
    return store

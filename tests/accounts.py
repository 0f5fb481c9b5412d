"""What a provider keeps for us, in memory: files, batches, models and stored completions, to be listed and deleted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from shared.errors import ProviderRejected
from shared.models import Checkpoint
from shared.ports import ArchivedCompletion, ArchivePage, Batch, TrainingJob


class Account:
    """Trainer, batcher and archive in one, as far as deleting goes.  calls: what was asked, in order.

    before, after: told of every call and what it names, around the work; what they raise is what the caller gets."""

    def __init__(self, *, filters: bool = True, page_size: int = 100) -> None:
        self.filters = filters
        self.page_size = page_size
        self.files: dict[str, str] = {}  # id → name
        self.models: set[str] = set()
        self.stored: dict[str, dict[str, str]] = {}  # id → metadata, oldest first
        self.batches: dict[str, Batch] = {}
        self.trainings: dict[str, TrainingJob] = {}
        self.checkpoint_models: dict[str, list[str]] = {}  # id of the training → names
        self.cancelled: list[str] = []
        self.calls: list[str] = []
        self.before: Callable[[str, str], None] = lambda _call, _what: None
        self.after: Callable[[str, str], None] = lambda _call, _what: None

    @contextmanager
    def _call(self, name: str, what: str = "") -> Iterator[None]:
        self.calls.append(name)
        self.before(name, what)
        yield
        self.after(name, what)

    # --- as the desk that hands it out --------------------------------------------------------------------------------

    def trainer(self, name: str) -> Any:
        return self

    def batcher(self, name: str) -> Any:
        return _Batcher(self)

    def archive(self, name: str) -> Any:
        return self

    # --- as the ports -------------------------------------------------------------------------------------------------

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        with self._call("find_files", prefix):
            return [id_ for id_, name in self.files.items() if name.startswith(prefix) and "-batch-" not in name]

    async def delete_file(self, file_id: str) -> bool:
        with self._call("delete_file", file_id):
            there = self.files.pop(file_id, None) is not None
        return there

    async def delete_model(self, model: str) -> bool:
        with self._call("delete_model", model):
            there = model in self.models
            self.models.discard(model)
        return there

    async def cancel(self, id_: str) -> None:
        with self._call("cancel", id_):
            self.cancelled.append(id_)
            if id_ in self.trainings:
                self.trainings[id_] = msgspec.structs.replace(
                    self.trainings[id_], status="cancelled", state="cancelled"
                )
            if id_ in self.batches:
                self.batches[id_] = msgspec.structs.replace(self.batches[id_], state="over", output_file="out-late")
                self.files["out-late"] = "batch_output.jsonl"

    async def find(self, metadata: dict[str, str], training_file: str, *, not_before: int) -> list[TrainingJob]:
        with self._call("find", training_file):
            return [
                job
                for job in self.trainings.values()
                if metadata.items() <= job.metadata.items() or job.training_file == training_file
            ]

    async def poll(self, id_: str) -> Batch | TrainingJob | None:
        with self._call("poll", id_):
            return self.batches.get(id_) or self.trainings.get(id_)

    async def checkpoints(self, id_: str) -> list[Checkpoint]:
        with self._call("checkpoints", id_):
            names = self.checkpoint_models.get(id_, [])
            return [Checkpoint(id=f"ckpt-{n}", created_at=0, step=n, model=name) for n, name in enumerate(names)]

    async def page(self, model: str | None, metadata: dict[str, str], *, after: str | None) -> ArchivePage:
        with self._call("page"):
            listed = [
                ArchivedCompletion(id=id_, message={}, finish_reason="stop", metadata=kept)
                for id_, kept in self.stored.items()
                if not self.filters or metadata.items() <= kept.items()
            ]
            if after is not None:
                place = next((n for n, found in enumerate(listed) if found.id == after), None)
                if place is None:
                    raise ProviderRejected("There is no such cursor.")
                listed = listed[place + 1 :]
            return ArchivePage(listed[: self.page_size], len(listed) > self.page_size)

    async def delete(self, completion_id: str) -> bool:
        with self._call("delete", completion_id):
            there = self.stored.pop(completion_id, None) is not None
        return there


class _Batcher:
    """The account, whose files for batches are others than those for training."""

    def __init__(self, account: Account) -> None:
        self._account = account

    def __getattr__(self, name: str) -> Any:
        return getattr(self._account, name)

    async def find(self, metadata: dict[str, str], input_file: str, *, not_before: int) -> list[Batch]:
        with self._account._call("find"):
            return [
                batch
                for batch in self._account.batches.values()
                if metadata.items() <= batch.metadata.items() or batch.input_file == input_file
            ]

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        with self._account._call("find_files", prefix):
            return [id_ for id_, name in self._account.files.items() if name.startswith(prefix) and "-batch-" in name]

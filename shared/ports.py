"""What the engine asks of a provider, and nothing more.  Adapters live in worker/providers, under the vendor's name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from shared.catalogue import ListedModel
from shared.models import Checkpoint, JsonObject, Usage


class CompletionRequest(msgspec.Struct, frozen=True):
    """One Chat Completions call.  body: the JSON to send, `model` and `messages` included."""

    body: JsonObject
    timeout_seconds: float


class RateLimits(msgspec.Struct, frozen=True):
    """As the provider's headers state them; None where they do not."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


class Completion(msgspec.Struct, frozen=True):
    """A usable answer.  raw: the body as it came, every byte."""

    raw: bytes
    message: JsonObject
    finish_reason: str | None
    usage: Usage
    provider_request_id: str | None
    latency_ms: int | None
    service_tier: str | None = None
    limits: RateLimits = RateLimits()


class TeacherPort(Protocol):
    """Any model that answers prompts: the teacher, a base student, a distilled student, a judge."""

    async def complete(self, request: CompletionRequest) -> Completion:
        """One completion, asked once: no retry of its own.  Raises a `ProviderError`, which says whether to retry."""

    async def close(self) -> None: ...


class ArchivedCompletion(msgspec.Struct, frozen=True):
    """A stored completion without its prompt.  message: the answer.  tools, response_format: as they were asked."""

    id: str
    message: JsonObject
    finish_reason: str | None
    metadata: dict[str, str]
    tools: Any = None
    response_format: Any = None


class ArchivePage(msgspec.Struct, frozen=True):
    completions: list[ArchivedCompletion]
    more: bool


class CompletionArchive(Protocol):
    """The completions a provider keeps because we asked it to."""

    async def page(self, model: str | None, metadata: dict[str, str], *, after: str | None) -> ArchivePage:
        """Stored completions in order of creation, from behind the one with id `after`.  Raises a `ProviderError`.

        model: None for all.  A server may ignore the metadata: compare them."""

    async def messages(self, completion_id: str) -> list[JsonObject] | None:
        """What the completion answers; None when it is gone.  Raises a `ProviderError`."""

    async def find(self, model: str, metadata: dict[str, str]) -> Completion | None:
        """The newest stored completion of this model that carries this metadata.  Raises a `ProviderError`."""

    async def delete(self, completion_id: str) -> bool:
        """Whether it was there still.  Raises a `ProviderError`."""

    async def close(self) -> None: ...


#: The one completion window there is: what is not answered by then is given up by the provider.
BATCH_WINDOW_SECONDS: Final = 86_400


class Batch(msgspec.Struct, frozen=True):
    """A batch as the provider shows it.

    state: what `status` means to us: waiting, running, cancelling, failed (its file was refused), or over (what was
    answered can be read); an unknown status is `running`.  completed, failed: requests.  output_file: the answers,
    error_file: the requests that got none; each None when it would be empty.  faults: why the file was refused."""

    id: str
    status: str
    state: str
    created_at: int
    input_file: str
    metadata: dict[str, str]
    completed: int = 0
    failed: int = 0
    output_file: str | None = None
    error_file: str | None = None
    faults: list[BatchFault] = []


class BatchFault(msgspec.Struct, frozen=True):
    """One thing wrong with an input file.  line: from 1, None for the file as a whole."""

    code: str | None
    line: int | None
    param: str | None


class Batcher(Protocol):
    """Whoever answers chat completions by the file.  Every call is made once, without retries."""

    async def find_file(self, filename: str) -> str | None:
        """Id of the newest input file of this name, or None."""

    async def upload(self, path: Path, filename: str) -> str:
        """Id of the stored input file."""

    async def submit(self, input_file: str, metadata: dict[str, str]) -> Batch:
        """metadata: carries our job id and the batch's number, by which a lost submission is found again."""

    async def find(self, metadata: dict[str, str], input_file: str, *, not_before: int) -> list[Batch]:
        """Batches with this metadata or input file created at or after `not_before` (unix s), oldest first."""

    async def poll(self, batch_id: str) -> Batch | None:
        """The batch as it stands, or None when the provider no longer knows it."""

    async def cancel(self, batch_id: str) -> None:
        """Ask for the end of a batch.  One that has ended already is no error."""

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        """Ids of the input files whose names begin so, uploaded at or after `not_before` (unix s)."""

    async def delete_file(self, file_id: str) -> bool:
        """Whether it was there still: an input, output or error file."""

    def lines(self, file_id: str) -> AsyncIterator[bytes]:
        """The lines of an output or error file as they arrive, in no particular order.

        Raises `ProviderModelMissing` when the file is gone."""

    async def close(self) -> None: ...


class TrainingRequest(msgspec.Struct, frozen=True):
    """metadata: carries our job id and student number, by which a lost submission is found again."""

    model: str
    training_file: str
    validation_file: str | None
    method: str
    hyperparameters: JsonObject
    suffix: str | None
    seed: int | None
    metadata: dict[str, str]
    integrations: list[JsonObject] = []


class TrainingJob(msgspec.Struct, frozen=True):
    """A fine-tuning job as the provider shows it.

    state: what `status` means to us; an unknown status is `running`.  error_code: the provider's own, on failure."""

    id: str
    status: str
    state: str
    created_at: int
    training_file: str | None
    metadata: dict[str, str]
    fine_tuned_model: str | None = None
    trained_tokens: int | None = None
    estimated_finish_at: int | None = None
    error_code: str | None = None
    error_param: str | None = None
    result_files: list[str] = []


class TrainingPage(msgspec.Struct, frozen=True):
    """A piece of the list of fine-tuning jobs, newest first where the provider keeps to OpenAI's order."""

    jobs: list[TrainingJob]
    more: bool


class TrainingEvent(msgspec.Struct, frozen=True):
    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: JsonObject


class Trainer(Protocol):
    """Whoever turns a dataset and a base model into a fine-tuned model.  Every call is made once, without retries."""

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        """Ids of the training files whose names begin so, uploaded at or after `not_before` (unix s), newest first."""

    async def delete_file(self, file_id: str) -> bool:
        """Whether it was there still."""

    async def upload(self, path: Path, filename: str) -> str:
        """Id of the stored training file, of any size: in one request, or in parts where it is too large for one."""

    async def submit(self, request: TrainingRequest) -> TrainingJob: ...

    async def find(self, metadata: dict[str, str], training_file: str, *, not_before: int) -> list[TrainingJob]:
        """Jobs with this metadata or training file created at or after `not_before` (unix s), oldest first."""

    async def poll(self, job_id: str) -> TrainingJob | None:
        """The job as it stands, or None when the provider no longer knows it."""

    async def page(self, *, after: str | None) -> TrainingPage:
        """Up to 100 jobs, from behind the one with id `after`."""

    async def cancel(self, job_id: str) -> None:
        """Ask for the end of a job.  One that has ended already is no error."""

    async def pause(self, job_id: str) -> bool:
        """Ask a job to stand still.  False when it does not: refused, or the provider pauses nothing."""

    async def resume(self, job_id: str) -> bool:
        """Ask a paused job to go on.  False when it does not."""

    async def events(self, job_id: str, *, after: str | None, known_until: int | None) -> Sequence[TrainingEvent]:
        """Events newer than the one with id `after`, oldest first.  known_until: when that one was created (unix s):
        what is older is known too, even where the one itself is no longer listed.  None where there is no such list."""

    async def result_file(self, file_id: str) -> bytes:
        """What a succeeded job wrote of its steps, up to a bound; empty when the file is gone."""

    async def delete_model(self, model: str) -> bool:
        """Whether it was there still: a fine-tuned model of ours."""

    async def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        """Those that the provider keeps, in no particular order."""

    async def close(self) -> None: ...


class ModelFacts(msgspec.Struct, frozen=True):
    """today: the day it is by the provider's clock, "YYYY-MM-DD"."""

    model: ListedModel
    today: str


class ModelList(msgspec.Struct, frozen=True):
    """models: by id, at most some thousands; empty where the provider lists none."""

    models: dict[str, ListedModel]
    today: str


class ModelDirectory(Protocol):
    """What a provider has, learned without spending anything."""

    async def listed(self) -> ModelList: ...

    async def look_up(self, model: str) -> ModelFacts:
        """Raises `ProviderModelMissing`."""

    async def require_training(self) -> None:
        """Raises `ProviderTrainingClosed` when the provider serves no fine-tuning jobs, as far as a list of them can
        tell."""

    async def close(self) -> None: ...

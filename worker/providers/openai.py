"""Teacher and trainer over the openai SDK: any server that speaks files, fine_tuning.jobs and chat completions."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import structlog
from openai.types.fine_tuning import FineTuningJob

from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderRejected,
    ProviderTrainingClosed,
    ProviderUnavailable,
)
from shared.models import Checkpoint, JsonObject
from shared.ports import (
    ArchivedCompletion,
    ArchivePage,
    Completion,
    CompletionRequest,
    TrainingEvent,
    TrainingJob,
    TrainingPage,
    TrainingRequest,
)
from shared.settings import ProviderSettings
from worker.providers.answers import parse_completion, word
from worker.providers.reports import checkpoint_of, read_result_file
from worker.providers.sdk import asked, deleted, files_named, lost_jobs, pages, sdk_client
from worker.providers.uploads import size_of, upload_in_parts

T = TypeVar("T")
_log: Final = structlog.get_logger()

#: The provider's statuses in our words; one that is not here is logged and never taken for an end.
STATES: Final[Mapping[str, str]] = {
    "validating_files": "waiting",
    "queued": "waiting",
    "running": "running",
    "pausing": "running",
    "paused": "paused",
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
}
_LIST_PAGES_MAX: Final = 50
#: What a 403 can mean besides the end of training.
_FORBIDDEN_OTHERWISE: Final = frozenset({"invalid_api_key", "unsupported_country_region_territory"})
_MESSAGE_FIELDS: Final = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal")


class OpenAITeacher:
    """Chat completions through the SDK: the fallback to the lean client, slower and with the SDK's own transport."""

    def __init__(self, provider: ProviderSettings) -> None:
        self._client = sdk_client(provider, provider.timeout_seconds)

    async def complete(self, request: CompletionRequest) -> Completion:
        started = time.monotonic()
        client = self._client.with_options(timeout=request.timeout_seconds)
        model, messages = request.body["model"], request.body["messages"]
        others = {name: value for name, value in request.body.items() if name not in {"model", "messages"}}
        create = client.chat.completions.with_raw_response.create(model=model, messages=messages, extra_body=others)
        response = await asked(create, seconds=request.timeout_seconds)
        latency_ms = int((time.monotonic() - started) * 1000)
        return parse_completion(response.content, response.headers.get, latency_ms=latency_ms)

    async def close(self) -> None:
        await self._client.close()


class _Stored(msgspec.Struct):
    metadata: dict[str, str] | None = None


class _StoredPage(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool = False


class _Choice(msgspec.Struct):
    message: JsonObject
    finish_reason: str | None = None


class _Archived(msgspec.Struct):
    """Anything in `choices` but a first one is not looked at."""

    id: str
    choices: list[_Choice] = []
    metadata: dict[str, str] | None = None
    tools: Any = None
    response_format: Any = None


class _Messages(msgspec.Struct):
    data: list[JsonObject]
    has_more: bool = False


class OpenAIArchive:
    """Stored chat completions of one endpoint."""

    def __init__(self, provider: ProviderSettings, *, timeout_seconds: float) -> None:
        self._client = sdk_client(provider, timeout_seconds)

    async def find(self, model: str, metadata: dict[str, str]) -> Completion | None:
        stored = self._client.chat.completions.with_raw_response
        page = await asked(stored.list(model=model, metadata=metadata, order="desc", limit=20))
        try:
            found = msgspec.json.decode(page.content, type=_StoredPage).data
            for raw in found:
                kept = msgspec.json.decode(raw, type=_Stored).metadata or {}
                if all(kept.get(name) == value for name, value in metadata.items()):
                    return parse_completion(bytes(raw), _no_header, latency_ms=None)
        except msgspec.MsgspecError:
            return None
        return None

    async def page(self, model: str | None, metadata: dict[str, str], *, after: str | None) -> ArchivePage:
        stored = self._client.chat.completions.with_raw_response
        more: dict[str, Any] = {name: value for name, value in (("model", model), ("after", after)) if value}
        answer = await asked(stored.list(metadata=metadata, order="asc", limit=100, **more))
        page = _decoded(answer.content, _StoredPage)
        return ArchivePage([_archived(_decoded(raw, _Archived)) for raw in page.data], page.has_more)

    async def messages(self, completion_id: str) -> list[JsonObject] | None:
        """They lie in a list of their own, and a content in parts in a field of its own."""
        stored, found = self._client.chat.completions.messages.with_raw_response, list[JsonObject]()
        behind: dict[str, Any] = {}
        for _ in range(_LIST_PAGES_MAX):
            try:
                answer = await asked(stored.list(completion_id, order="asc", limit=100, **behind))
            except ProviderModelMissing:  # 404: deleted, or expired, since it was listed
                return None
            page = _decoded(answer.content, _Messages)
            found += page.data
            if not (page.has_more and page.data):
                break
            behind = {"after": str(page.data[-1].get("id"))}
        return [_message(row) for row in found]

    async def delete(self, completion_id: str) -> bool:
        return await deleted(self._client.chat.completions.delete(completion_id))

    async def close(self) -> None:
        await self._client.close()


def _decoded(body: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        raise ProviderUnavailable("The provider's answer cannot be read.", provider_code="malformed_answer") from None


def _archived(stored: _Archived) -> ArchivedCompletion:
    first = stored.choices[0] if stored.choices else _Choice(message={})
    return ArchivedCompletion(
        id=stored.id,
        message=_message({"role": "assistant", **first.message}),
        finish_reason=first.finish_reason,
        metadata=stored.metadata or {},
        tools=stored.tools or None,
        response_format=stored.response_format or None,
    )


def _message(row: JsonObject) -> JsonObject:
    """As Chat Completions takes it, without what a stored row has besides."""
    message = {name: row[name] for name in _MESSAGE_FIELDS if row.get(name) is not None}
    return {**message, "content": row.get("content_parts") or row.get("content")}


def _no_header(_: str) -> None:
    return None


class OpenAITrainer:
    """Files, fine-tuning jobs and models of one endpoint."""

    def __init__(self, provider: ProviderSettings, *, timeout_seconds: float) -> None:
        self._provider = provider
        self._client = sdk_client(provider, timeout_seconds)

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        return await files_named(self._client, "fine-tune", prefix, not_before=not_before)

    async def delete_file(self, file_id: str) -> bool:
        return await deleted(self._client.files.delete(file_id))

    async def upload(self, path: Path, filename: str) -> str:
        if size_of(path) > self._provider.upload_max_bytes:
            part_bytes = self._provider.upload_part_bytes
            return await upload_in_parts(self._client, path, filename, purpose="fine-tune", part_bytes=part_bytes)
        with path.open("rb") as lines:
            file = await asked(
                self._client.files.create(file=(filename, lines, "application/jsonl"), purpose="fine-tune")
            )
        return file.id

    async def submit(self, request: TrainingRequest) -> TrainingJob:
        # What is "auto" is left out: every trainer has a default, not every one takes the word.
        given = {name: value for name, value in request.hyperparameters.items() if value != "auto"}
        optional: dict[str, Any] = {
            "validation_file": request.validation_file,
            "suffix": request.suffix,
            "seed": request.seed,
            "integrations": request.integrations or None,
        }
        method = {"type": request.method, request.method: {"hyperparameters": given}}
        try:
            job = await asked(
                self._client.fine_tuning.jobs.create(
                    model=request.model,
                    training_file=request.training_file,
                    method=method,  # type: ignore[arg-type]  # built from the request; the provider judges it
                    metadata=request.metadata,
                    **{name: value for name, value in optional.items() if value is not None},
                    extra_body=self._provider.training_extra,
                )
            )
        except (ProviderAuthFailed, ProviderModelMissing, ProviderRejected) as error:
            if _says_that_training_is_over(error):
                raise ProviderTrainingClosed(
                    "The provider takes no new fine-tuning jobs from this account.",
                    status=error.status,
                    provider_code=error.provider_code,
                    request_id=error.request_id,
                ) from None
            raise
        return self._read(job)

    async def find(self, metadata: dict[str, str], training_file: str, *, not_before: int) -> list[TrainingJob]:
        return await lost_jobs(
            pages(self._client.fine_tuning.jobs.list(metadata=metadata, limit=100)),
            self._read,
            metadata,
            file=lambda job: job.training_file,
            of_file=training_file,
            not_before=not_before,
        )

    async def poll(self, job_id: str) -> TrainingJob | None:
        try:
            return self._read(await asked(self._client.fine_tuning.jobs.retrieve(job_id)))
        except ProviderModelMissing:  # 404: the job is gone
            return None

    async def page(self, *, after: str | None) -> TrainingPage:
        behind: dict[str, Any] = {} if after is None else {"after": after}
        page = await asked(self._client.fine_tuning.jobs.list(limit=100, **behind))
        return TrainingPage([self._read(job) for job in page.data], page.has_next_page())

    async def cancel(self, job_id: str) -> None:
        try:
            await asked(self._client.fine_tuning.jobs.cancel(job_id))
        except (ProviderRejected, ProviderModelMissing):
            return  # it has ended, or is gone: nothing is left to cancel

    async def pause(self, job_id: str) -> bool:
        return await _taken(self._client.fine_tuning.jobs.pause(job_id))

    async def resume(self, job_id: str) -> bool:
        return await _taken(self._client.fine_tuning.jobs.resume(job_id))

    async def events(self, job_id: str, *, after: str | None, known_until: int | None) -> Sequence[TrainingEvent]:
        """The provider lists newest first; we read back to the one we know."""
        fresh: list[TrainingEvent] = []
        try:
            async for page in pages(self._client.fine_tuning.jobs.list_events(job_id, limit=100)):
                for event in page:
                    if event.id == after or (known_until is not None and event.created_at < known_until):
                        return list(reversed(fresh))
                    fresh.append(
                        TrainingEvent(
                            id=event.id,
                            created_at=event.created_at,
                            level=event.level,
                            message=event.message,
                            type=event.type or "message",
                            data=event.data if isinstance(event.data, dict) else {},
                        )
                    )
        except (ProviderModelMissing, ProviderRejected):
            return []  # not every server keeps events
        return list(reversed(fresh))

    async def result_file(self, file_id: str) -> bytes:
        return await read_result_file(self._client, file_id)

    async def delete_model(self, model: str) -> bool:
        return await deleted(self._client.models.delete(model))

    async def checkpoints(self, job_id: str) -> Sequence[Checkpoint]:
        listed = self._client.fine_tuning.jobs.checkpoints.list(job_id, limit=100)
        return [checkpoint_of(kept) async for page in pages(listed) for kept in page]

    def _read(self, job: FineTuningJob) -> TrainingJob:
        return _training_job(job, self._provider.statuses)

    async def close(self) -> None:
        await self._client.close()


async def _taken(request: Awaitable[FineTuningJob]) -> bool:
    """Whether a request was carried out.  A definite no is an answer too: the wrong moment, or no such route."""
    try:
        await asked(request)
    except (ProviderRejected, ProviderModelMissing, ProviderAuthFailed):
        return False
    return True


@lru_cache(maxsize=64)
def _say_unknown(status: str) -> None:
    """Once a process: the list shows it again at every reading."""
    _log.warning("unknown_training_status", status=status)


def _says_that_training_is_over(error: ProviderError) -> bool:
    """Whether a refused fine-tuning job is no fault of the request: the account may not train (any more), or the route
    is gone.  OpenAI's wind-down is a 403 whose code no document names, so it is told by what it is not."""
    if error.status == HTTPStatus.NOT_FOUND:
        return error.provider_code is None  # no word of a model or a file
    return error.status == HTTPStatus.GONE or (
        error.status == HTTPStatus.FORBIDDEN and error.provider_code not in _FORBIDDEN_OTHERWISE
    )


def _training_job(job: FineTuningJob, statuses: Mapping[str, str]) -> TrainingJob:
    """Decided by `status`, never by `error`: a job that succeeded carries an empty one, which is true.

    statuses: the provider's own words besides OpenAI's."""
    state = statuses.get(job.status) or STATES.get(job.status)
    if state is None:
        _say_unknown(str(job.status)[:64])
        state = "running"
    error: JsonObject = job.error.model_dump() if state == "failed" and job.error else {}
    return TrainingJob(
        id=job.id,
        status=str(job.status)[:64],
        state=state,
        created_at=job.created_at,
        training_file=job.training_file,
        metadata=dict(job.metadata or {}),
        fine_tuned_model=job.fine_tuned_model,
        trained_tokens=job.trained_tokens,
        estimated_finish_at=job.estimated_finish,
        error_code=word(error.get("code")),
        error_param=word(error.get("param")),
        result_files=list(job.result_files or []),
    )

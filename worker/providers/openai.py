"""Teacher and trainer over the openai SDK: any server that speaks files, fine_tuning.jobs and chat completions.

Every call goes out once (`max_retries=0`): the SDK would repeat a POST whose answer was lost, and submit twice.  SDK
exceptions carry the Authorization header, so none leaves this file; ours are raised `from None`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import openai
import structlog
from openai import AsyncOpenAI
from openai.types.fine_tuning import FineTuningJob

from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderRejected,
    ProviderTrainingClosed,
    ProviderUnavailable,
)
from shared.models import JsonObject
from shared.ports import (
    ArchivedCompletion,
    ArchivePage,
    Completion,
    CompletionRequest,
    TrainingEvent,
    TrainingJob,
    TrainingRequest,
)
from shared.settings import ProviderSettings
from worker.providers.answers import error_of, parse_completion

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
_MESSAGE_FIELDS: Final = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal")
LONGEST_CALL_SECONDS: Final = 900.0  # the upload of half a gigabyte included


def sdk_client(provider: ProviderSettings, timeout_seconds: float) -> AsyncOpenAI:
    key = provider.api_key.get_secret_value() if provider.api_key else "none"
    return AsyncOpenAI(api_key=key, base_url=provider.base_url, max_retries=0, timeout=timeout_seconds)


async def asked(answer: Awaitable[T], *, seconds: float = LONGEST_CALL_SECONDS) -> T:
    """The SDK's answer, its exceptions in our words.  seconds: for the whole call; the SDK's own time-out is per read,
    and a slow drip outlasts it."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise ProviderUnavailable("The provider did not answer in time.", provider_code="timeout") from None
    except openai.APITimeoutError:
        raise ProviderUnavailable("The provider did not answer in time.", provider_code="timeout") from None
    except openai.APIConnectionError:
        raise ProviderUnavailable("The connection to the provider broke.", provider_code="disconnected") from None
    except openai.APIStatusError as error:
        raise error_of(error.status_code, error.response.content, error.response.headers.get) from None
    except (openai.OpenAIError, ValueError):
        raise ProviderUnavailable("The provider's answer cannot be read.", provider_code="malformed_answer") from None


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

    async def page(self, model: str, metadata: dict[str, str], *, after: str | None) -> ArchivePage:
        stored = self._client.chat.completions.with_raw_response
        behind: dict[str, Any] = {} if after is None else {"after": after}
        answer = await asked(stored.list(model=model, metadata=metadata, order="asc", limit=100, **behind))
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
        self._client = sdk_client(provider, timeout_seconds)

    async def find_file(self, filename: str) -> str | None:
        page = await asked(self._client.files.list(purpose="fine-tune", limit=1000, order="desc"))
        for _ in range(_LIST_PAGES_MAX):
            for file in page.data:
                if file.filename == filename:
                    return file.id
            if not page.has_next_page():
                break
            page = await asked(page.get_next_page())
        return None

    async def upload(self, path: Path, filename: str) -> str:
        with path.open("rb") as lines:
            file = await asked(
                self._client.files.create(file=(filename, lines, "application/jsonl"), purpose="fine-tune")
            )
        return file.id

    async def submit(self, request: TrainingRequest) -> TrainingJob:
        optional: dict[str, Any] = {
            "validation_file": request.validation_file,
            "suffix": request.suffix,
            "seed": request.seed,
        }
        method = {"type": request.method, request.method: {"hyperparameters": request.hyperparameters}}
        try:
            job = await asked(
                self._client.fine_tuning.jobs.create(
                    model=request.model,
                    training_file=request.training_file,
                    method=method,  # type: ignore[arg-type]  # built from the request; the provider judges it
                    metadata=request.metadata,
                    **{name: value for name, value in optional.items() if value is not None},
                )
            )
        except ProviderAuthFailed as error:
            if error.status == 403:
                raise ProviderTrainingClosed(
                    "The provider takes no new fine-tuning jobs from this account.",
                    status=error.status,
                    provider_code=error.provider_code,
                    request_id=error.request_id,
                ) from None
            raise
        return _training_job(job)

    async def find(self, metadata: dict[str, str], training_file: str, *, not_before: int) -> list[TrainingJob]:
        """Asked by metadata where the provider filters, and compared here, where it does not."""
        found: list[TrainingJob] = []
        page = await asked(self._client.fine_tuning.jobs.list(metadata=metadata, limit=100))
        for _ in range(_LIST_PAGES_MAX):
            jobs = [_training_job(job) for job in page.data]
            found += [
                job
                for job in jobs
                if job.training_file == training_file or all(job.metadata.get(k) == v for k, v in metadata.items())
            ]
            if not page.has_next_page() or (jobs and jobs[-1].created_at < not_before):
                break
            page = await asked(page.get_next_page())
        return sorted((job for job in found if job.created_at >= not_before), key=lambda job: job.created_at)

    async def poll(self, job_id: str) -> TrainingJob | None:
        try:
            return _training_job(await asked(self._client.fine_tuning.jobs.retrieve(job_id)))
        except ProviderModelMissing:  # 404: the job is gone
            return None

    async def cancel(self, job_id: str) -> None:
        try:
            await asked(self._client.fine_tuning.jobs.cancel(job_id))
        except (ProviderRejected, ProviderModelMissing):
            return  # it has ended, or is gone: nothing is left to cancel

    async def events(self, job_id: str, *, after: str | None) -> Sequence[TrainingEvent]:
        """The provider lists newest first; we read back to the one we know."""
        fresh: list[TrainingEvent] = []
        page = await asked(self._client.fine_tuning.jobs.list_events(job_id, limit=100))
        for _ in range(_LIST_PAGES_MAX):
            for event in page.data:
                if event.id == after:
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
            if not page.has_next_page():
                break
            page = await asked(page.get_next_page())
        return list(reversed(fresh))

    async def shutdown_date(self, model: str) -> str | None:
        try:
            found = await asked(self._client.models.retrieve(model))
        except ProviderModelMissing:
            if await self._lists(model):
                return None
            raise
        date = (found.model_extra or {}).get("shutdown_date", getattr(found, "shutdown_date", None))
        return date if isinstance(date, str) else None

    async def _lists(self, model: str) -> bool:
        """Whether the model is on the list, or there is no list to ask: not every server has both routes."""
        try:
            page = await asked(self._client.models.list())
        except ProviderError:
            return True
        return any(listed.id == model for listed in page.data)

    async def close(self) -> None:
        await self._client.close()


def _training_job(job: FineTuningJob) -> TrainingJob:
    """Decided by `status`, never by `error`: a job that succeeded carries an empty one, which is true."""
    state = STATES.get(job.status)
    if state is None:
        _log.warning("unknown_training_status", status=str(job.status)[:64], fine_tuning_job=job.id)
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
        error_code=error.get("code"),
        error_param=error.get("param"),
    )

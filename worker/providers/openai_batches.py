"""Batches over the openai SDK: any server that speaks files and batches (openai-contract §4).

As in sdk.py every call goes out once, and no exception of the SDK leaves this package."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Final

import httpx2
import openai
import structlog
from openai.types import Batch as SdkBatch

from shared.errors import ProviderError, ProviderModelMissing, ProviderRejected, ProviderUnavailable
from shared.ports import Batch, BatchFault
from shared.settings import ProviderSettings
from worker.providers.answers import error_of, word
from worker.providers.sdk import asked, deleted, files_named, lost_jobs, pages, sdk_client

_log: Final = structlog.get_logger()

#: The provider's statuses in our words; one that is not here is logged and never taken for an end.
STATES: Final[Mapping[str, str]] = {
    "validating": "waiting",
    "in_progress": "running",
    "finalizing": "running",
    "cancelling": "cancelling",
    "failed": "failed",
    "completed": "over",
    "expired": "over",
    "cancelled": "over",
}
_ENDPOINT: Final = "/v1/chat/completions"
_FAULTS_MAX: Final = 20
_CODE_CHARS: Final = 64
_WRAPPING_BYTES: Final = 10_000  # of a line around the answer itself


class OpenAIBatcher:
    """Batches of chat completions of one endpoint."""

    def __init__(self, provider: ProviderSettings, *, timeout_seconds: float) -> None:
        self._client = sdk_client(provider, timeout_seconds)
        self._line_max_bytes = provider.answer_max_bytes + _WRAPPING_BYTES

    async def find_file(self, filename: str) -> str | None:
        return next(iter(await files_named(self._client, "batch", filename, not_before=0)), None)

    async def upload(self, path: Path, filename: str) -> str:
        """Never in parts: an input file has at most 200 MB by the provider's own rule."""
        with path.open("rb") as lines:
            file = await asked(self._client.files.create(file=(filename, lines, "application/jsonl"), purpose="batch"))
        return file.id

    async def submit(self, input_file: str, metadata: dict[str, str]) -> Batch:
        batch = await asked(
            self._client.batches.create(
                input_file_id=input_file, endpoint=_ENDPOINT, completion_window="24h", metadata=metadata
            )
        )
        return _batch(batch)

    async def find(self, metadata: dict[str, str], input_file: str, *, not_before: int) -> list[Batch]:
        return await lost_jobs(
            pages(self._client.batches.list(limit=100)),
            _batch,
            metadata,
            file=lambda batch: batch.input_file,
            of_file=input_file,
            not_before=not_before,
        )

    async def poll(self, batch_id: str) -> Batch | None:
        try:
            return _batch(await asked(self._client.batches.retrieve(batch_id)))
        except ProviderModelMissing:  # 404: the batch is gone
            return None

    async def cancel(self, batch_id: str) -> None:
        try:
            await asked(self._client.batches.cancel(batch_id))
        except (ProviderRejected, ProviderModelMissing):
            return  # it has ended, or is gone
        except ProviderError as error:
            if error.status != httpx2.codes.CONFLICT:  # 409: it has ended, or is ending
                raise

    async def find_files(self, prefix: str, *, not_before: int) -> list[str]:
        return await files_named(self._client, "batch", prefix, not_before=not_before)

    async def delete_file(self, file_id: str) -> bool:
        return await deleted(self._client.files.delete(file_id))

    async def lines(self, file_id: str) -> AsyncIterator[bytes]:
        """Cut from the stream as it comes; a line longer than any answer we would keep is left out."""
        rest = bytearray()
        skipping = False
        try:
            async with self._client.files.with_streaming_response.content(file_id) as response:
                async for part in response.iter_bytes(65_536):
                    *ends, following = part.split(b"\n")
                    for end in ends:
                        line = bytes(rest) + end
                        rest.clear()
                        if line.strip() and not skipping:
                            yield line
                        skipping = False
                    rest += following
                    if skipping or len(rest) > self._line_max_bytes:
                        _log.warning("batch_line_too_long", file=file_id)
                        skipping = True
                        rest.clear()
        except openai.APIStatusError as error:
            raise error_of(error.status_code, error.response.content, error.response.headers.get) from None
        except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError):
            raise ProviderUnavailable(
                "The batch's file could not be read to its end.", billed_maybe=False, provider_code="disconnected"
            ) from None
        if rest.strip() and not skipping:
            yield bytes(rest)

    async def close(self) -> None:
        await self._client.close()


def _batch(batch: SdkBatch) -> Batch:
    state = STATES.get(batch.status)
    if state is None:
        _log.warning("unknown_batch_status", status=str(batch.status)[:_CODE_CHARS], batch=batch.id)
        state = "running"
    counts = batch.request_counts
    faults = (batch.errors.data or [])[:_FAULTS_MAX] if batch.errors is not None else []
    return Batch(
        id=batch.id,
        status=str(batch.status)[:_CODE_CHARS],
        state=state,
        created_at=batch.created_at,
        input_file=batch.input_file_id,
        metadata=dict(batch.metadata or {}),
        completed=counts.completed if counts else 0,
        failed=counts.failed if counts else 0,
        output_file=batch.output_file_id,
        error_file=batch.error_file_id,
        faults=[BatchFault(word(fault.code), fault.line, word(fault.param)) for fault in faults],
    )

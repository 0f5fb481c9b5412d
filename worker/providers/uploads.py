"""A file above what one request may carry, brought in parts (openai-contract §1.2).

Nothing of it is kept between attempts: whoever finds the job after a crash looks for the whole file by its name, and an
upload that was not completed can be completed by nobody, for its id was in the dead process alone.  The provider drops
it after an hour."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from openai import AsyncOpenAI

from shared.errors import ProviderError, ProviderModelMissing, ProviderRejected, ProviderUnavailable
from worker.providers.sdk import asked, files_named

_PARTS_AT_ONCE: Final = 3
_TRIES_PER_PART: Final = 3
_FAILED: Final = 500  # of the server that was to store it, and no proxy's
_RETRY_SECONDS: Final = 1.0
_RETRY_MOST_SECONDS: Final = 30.0
_ASSEMBLY_LOOKS: Final = 60
_ASSEMBLY_SECONDS: Final = 5.0
_SKEW_SECONDS: Final = 60  # between two clocks of one provider
_MIME_TYPE: Final = "text/jsonl"


async def upload_in_parts(client: AsyncOpenAI, path: Path, filename: str, *, purpose: Any, part_bytes: int) -> str:
    """Id of the stored file.  part_bytes: of every part but the last.  Raises a `ProviderError`."""
    md5 = await asyncio.to_thread(_md5, path)
    try:
        upload = await asked(
            client.uploads.create(bytes=size_of(path), filename=filename, mime_type=_MIME_TYPE, purpose=purpose)
        )
    except ProviderModelMissing as error:  # 404: there is no such route
        raise ProviderRejected(
            "The provider takes no file of this size, whole or in parts.", status=error.status
        ) from None
    try:
        parts = await _send(client, upload.id, path, part_bytes)
        completed = await asked(client.uploads.complete(upload.id, part_ids=parts, md5=md5))
    except ProviderError:
        # Also where the answer was lost: what is not completed by now never will be, what is can be found by its name.
        with suppress(ProviderError):
            await asked(client.uploads.cancel(upload.id))
        raise
    return (
        completed.file.id
        if completed.file is not None
        else await _assembled(client, filename, purpose, upload.created_at)
    )


async def _send(client: AsyncOpenAI, upload_id: str, path: Path, part_bytes: int) -> list[str]:
    """The parts' ids in their order in the file.  A few are on their way at once, read from disk as they are sent."""
    starts = range(0, size_of(path), part_bytes)
    ids: dict[int, str] = {}
    waiting = iter(starts)

    async def send() -> None:
        for start in waiting:
            ids[start] = await _part(client, upload_id, path, start, part_bytes)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(_PARTS_AT_ONCE):
                group.create_task(send())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [ids[start] for start in starts]


async def _part(client: AsyncOpenAI, upload_id: str, path: Path, start: int, length: int) -> str:
    """Sent again where the provider says that it failed.  Where no answer of its own came the upload begins anew, for a
    provider may count a part twice against the bytes that were announced."""
    tries = 0
    while True:
        tries += 1
        try:
            with io.BufferedReader(Window(path, start, length)) as window:
                return (await asked(client.uploads.parts.create(upload_id, data=window))).id
        except ProviderError as error:
            lost = isinstance(error, ProviderUnavailable) and error.billed_maybe and error.status != _FAILED
            if lost or not error.retryable or tries == _TRIES_PER_PART:
                raise
            await asyncio.sleep(min(error.retry_after_seconds or _RETRY_SECONDS, _RETRY_MOST_SECONDS))


async def _assembled(client: AsyncOpenAI, filename: str, purpose: Any, announced_at: int) -> str:
    """Some servers put the parts together after their answer; then the file shows a little later."""
    not_before = announced_at - _SKEW_SECONDS
    for _ in range(_ASSEMBLY_LOOKS):
        if found := await files_named(client, purpose, filename, not_before=not_before):
            return found[0]
        await asyncio.sleep(_ASSEMBLY_SECONDS)
    raise ProviderUnavailable("The provider has not put the uploaded parts together.", provider_code="timeout")


def size_of(path: Path) -> int:
    return path.stat().st_size


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class Window(io.RawIOBase):
    """`length` bytes of a file from `start` on, or what there is of them, as a file of its own."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        super().__init__()
        self._file = path.open("rb", buffering=0)
        self._start = start
        self._length = max(0, min(length, path.stat().st_size - start))
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        most = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._start + self._at)
        data = self._file.read(most)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

"""The use cases of prompt files: what the API offers its callers, without HTTP.

A file is read once, as it arrives: checked line by line, packed into chunks, counted.  Whoever uses it later needs the
counts or one chunk at a time, so a million prompts cost no more memory than a hundred."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final, Protocol

from shared.errors import BadRequest, NotFound, StoreError
from shared.ids import FileId, TenantId, is_id, new_file_id
from shared.models import PromptFile
from shared.prompt_files import PromptReader
from shared.rules import invalid
from shared.store import Store
from shared.store.content import pack_lines

_DAY_MS: Final = 86_400_000
_BLOCK_BYTES: Final = 65_536  # read without letting others have a turn
_LARGE_CHUNK_BYTES: Final = 1_000_000  # from here on a chunk is packed in a thread
_WRITE_CHUNKS: Final = 32
_WRITE_BYTES: Final = 1_000_000
_LINE_OVERHEAD_BYTES: Final = 100_000  # of a prompt's tools, key and so on, beside its messages
_BYTES_PER_CHAR: Final = 12  # at most, with every character escaped


class Upload(Protocol):
    """A file on its way to us."""

    filename: str | None
    """As far as it is known yet; after the last block for good."""

    def blocks(self) -> AsyncIterator[bytes]: ...


@dataclass(frozen=True)
class FileLimits:
    """What the operator allows.  chunk_size: prompts stored, and later leased, together."""

    prompts_max: int
    prompt_max_chars: int
    chunk_size: int
    retention_days: int


class Files:
    """Everything a caller can do with files of prompts."""

    def __init__(self, store: Store, limits: FileLimits, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    async def upload(self, tenant: TenantId, upload: Upload) -> PromptFile:
        """Read a file to its end and keep it.  Raises ValidationFailed with up to 20 faults, each with its line.

        Until the end it is no file; whatever breaks it off, nothing of it stays."""
        file_id, limits = new_file_id(), self._limits
        reader = PromptReader(
            chunk_size=limits.chunk_size,
            prompts_max=limits.prompts_max,
            prompt_max_chars=limits.prompt_max_chars,
            line_max_bytes=limits.prompt_max_chars * _BYTES_PER_CHAR + _LINE_OVERHEAD_BYTES,
        )
        draft, kept = _Draft(self._store, file_id), False
        try:
            digest, size = hashlib.sha256(), 0
            async for block in _small(upload.blocks()):
                digest.update(block)
                size += len(block)
                await draft.take(reader.feed(block))
                if reader.hopeless:
                    break
            await draft.take(reader.close())
            if reader.faults:
                raise invalid(reader.faults)
            await draft.write()
            now_ms = int(self._clock() * 1000)
            file = PromptFile(
                id=file_id,
                tenant=tenant,
                filename=upload.filename,
                bytes=size,
                sha256=digest.hexdigest(),
                counts=reader.counts,
                chunk_size=reader.chunk_size,
                created_at_ms=now_ms,
                expires_at_ms=now_ms + limits.retention_days * _DAY_MS,
            )
            await self._store.files.add(file, chunks=draft.chunks)
            kept = True
        finally:
            if draft.written and not kept:
                # What cannot be removed now vanishes by its time to live.
                with contextlib.suppress(StoreError):
                    await asyncio.shield(self._store.files.discard(file_id))
        return file

    async def get(self, tenant: TenantId, file_id: str) -> PromptFile:
        """Raises NotFound, the same for a foreign file, for none and for what is no id at all."""
        if not is_id("pf", file_id):
            raise NotFound("There is no such file.")
        return await self._store.files.get(tenant, FileId(file_id))

    async def page(
        self, tenant: TenantId, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[PromptFile], bool]:
        """after: id of the last file seen.  Raises BadRequest `invalid_cursor` when it is no file id."""
        if after is not None and not is_id("pf", after):
            raise BadRequest(
                "`after` is not the id of a file.  Pass `last_id` of the page before.",
                code="invalid_cursor",
                param="after",
            )
        return await self._store.files.page(tenant, limit=limit, after=after, newest_first=newest_first)

    async def delete(self, tenant: TenantId, file_id: str) -> PromptFile:
        """No new job can use it.  Jobs that do keep its prompts until they are purged."""
        file = await self.get(tenant, file_id)
        await self._store.files.delete(file)
        return file


class _Draft:
    """Chunks of an upload on their way to the store, a few at a time."""

    def __init__(self, store: Store, file_id: FileId) -> None:
        self._store = store
        self._file_id = file_id
        self._waiting: dict[int, bytes] = {}
        self._bytes = 0
        self.chunks = 0
        self.written = False

    async def take(self, chunks: list[bytes]) -> None:
        for lines in chunks:
            large = len(lines) > _LARGE_CHUNK_BYTES
            packed = await asyncio.to_thread(pack_lines, lines) if large else pack_lines(lines)
            self._waiting[self.chunks] = packed
            self._bytes += len(packed)
            self.chunks += 1
            if len(self._waiting) >= _WRITE_CHUNKS or self._bytes >= _WRITE_BYTES:
                await self.write()

    async def write(self) -> None:
        """Raises StoreFull where jobs would not be let in either."""
        if self._waiting:
            await self._store.require_room()
            self.written = True
            await self._store.files.write(self._file_id, self._waiting)
            self._waiting = {}
            self._bytes = 0


async def _small(blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for block in blocks:
        for start in range(0, len(block), _BLOCK_BYTES):
            yield block[start : start + _BLOCK_BYTES]
            if len(block) > _BLOCK_BYTES:
                await asyncio.sleep(0)

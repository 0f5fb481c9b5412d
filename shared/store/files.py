"""Files of prompts: written chunk by chunk while they arrive, shared by the jobs that use them.

A job takes no copy.  It is entered among the file's jobs when it is accepted, and `release`d when it is purged; the
chunks go when the owner can no longer see the file (deleted, or expired) and no job uses it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.errors import NotFound, StoreError
from shared.ids import FileId, JobId, TenantId
from shared.models import Prompt, PromptFile
from shared.store import keys
from shared.store.connection import Scripts, ask
from shared.store.content import unpack_prompts

_UNFINISHED_MS: Final = 3_600_000  # an upload that was silent for so long is gone
_file: Final = msgspec.json.Decoder(PromptFile)


class FileStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    # --- while it arrives --------------------------------------------------------------------------------------------

    async def write(self, file_id: FileId, chunks: Mapping[int, bytes]) -> None:
        """Chunks of an upload, by number.  They are no file yet, and vanish by themselves if they never become one."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.hset(keys.file_prompts(file_id), mapping={str(number): chunk for number, chunk in chunks.items()})
        pipe.pexpire(keys.file_prompts(file_id), _UNFINISHED_MS)
        await ask(pipe.execute())

    async def discard(self, file_id: FileId) -> None:
        """Forget an upload that broke off."""
        await ask(self._redis.unlink(keys.file_prompts(file_id)))

    async def add(self, file: PromptFile, *, chunks: int) -> None:
        """Make a file of what was written.  Raises StoreError when the upload took so long that parts are gone."""
        written = await self._scripts.run(
            "add_file",
            [keys.file(file.id), keys.file_prompts(file.id), keys.tenant_files(file.tenant)],
            [file.id, chunks, msgspec.json.encode(file), file.expires_at_ms],
        )
        if not written:
            raise StoreError("The upload took too long, and its first part is gone.  Send the file again.")

    # --- once it is there --------------------------------------------------------------------------------------------

    async def get(self, tenant: TenantId, file_id: FileId) -> PromptFile:
        """A tenant's own file, neither deleted nor expired.  Raises NotFound, the same for a foreign one."""
        row, deleted = await ask(self._redis.hmget(keys.file(file_id), ["row", "deleted"]))
        file = _visible(row, deleted)
        if file is None or file.tenant != tenant:
            raise NotFound("There is no such file.")
        return file

    async def load(self, file_id: FileId) -> PromptFile | None:
        """Any file that is there, also one that only its jobs still see."""
        row = await ask(self._redis.hget(keys.file(file_id), "row"))
        return _file.decode(row) if row else None

    async def page(
        self, tenant: TenantId, *, limit: int, after: str | None, newest_first: bool
    ) -> tuple[list[PromptFile], bool]:
        """Up to `limit` files in order of creation, and whether there are more.  Entries of expired ones are removed
        on the way, so each is passed once."""
        key, found = keys.tenant_files(tenant), list[PromptFile]()
        while True:
            wanted = limit + 1 - len(found)
            if newest_first:
                ids = await ask(self._redis.zrevrangebylex(key, f"({after}" if after else "+", "-", 0, wanted))
            else:
                ids = await ask(self._redis.zrangebylex(key, f"({after}" if after else "-", "+", 0, wanted))
            rows = await self._rows(ids)
            gone = [file_id for file_id, file in rows if file is None]
            found += [file for _, file in rows if file is not None]
            if gone:
                await ask(self._redis.zrem(key, *gone))
            if len(found) > limit or len(ids) < wanted:
                return found[:limit], len(found) > limit
            after = ids[-1].decode()

    async def _rows(self, ids: Sequence[bytes]) -> list[tuple[bytes, PromptFile | None]]:
        pipe = self._redis.pipeline(transaction=False)
        for file_id in ids:
            pipe.hmget(keys.file(FileId(file_id.decode())), ["row", "deleted"])
        rows = await ask(pipe.execute()) if ids else []
        return [(file_id, _visible(row, deleted)) for file_id, (row, deleted) in zip(ids, rows, strict=True)]

    async def chunk(self, file_id: FileId, number: int) -> list[Prompt]:
        """Prompts as they were uploaded; empty when there is no such chunk."""
        blob = await ask(self._redis.hget(keys.file_prompts(file_id), str(number)))
        return unpack_prompts(blob) if blob else []

    async def delete(self, file: PromptFile) -> None:
        """No new job can use it.  Idempotent."""
        await self._scripts.run("delete_file", self._keys(file), [file.id])

    async def release(self, file: PromptFile, job_id: JobId) -> None:
        """The job is being purged and needs the file no longer.  Idempotent."""
        await self._scripts.run("release_file", self._keys(file), [file.id, job_id])

    def _keys(self, file: PromptFile) -> list[str]:
        return [
            keys.file(file.id),
            keys.file_prompts(file.id),
            keys.file_jobs(file.id),
            keys.tenant_files(file.tenant),
        ]


def _visible(row: bytes | None, deleted: bytes | None) -> PromptFile | None:
    if row is None or deleted is not None:
        return None
    file = _file.decode(row)
    return file if file.expires_at_ms > time.time_ns() // 1_000_000 else None

"""What jobs are made of: prompts, completions and decisions, compressed, read a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final

import msgspec
import redis.asyncio as redis
import zstandard

from shared.ids import JobId
from shared.models import Decision, Prompt, StoredCompletion
from shared.store import keys
from shared.store.connection import ask

_compress: Final = zstandard.ZstdCompressor(level=3)
_decompress: Final = zstandard.ZstdDecompressor()
_prompts: Final = msgspec.json.Decoder(Prompt)
_completions: Final = msgspec.json.Decoder(StoredCompletion)
_decisions: Final = msgspec.json.Decoder(list[Decision])
_encode: Final = msgspec.json.Encoder()


def pack_prompts(prompts: Sequence[Prompt]) -> bytes:
    """A chunk as it is stored: one JSON line per prompt, compressed together (a shared system prompt costs once)."""
    return _compress.compress(_encode.encode_lines(prompts))


def unpack_prompts(blob: bytes) -> list[Prompt]:
    return _prompts.decode_lines(_decompress.decompress(blob))


def pack_completion(completion: StoredCompletion) -> bytes:
    return _compress.compress(_encode.encode(completion))


def unpack_completion(blob: bytes) -> StoredCompletion:
    return _completions.decode(_decompress.decompress(blob))


def chunked(prompts: Sequence[Prompt], size: int) -> Iterable[bytes]:
    return (pack_prompts(prompts[start : start + size]) for start in range(0, len(prompts), size))


class ContentStore:
    """Bulk content of jobs.  Every read is bounded by a chunk, so memory stays flat however large the job."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    async def prompt_chunk(self, job_id: JobId, prompt_set: str, chunk: int) -> list[Prompt]:
        """The prompts of one chunk; empty when there is no such chunk."""
        blob: bytes | None = await ask(self._redis.hget(keys.prompts(job_id, prompt_set), str(chunk)))
        return unpack_prompts(blob) if blob else []

    async def put_prompt_chunk(self, job_id: JobId, prompt_set: str, chunk: int, prompts: Sequence[Prompt]) -> None:
        await ask(self._redis.hset(keys.prompts(job_id, prompt_set), str(chunk), pack_prompts(prompts)))

    async def chunk_count(self, job_id: JobId, prompt_set: str) -> int:
        return int(await ask(self._redis.hlen(keys.prompts(job_id, prompt_set))))

    async def completion_chunk(self, job_id: JobId, pass_name: str, chunk: int) -> dict[int, StoredCompletion]:
        """The settled completions of one chunk, by index, in order of index."""
        found: dict[bytes, bytes] = await ask(self._redis.hgetall(keys.completions(job_id, pass_name, chunk)))
        return {index: unpack_completion(blob) for index, blob in sorted((int(i), b) for i, b in found.items())}

    async def completion(self, job_id: JobId, pass_name: str, chunk: int, index: int) -> StoredCompletion | None:
        blob: bytes | None = await ask(self._redis.hget(keys.completions(job_id, pass_name, chunk), str(index)))
        return unpack_completion(blob) if blob else None

    async def put_decisions(self, job_id: JobId, chunk: int, decisions: Sequence[Decision]) -> None:
        await ask(self._redis.hset(keys.decisions(job_id), str(chunk), _compress.compress(_encode.encode(decisions))))

    async def decision_chunk(self, job_id: JobId, chunk: int) -> list[Decision]:
        """What curating decided of one chunk, in order; empty before curating."""
        blob: bytes | None = await ask(self._redis.hget(keys.decisions(job_id), str(chunk)))
        return _decisions.decode(_decompress.decompress(blob)) if blob else []

    async def curated(
        self, job_id: JobId, pass_name: str
    ) -> AsyncIterator[tuple[int, Prompt, StoredCompletion | None, Decision | None]]:
        """(index, prompt, completion, decision) of every source prompt, in order, one chunk in memory at a time."""
        index = 0
        for chunk in range(await self.chunk_count(job_id, "source")):
            prompts = await self.prompt_chunk(job_id, "source", chunk)
            completions = await self.completion_chunk(job_id, pass_name, chunk)
            decisions = await self.decision_chunk(job_id, chunk)
            for offset, prompt in enumerate(prompts):
                decision = decisions[offset] if offset < len(decisions) else None
                yield index, prompt, completions.get(index), decision
                index += 1

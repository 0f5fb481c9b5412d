"""What jobs are made of: prompts, completions and decisions, compressed, read a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import msgspec
import redis.asyncio as redis
import zstandard

from shared.completions import Decision, StoredCompletion
from shared.ids import JobId
from shared.models import Prompt, PromptDefaults
from shared.prompts import Texts, with_defaults
from shared.store import keys
from shared.store.connection import ask

_compress: Final = zstandard.ZstdCompressor(level=3)
_decompress: Final = zstandard.ZstdDecompressor()
_prompts: Final = msgspec.json.Decoder(Prompt)
_completions: Final = msgspec.json.Decoder(StoredCompletion)
_decisions: Final = msgspec.json.Decoder(list[Decision | None])
_defaults: Final = msgspec.json.Decoder(PromptDefaults)
_encode: Final = msgspec.json.Encoder()
_PLACES_MAX: Final = 256  # jobs of which this process remembers where their prompts lie


def pack_prompts(prompts: Sequence[Prompt]) -> bytes:
    """A chunk as it is stored: one JSON line per prompt, compressed together (a shared system prompt costs once)."""
    return pack_lines(prompts.lines() if isinstance(prompts, Texts) else _encode.encode_lines(prompts))


def pack_lines(lines: bytes) -> bytes:
    """A chunk from prompts that are JSON lines already."""
    return _compress.compress(lines)


def unpack_prompts(blob: bytes) -> list[Prompt]:
    return _prompts.decode_lines(_decompress.decompress(blob))


def pack_completion(completion: StoredCompletion) -> bytes:
    return _compress.compress(_encode.encode(completion))


def unpack_completion(blob: bytes) -> StoredCompletion:
    return _completions.decode(_decompress.decompress(blob))


def chunked(prompts: Sequence[Prompt], size: int) -> Iterable[bytes]:
    return (pack_prompts(prompts[start : start + size]) for start in range(0, len(prompts), size))


class Curated(NamedTuple):
    """A source prompt with the teacher's answers and what curating decided of them, by sample; None where there is
    none."""

    prompt: Prompt
    answers: list[StoredCompletion | None]
    decisions: list[Decision | None]


@dataclass(frozen=True)
class _Place:
    """Where prompts lie.  defaults: what they do not carry yet; None when they do."""

    key: str
    defaults: PromptDefaults | None = None


class ContentStore:
    """Bulk content of jobs.  Every read is bounded by a chunk, so memory stays flat however large the job."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._places: dict[JobId, _Place] = {}

    async def prompt_chunk(self, job_id: JobId, prompt_set: str, chunk: int) -> list[Prompt]:
        """The prompts of one chunk as they are asked; empty when there is no such chunk.

        The one place where prompts and what the job says for all of them come together."""
        place = await self._place(job_id, prompt_set)
        blob: bytes | None = await ask(self._redis.hget(place.key, str(chunk)))
        prompts = unpack_prompts(blob) if blob else []
        return prompts if place.defaults is None else [with_defaults(prompt, place.defaults) for prompt in prompts]

    async def _place(self, job_id: JobId, prompt_set: str) -> _Place:
        """Source prompts may be a file's; that never changes, so it is looked up once per job and process."""
        own = _Place(keys.prompts(job_id, prompt_set))
        if prompt_set != "source":
            return own
        if job_id in self._places:
            return self._places[job_id]
        status, key, defaults = await ask(
            self._redis.hmget(keys.job(job_id), ["status", "source_chunks", "prompt_defaults"])
        )
        if status is None:
            return own
        found = _Place(key.decode() if key else own.key, _defaults.decode(defaults) if defaults else None)
        while len(self._places) >= _PLACES_MAX:
            del self._places[next(iter(self._places))]
        self._places[job_id] = found
        return found

    async def put_prompt_chunk(self, job_id: JobId, prompt_set: str, chunk: int, prompts: Sequence[Prompt]) -> None:
        await ask(self._redis.hset(keys.prompts(job_id, prompt_set), str(chunk), pack_prompts(prompts)))

    async def chunk_count(self, job_id: JobId, prompt_set: str) -> int:
        return int(await ask(self._redis.hlen((await self._place(job_id, prompt_set)).key)))

    async def completion_chunk(self, job_id: JobId, pass_name: str, chunk: int) -> dict[int, StoredCompletion]:
        """The settled completions of one chunk, by index, in order of index."""
        found: dict[bytes, bytes] = await ask(self._redis.hgetall(keys.completions(job_id, pass_name, chunk)))
        return {index: unpack_completion(blob) for index, blob in sorted((int(i), b) for i, b in found.items())}

    async def completion(self, job_id: JobId, pass_name: str, chunk: int, index: int) -> StoredCompletion | None:
        blob: bytes | None = await ask(self._redis.hget(keys.completions(job_id, pass_name, chunk), str(index)))
        return unpack_completion(blob) if blob else None

    async def put_decisions(
        self, job_id: JobId, chunk: int, decisions: Sequence[Decision | None], *, sample: int = 0
    ) -> None:
        blob = _compress.compress(_encode.encode(decisions))
        await ask(self._redis.hset(keys.decisions(job_id), _decided(chunk, sample), blob))

    async def decision_chunk(self, job_id: JobId, chunk: int, *, sample: int = 0) -> list[Decision | None]:
        """What curating decided of one chunk, in order; empty before curating."""
        blob: bytes | None = await ask(self._redis.hget(keys.decisions(job_id), _decided(chunk, sample)))
        return _decisions.decode(_decompress.decompress(blob)) if blob else []

    async def curated(self, job_id: JobId, passes: Sequence[str]) -> AsyncIterator[Curated]:
        """Every source prompt, in order, one chunk in memory at a time.  passes: the teacher's, by sample.

        A prompt that brought its answer has it as the first sample alone."""
        index = 0
        for chunk in range(await self.chunk_count(job_id, "source")):
            prompts = await self.prompt_chunk(job_id, "source", chunk)
            answers = [await self.completion_chunk(job_id, name, chunk) for name in passes]
            decisions = [await self.decision_chunk(job_id, chunk, sample=n) for n in range(len(passes))]
            for offset, prompt in enumerate(prompts):
                yield Curated(
                    prompt,
                    [None if n and prompt.completion else found.get(index) for n, found in enumerate(answers)],
                    [found[offset] if offset < len(found) else None for found in decisions],
                )
                index += 1


def _decided(chunk: int, sample: int) -> str:
    return f"{chunk}.{sample}" if sample else str(chunk)

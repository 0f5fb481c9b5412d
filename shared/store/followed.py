"""What is followed at providers: which job waits for which of their objects, and what one worker has read for all.

Nothing here is the truth.  A row says what is followed and looks again at its due time; an entry that is lost costs a
further request."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import redis.asyncio as redis

from shared.ids import JobId
from shared.ports import TrainingJob
from shared.store import keys
from shared.store.connection import Scripts, ask

T = TypeVar("T")
_AWAITED_SECONDS: Final = 3 * 86_400  # far longer than two looks are apart
_NOTED_AGAIN_MS: Final = 3_600_000
_BOARD_SECONDS: Final = 86_400
_EVENT_SECONDS: Final = 900  # a signature holds five minutes each way
_UNLISTED_SECONDS: Final = 600


class Pace(msgspec.Struct, array_like=True, frozen=True):
    """How a fine-tuning job is followed.  since: it was not created before (unix s).  seen_at_ms: the last look."""

    since: int
    every_ms: int
    seen_at_ms: int


@dataclass(frozen=True)
class Entry:
    """What was read of a fine-tuning job, and when (unix ms).  job: None when it was not on the list."""

    read_at_ms: int
    job: TrainingJob | None


@dataclass(frozen=True)
class Sight:
    """What a worker finds before it asks the provider.  followed: at this provider, this one included.  new: this one
    was not followed before."""

    followed: int
    entry: Entry | None
    now_ms: int
    has_list: bool
    new: bool = False


_NEVER_SEEN: Final = Pace(0, 0, 0)
_paces: Final = msgspec.json.Decoder(Pace)
_jobs: Final = msgspec.json.Decoder(TrainingJob)


class FollowedStore:
    def __init__(self, client: redis.Redis, scripts: Scripts) -> None:
        self._redis = client
        self._scripts = scripts

    # --- who waits for what -------------------------------------------------------------------------------------------

    async def expect(self, provider: str, object_id: str, job_id: JobId) -> None:
        """This job waits for that fine-tuning job or batch: said anew at every look, so that no end of waiting need
        be noted."""
        await ask(self._redis.set(keys.awaited(provider, object_id), job_id, ex=_AWAITED_SECONDS))

    async def hint(self, provider: str, object_id: str, event_id: str) -> JobId | None:
        """The job that waits for the object, due now; None when nobody waits or the event was seen before."""
        found = await self._scripts.run(
            "hint",
            [keys.awaited(provider, object_id), keys.DUE, keys.provider_event(provider, event_id)],
            [_EVENT_SECONDS],
        )
        return JobId(found.decode()) if found else None

    async def is_hinted(self, job_id: JobId) -> bool:
        """Whether a provider has told of a change since the last `take_hint`."""
        return bool(await ask(self._redis.exists(keys.hint(job_id))))

    async def take_hint(self, job_id: JobId) -> bool:
        return bool(await ask(self._redis.delete(keys.hint(job_id))))

    async def nudge(self, provider: str, object_ids: Sequence[str]) -> None:
        """Who waits for these is due now."""
        if object_ids:
            await self._scripts.run("nudge", [keys.DUE, *(keys.awaited(provider, id_) for id_ in object_ids)], [])

    # --- the noticeboard ----------------------------------------------------------------------------------------------

    async def look(self, provider: str, fine_tuning_job_id: str, job_id: JobId, *, since: int, every_ms: int) -> Sight:
        """Note that the fine-tuning job is followed by this job, and see what is known of it."""
        followed, entry, now_ms, unlisted, new = await self._scripts.run(
            "look_at_board",
            [
                keys.followed(provider),
                keys.noticeboard(provider),
                keys.unlisted(provider),
                keys.awaited(provider, fine_tuning_job_id),
            ],
            [fine_tuning_job_id, since, every_ms, job_id, _AWAITED_SECONDS, _NOTED_AGAIN_MS],
        )
        return Sight(int(followed), _entry_of(entry), int(now_ms), not unlisted, bool(new))

    async def unfollow(self, provider: str, fine_tuning_job_id: str) -> None:
        pipe = self._redis.pipeline(transaction=False)
        pipe.hdel(keys.followed(provider), fine_tuning_job_id)
        pipe.hdel(keys.noticeboard(provider), fine_tuning_job_id)
        pipe.delete(keys.awaited(provider, fine_tuning_job_id))
        await ask(pipe.execute())

    async def entry(self, provider: str, fine_tuning_job_id: str) -> Entry | None:
        return _entry_of(await ask(self._redis.hget(keys.noticeboard(provider), fine_tuning_job_id)))

    async def all(self, provider: str) -> tuple[dict[str, Pace], dict[str, Entry]]:
        """All that is followed at a provider, and all that is known of it, by fine-tuning job id."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.followed(provider))
        pipe.hgetall(keys.noticeboard(provider))
        followed, board = await ask(pipe.execute())
        paces = ((id_.decode(), _decoded(_paces, text)) for id_, text in followed.items())
        entries = ((id_.decode(), _entry_of(text)) for id_, text in board.items())
        return (
            {id_: pace or _NEVER_SEEN for id_, pace in paces},
            {id_: entry for id_, entry in entries if entry is not None},
        )

    async def post(self, provider: str, entries: Mapping[str, Entry]) -> None:
        if not entries:
            return
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(keys.noticeboard(provider), mapping={id_: _text_of(entry) for id_, entry in entries.items()})
        pipe.expire(keys.noticeboard(provider), _BOARD_SECONDS)
        await ask(pipe.execute())

    async def forget(self, provider: str, fine_tuning_job_ids: Iterable[str]) -> None:
        """Nobody follows these any more, and nobody said so."""
        if gone := list(fine_tuning_job_ids):
            pipe = self._redis.pipeline(transaction=False)
            pipe.hdel(keys.followed(provider), *gone)
            pipe.hdel(keys.noticeboard(provider), *gone)
            await ask(pipe.execute())

    async def begin_reading(self, provider: str, *, for_ms: int) -> bool:
        """Whether nobody else reads the provider's list right now.  It spares requests alone: two may read it."""
        return bool(await ask(self._redis.set(keys.reading(provider), "", nx=True, px=for_ms)))

    async def go_on_reading(self, provider: str, *, for_ms: int) -> None:
        await ask(self._redis.pexpire(keys.reading(provider), for_ms))

    async def end_reading(self, provider: str) -> None:
        await ask(self._redis.delete(keys.reading(provider)))

    async def has_no_list(self, provider: str) -> None:
        await ask(self._redis.set(keys.unlisted(provider), "", ex=_UNLISTED_SECONDS))


def _entry_of(text: bytes | None) -> Entry | None:
    if not text:
        return None
    read_at, _, body = text.partition(b" ")
    if body == b"-":
        return Entry(int(read_at), None)
    job = _decoded(_jobs, body)
    return None if job is None else Entry(int(read_at), job)


def _decoded(decoder: msgspec.json.Decoder[T], text: bytes) -> T | None:
    """None for what another version of ours has written: it will be read again."""
    try:
        return decoder.decode(text)
    except msgspec.MsgspecError:
        return None


def _text_of(entry: Entry) -> bytes:
    """Without the metadata, which nobody who follows asks for."""
    job = b"-" if entry.job is None else msgspec.json.encode(msgspec.structs.replace(entry.job, metadata={}))
    return b"%d %b" % (entry.read_at_ms, job)

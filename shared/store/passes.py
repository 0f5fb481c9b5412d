"""Passes: one model answering one set of prompts, by any number of workers at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, cast

import msgspec
import redis.asyncio as redis

from shared.completions import StoredCompletion
from shared.ids import JobId, TenantId
from shared.models import JobError, Usage
from shared.store import keys
from shared.store.connection import Scripts, ask
from shared.store.content import unpack_completion
from shared.store.spending import DayLimit

Outcome = Literal["accepted", "rejected", "failed"]
Opening = Literal["complete", "opened", "open"]
#: Whose a chunk was last: of no worker, of one that gave it back, or of one whose lease has run out.
Holder = Literal["nobody", "returned", "vanished"]
_HOLDERS: Final[tuple[Holder, ...]] = ("nobody", "returned", "vanished")
Answer = Literal["go", "stopped", "unleased", "settled", "smoke", "budget", "day", "paid", "twin"]
UNLIMITED: Final = ""
_TURN_MS: Final = 30_000  # so long the same tenants are drawn for, when there are more than a pump takes at once
_ASKED_AGAIN_MS: Final = 10_000  # whoever waits for another's call asks for it more often
_NO_USAGE: Final = Usage()


@dataclass(frozen=True)
class PassId:
    job_id: JobId
    name: str

    def __str__(self) -> str:
        return f"{self.job_id}/{self.name}"


class Halt(msgspec.Struct, frozen=True):
    """Why nothing more may start in a pass.  kind `pause` keeps the job for its owner, `fail` ends it.

    needs_nano: when a budget or the tenant's limit of the day is reached, what the next call needs of it."""

    kind: Literal["pause", "fail"]
    reason: str
    error: JobError | None = None
    needs_nano: int = 0


@dataclass(frozen=True)
class PassState:
    prompts: int
    settled: int
    accepted: int
    rejected: int
    failed: int
    complete: bool
    halt: Halt | None


@dataclass(frozen=True)
class Settlement:
    """The end of one prompt in one pass.

    call: id of the call that ended, None when none was made (a completion the caller supplied or the ledger had).
    blob: empty when the call ended without settling the prompt: it will be asked again.  cost_nano: None when unpriced;
    of a lost call the most it can be, which counts where it had reserved nothing.
    lost: there was no answer, and the provider may have billed it.  fingerprint: of what was asked, "" to leave the
    ledger alone; ledger_seconds: how long it may be reused."""

    chunk: int
    index: int
    call: str | None
    blob: bytes
    cost_nano: int | None
    outcome: Outcome
    lost: bool = False
    reused: bool = False
    fingerprint: str = ""
    ledger_seconds: int = 0
    usage: Usage = _NO_USAGE


@dataclass(frozen=True)
class Beginning:
    """A call about to be made.  call: its id, never used before, beginning with the worker's token.
    reserve_nano: the most it can cost; None for nothing, which is "stopped" where anything is limited by now."""

    chunk: int
    index: int
    call: str
    reserve_nano: int | None
    fingerprint: str = ""


@dataclass(frozen=True)
class TickResult:
    """state: "open", "complete" or "stopped".  answers: one per beginning, in order.

    reserved_nano: of the job; after a "budget" or "day" only of calls that a worker still waits for, so 0 means that
    waiting will free nothing."""

    state: str
    settled: int
    accepted: int
    failed: int
    reserved_nano: int
    answers: list[Answer]


class PassStore:
    """Chunks under lease, calls with their reservations, completions as they arrive."""

    def __init__(self, client: redis.Redis, scripts: Scripts, day_limit: DayLimit) -> None:
        self._redis = client
        self._scripts = scripts
        self._day_limit = day_limit

    async def open(
        self, pass_id: PassId, *, prompts: int, chunk_size: int, smoke: int, for_pumps: bool = True
    ) -> Opening:
        """Let work begin on the pass.  smoke: calls before the trial; 0 for none.  for_pumps: whether pumps may draw
        from it; "opened" is a pass that they could not draw from before."""
        opening: bytes = await self._scripts.run(
            "open_pass",
            [keys.pass_row(pass_id.job_id, pass_id.name), keys.OPEN, keys.job(pass_id.job_id)],
            [str(pass_id), prompts, chunk_size, smoke or UNLIMITED, int(for_pumps)],
        )
        return cast("Opening", opening.decode())

    async def halt(self, pass_id: PassId, halt: Halt) -> None:
        """Nothing more starts; the engine is called to act on the reason."""
        await self._scripts.run(
            "halt_pass",
            [keys.pass_row(pass_id.job_id, pass_id.name), keys.OPEN, keys.DUE, keys.job(pass_id.job_id)],
            [str(pass_id), msgspec.json.encode(halt), pass_id.job_id],
        )

    async def clear_halt(self, pass_id: PassId) -> None:
        """The engine has read the reason; `open` may start the pass again."""
        await ask(self._redis.hdel(keys.pass_row(pass_id.job_id, pass_id.name), "halt"))

    async def close(self, tenant: TenantId, *pass_ids: PassId) -> None:
        """Take passes off the pumps' list; their job no longer runs."""
        await self._scripts.run(
            "close_pass", [keys.open_passes(tenant), keys.OPEN], [tenant, *(str(pass_id) for pass_id in pass_ids)]
        )

    async def smoke_passed(self, pass_id: PassId) -> None:
        await ask(self._redis.hset(keys.pass_row(pass_id.job_id, pass_id.name), "smoke", UNLIMITED))

    async def state(self, pass_id: PassId) -> PassState | None:
        """None before the pass was first opened.  A halt from before the job was last resumed is not told of."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(keys.pass_row(pass_id.job_id, pass_id.name))
        pipe.hget(keys.job(pass_id.job_id), "runs")
        row: dict[bytes, bytes]
        row, runs = await ask(pipe.execute())
        if b"prompts" not in row:
            return None
        tallies = {name: int(row.get(name.encode(), b"0")) for name in ("settled", "accepted", "rejected", "failed")}
        halt = row.get(b"halt") if row.get(b"halt_run") == (runs or b"0") else None
        return PassState(
            prompts=int(row[b"prompts"]),
            complete=b"complete" in row,
            halt=msgspec.json.decode(halt, type=Halt) if halt else None,
            **tallies,
        )

    async def open_passes(self, *, limit: int) -> list[tuple[TenantId, PassId]]:
        """Passes with work in them, as many of each tenant as fit; of one tenant the longest open first.

        With more tenants than `limit`, which ones changes every half a minute."""
        found = await self._scripts.run("open_passes", [keys.OPEN], [limit, _TURN_MS])
        tenants, members = found[::2], [member.decode().partition("/") for member in found[1::2]]
        return [
            (TenantId(tenant.decode()), PassId(JobId(job_id), name))
            for tenant, (job_id, _, name) in zip(tenants, members, strict=True)
        ]

    async def claim_chunk(self, pass_id: PassId, token: str, *, lease_seconds: float) -> tuple[int, Holder] | None:
        """(chunk, who had it before), or None when nothing is free."""
        chunk, holder = await self._scripts.run_together(
            "claim_chunk",
            [
                keys.pass_row(pass_id.job_id, pass_id.name),
                keys.pass_chunks(pass_id.job_id, pass_id.name),
                keys.pass_claims(pass_id.job_id, pass_id.name),
            ],
            [token, int(lease_seconds * 1000)],
        )
        return None if chunk < 0 else (int(chunk), _HOLDERS[holder])

    async def renew_chunks(
        self, pass_id: PassId, token: str, chunks: Sequence[int], *, lease_seconds: float
    ) -> tuple[bool, set[int]]:
        """Keep chunks: (whether more may start in this pass, the chunks still ours)."""
        return await self._renew(pass_id, token, chunks, int(lease_seconds * 1000))

    async def give_back(self, pass_id: PassId, token: str, chunks: Sequence[int]) -> None:
        """Free chunks at once, without the wait that a vanished worker costs."""
        await self._renew(pass_id, token, chunks, "")

    async def _renew(
        self, pass_id: PassId, token: str, chunks: Sequence[int], lease: int | str
    ) -> tuple[bool, set[int]]:
        open_, *held = await self._scripts.run_together(
            "renew_chunks",
            [
                keys.pass_row(pass_id.job_id, pass_id.name),
                keys.pass_chunks(pass_id.job_id, pass_id.name),
                keys.pass_claims(pass_id.job_id, pass_id.name),
                keys.job(pass_id.job_id),
            ],
            [token, lease, *chunks],
        )
        return bool(open_), set(held)

    async def tick(
        self,
        pass_id: PassId,
        tenant: TenantId,
        token: str,
        settlements: Sequence[Settlement],
        beginnings: Sequence[Beginning],
    ) -> TickResult:
        """Settle what ended and begin what is next, in one step.  Sent twice, it counts once."""
        job_id, name = pass_id.job_id, pass_id.name
        arguments: list[str | bytes | int] = [job_id, name, keys.completions(job_id, name, ""), token]
        most = self._day_limit(tenant)
        arguments += [UNLIMITED if most is None else most, len(settlements)]
        for ended in settlements:
            arguments += [
                ended.chunk,
                ended.index,
                ended.call or "",
                ended.blob,
                "" if ended.cost_nano is None else ended.cost_nano,
                ended.outcome,
                int(ended.lost),
                int(ended.reused),
                keys.ledger(tenant, ended.fingerprint) if ended.fingerprint else "",
                ended.ledger_seconds,
                " ".join(map(str, msgspec.structs.astuple(ended.usage))),
            ]
        for next_ in beginnings:
            entry = keys.ledger(tenant, next_.fingerprint) if next_.fingerprint else ""
            reserve = "" if next_.reserve_nano is None else next_.reserve_nano
            arguments += [next_.chunk, next_.index, next_.call, reserve, entry]
        state, settled, accepted, failed, reserved, *answers = await self._scripts.run_together(
            "tick",
            [
                keys.job(job_id),
                keys.pass_row(job_id, name),
                keys.pass_calls(job_id, name),
                keys.pass_claims(job_id, name),
                keys.pass_chunks(job_id, name),
                keys.open_passes(tenant),
                keys.DUE,
                keys.spending(tenant),
                keys.day(tenant, ""),
                keys.days(tenant),
                keys.OPEN,
            ],
            arguments,
        )
        return TickResult(
            state.decode(), settled, accepted, failed, reserved, [cast("Answer", a.decode()) for a in answers]
        )

    async def wait_to_tell(self, pass_id: PassId) -> JobId | None:
        """The job that a pass waits for because it is buying the same, and nothing else; each is returned once."""
        row = keys.pass_row(pass_id.job_id, pass_id.name)
        found: bytes = await self._scripts.run("tell_wait", [row], [_ASKED_AGAIN_MS])
        return JobId(found.decode()) if found else None

    async def paid_before(self, tenant: TenantId, fingerprints: Sequence[str]) -> dict[str, StoredCompletion]:
        """The tenant's paid completions among these, by fingerprint.  An entry whose completion is gone is removed."""
        if not fingerprints:
            return {}
        entries = [keys.ledger(tenant, fingerprint) for fingerprint in fingerprints]
        places = await ask(self._redis.mget(entries))
        found: dict[str, StoredCompletion] = {}
        for fingerprint, entry, place in zip(fingerprints, entries, places, strict=True):
            if place is None or not place.startswith(b"paid|"):
                continue
            _, job_id, name, chunk, index = place.decode().split("|")
            blob = await ask(self._redis.hget(keys.completions(JobId(job_id), name, chunk), index))
            if blob is None:
                await ask(self._redis.delete(entry))
            else:
                found[fingerprint] = unpack_completion(blob)
        return found

    async def lost_calls(self, pass_id: PassId, indexes: Sequence[int]) -> dict[int, str]:
        """Calls that were begun for these prompts and not settled, by index: the call's id."""
        if not indexes:
            return {}
        marks = await ask(
            self._redis.hmget(keys.pass_calls(pass_id.job_id, pass_id.name), [str(index) for index in indexes])
        )
        return {i: mark.decode().rpartition("|")[0] for i, mark in zip(indexes, marks, strict=True) if mark}

    async def abandoned(self, pass_id: PassId, *, late_seconds: float) -> tuple[list[Settlement], float | None]:
        """Calls whose worker has let their chunk go, or its lease run out longer than late_seconds ago, as lost; and
        seconds until the next lease may have run out so, None when no call is kept."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hget(keys.pass_row(pass_id.job_id, pass_id.name), "chunk_size")
        pipe.hgetall(keys.pass_calls(pass_id.job_id, pass_id.name))
        pipe.hgetall(keys.pass_claims(pass_id.job_id, pass_id.name))
        pipe.zrange(keys.pass_chunks(pass_id.job_id, pass_id.name), 0, -1, withscores=True)
        pipe.time()
        chunk_size, marks, claims, chunks, (seconds, micros) = await ask(pipe.execute())
        oldest = seconds + micros / 1e6 - late_seconds
        leases = {chunk: until_ms / 1000 - oldest for chunk, until_ms in chunks}
        lost: list[Settlement] = []
        kept: list[float] = []
        for field, mark in marks.items():
            if b"|" in field:
                continue  # lost already
            chunk = b"%d" % (int(field) // int(chunk_size))
            call, holder, left = mark.rpartition(b"|")[0], claims.get(chunk), leases.get(chunk, 0.0)
            if holder is not None and left > 0 and call.startswith(holder):
                kept.append(left)
            else:
                lost.append(Settlement(int(chunk), int(field), call.decode(), b"", None, "failed", lost=True))
        return lost, min(kept, default=None)

    async def settled_indexes(self, pass_id: PassId, chunk: int) -> set[int]:
        found: list[bytes] = await ask(self._redis.hkeys(keys.completions(pass_id.job_id, pass_id.name, chunk)))
        return {int(index) for index in found}

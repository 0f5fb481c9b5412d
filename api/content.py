"""What a job is made of, as its owner reads it: completions page by page, the dataset line by line.

Everything is read a chunk at a time, so memory stays flat and a page costs the same however far one pages."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import msgspec

from api.schemas.completions import CompletionOut, UsageOut
from api.schemas.jobs import JobError
from api.validation import query_fault
from shared.completions import Decision, StoredCompletion
from shared.curation import Curator, Sample, SplitName, assistant_message
from shared.errors import BadRequest, JobNotFinished, NotFound, ProviderError
from shared.exports import Format, formats_of, lines_of, split_of_all
from shared.ids import locate_completion
from shared.judge import score_in
from shared.lifecycle import TERMINAL
from shared.models import Job, JsonObject, Prompt, usd
from shared.plan import PassPlan, plans, teacher_plans
from shared.store import Store

Status: TypeAlias = Literal["accepted", "rejected", "failed"]

_ON_HOLDOUT: Final = frozenset({"base", "student"})
_BLOCK_BYTES: Final = 64_000


@dataclass(frozen=True)
class Filters:
    role: str | None = None
    status: str | None = None
    reason: str | None = None
    split: str | None = None

    def admit(self, shown: CompletionOut) -> bool:
        return all(
            wanted is None or wanted == found
            for wanted, found in (
                (self.role, shown.role),
                (self.status, shown.status),
                (self.reason, shown.reason),
                (self.split, shown.split),
            )
        )


async def completions(
    store: Store, secret: bytes, job: Job, *, after: str | None, limit: int, filters: Filters
) -> tuple[list[CompletionOut], bool]:
    """Up to `limit` completions in order of role and prompt, and whether there are more."""
    listed, first = plans(job), 0
    if after is not None:
        place = locate_completion(secret, job.id, after)
        if place is None:
            raise BadRequest("`after` is not the id of a completion of this job.", code="invalid_cursor", param="after")
        while listed and listed[0].number != place[0]:
            del listed[0]
        first = place[1] + 1
    found: list[CompletionOut] = []
    for number, plan in enumerate(listed):
        if filters.role is not None and plan.role != filters.role:
            continue
        async for shown in _of_pass(store, job, plan, 0 if number else first):
            if filters.admit(shown):
                found.append(shown)
                if len(found) > limit:
                    return found[:limit], True
    return found, False


async def completion(store: Store, secret: bytes, job: Job, completion_id: str) -> CompletionOut:
    place = locate_completion(secret, job.id, completion_id)
    plan = next((plan for plan in plans(job) if place is not None and plan.number == place[0]), None)
    if place is not None and plan is not None:
        async for shown in _of_pass(store, job, plan, place[1]):
            if shown.id == completion_id:
                return shown
            break
    raise NotFound("There is no such completion.")


async def _of_pass(store: Store, job: Job, plan: PassPlan, first: int) -> AsyncIterator[CompletionOut]:
    """The settled completions of one pass, from prompt `first` on."""
    content = store.content
    for chunk in range(first // job.chunk_size, await content.chunk_count(job.id, plan.prompt_set)):
        settled = await content.completion_chunk(job.id, plan.name, chunk)
        if not settled:
            continue
        prompts = await content.prompt_chunk(job.id, plan.prompt_set, chunk)
        decisions = await content.decision_chunk(job.id, chunk, sample=plan.sample) if plan.role == "teacher" else []
        for index, kept in settled.items():
            offset = index - chunk * job.chunk_size
            # A prompt that brought its answer is asked for no further samples; what stands there is that answer again.
            if index >= first and offset < len(prompts) and not (plan.sample and prompts[offset].completion):
                decision = decisions[offset] if offset < len(decisions) else None
                yield _shown(job, plan, prompts[offset], kept, decision)


def _shown(
    job: Job, plan: PassPlan, prompt: Prompt, kept: StoredCompletion, decision: Decision | None
) -> CompletionOut:
    """Before curating, a completion stands as it was judged on arrival."""
    message, finish_reason, provider_id = _answer(kept)
    on_holdout = plan.role in _ON_HOLDOUT or plan.grader is not None  # also of what the evaluation's judges compare
    arrived: Status = "failed" if kept.status == "failed" else "rejected" if kept.reason else "accepted"
    usage = kept.usage
    return CompletionOut(
        id=kept.id,
        object="distillation.completion",
        job_id=job.id,
        role=plan.role,
        model=kept.model,
        prompt_key=prompt.key,
        prompt_index=kept.index if prompt.origin is None else prompt.origin,
        status=decision.status if decision else arrived,
        reason=decision.reason if decision else kept.reason,
        split=decision.split if decision else ("holdout" if on_holdout else None),
        messages=prompt.messages,
        output=message,
        finish_reason=finish_reason,
        sample=plan.sample if plan.role == "teacher" else None,
        score=decision.score if decision else (score_in(kept) if plan.role == "judge" else None),
        usage=None
        if usage is None
        else UsageOut(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        ),
        cost_usd=None if kept.cost_nano is None else usd(kept.cost_nano),
        latency_seconds=None if kept.latency_ms is None else kept.latency_ms / 1000,
        reused=kept.reused,
        provider_completion_id=provider_id,
        provider_request_id=kept.provider_request_id,
        error=JobError.of(kept.error),
        metadata=job.spec.metadata,
        created_at=kept.created_at_ms // 1000,
    )


class _Identified(msgspec.Struct):
    id: str | None = None


def _answer(kept: StoredCompletion) -> tuple[JsonObject | None, str | None, str | None]:
    """(message, finish_reason, provider's id) of the raw answer, as far as it has them."""
    if kept.status == "failed":
        return None, None, None
    try:
        message, finish_reason = assistant_message(kept.raw)
        return message, finish_reason, msgspec.json.decode(kept.raw, type=_Identified).id
    except (ProviderError, msgspec.MsgspecError):
        return None, None, None


# --- the dataset -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DatasetHead:
    """What is known of an export before its first line.  lines, sha256: None where they are not."""

    filename: str
    etag: str
    lines: int | None
    sha256: str | None

    def headers(self) -> dict[str, str]:
        headers = {
            "Content-Disposition": f'attachment; filename="{self.filename}"',
            "ETag": self.etag,
            "Cache-Control": "private, no-cache",
        }
        if self.lines is not None:
            headers["X-Line-Count"] = str(self.lines)
        if self.sha256 is not None:
            headers["Repr-Digest"] = f"sha-256=:{base64.b64encode(bytes.fromhex(self.sha256)).decode()}:"
        return headers


def dataset_head(job: Job, split: SplitName, format: Format) -> DatasetHead:
    """Raises JobNotFinished before curating, unless the job has ended: what was paid for can always be exported.
    Raises ValidationFailed for a format that the dataset does not have."""
    if format not in formats_of(job.spec):
        detail = "format is openai_chat or raw for this job; pairs need teacher.samples of at least 2"
        raise query_fault("format", "invalid_value", detail)
    manifest = job.manifest
    if manifest is None and job.status not in TERMINAL:
        raise JobNotFinished("The dataset exists once the job's curating stage is done.")
    identity = manifest.sha256 + manifest.holdout_sha256 if manifest is not None else f"{job.id}/{job.version}"
    file = manifest.file(split, format) if manifest is not None else None
    if file is not None and file.sha256 is not None and format != "openai_chat":
        identity = file.sha256
    etag = hashlib.sha256(f"{identity}/{split}/{format}".encode()).hexdigest()[:32]
    return DatasetHead(
        filename=f"{job.id}-{split}.{'' if format == 'openai_chat' else format.removeprefix('openai_') + '.'}jsonl",
        etag=f'"{etag}"',
        lines=None if file is None else file.lines,
        sha256=None if file is None else file.sha256,
    )


async def dataset_lines(store: Store, job: Job, split: SplitName, format: Format) -> AsyncIterator[bytes]:
    """JSONL in blocks.  A job that ended before curating is curated on the way, without a judge's ratings."""
    curator = Curator(job.spec.curation, job.spec.split)
    block = bytearray()
    async for prompt, answers, stored in store.content.curated(job.id, [plan.name for plan in teacher_plans(job)]):
        samples = [None if kept is None else Sample(*_answer(kept)[:2], kept.reason) for kept in answers]
        if all(sample is None for sample in samples) and all(decision is None for decision in stored):
            continue  # never answered
        decisions = stored
        if all(decision is None for decision in stored):
            # Holding samples against each other takes time that nobody else's request should wait.
            scored = len(samples) > 1 or job.spec.curation.grader is not None
            decide = curator.decide_all
            decisions = await asyncio.to_thread(decide, prompt, samples) if scored else decide(prompt, samples)
        if split_of_all(decisions) == split:
            messages = [None if sample is None else sample.message for sample in samples]
            block += lines_of(job.spec, format, prompt, messages, decisions)
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    if block:
        yield bytes(block)


def matches(if_none_match: str | None, etag: str) -> bool:
    """RFC 9110, 13.1.2: weak comparison with a list of tags, or `*`."""
    if if_none_match is None:
        return False
    tags: list[Any] = [tag.strip().removeprefix("W/") for tag in if_none_match.split(",")]
    return "*" in tags or etag.removeprefix("W/") in tags

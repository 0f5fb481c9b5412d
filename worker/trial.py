"""The trial of a teacher: what curating will say of its first answers, before the rest is bought."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shared.completions import StoredCompletion
from shared.curation import Curator, Sample
from shared.models import Job, Prompt
from shared.plan import PassPlan
from shared.store import Store


@dataclass(frozen=True)
class Trial:
    """settled: first completions that were looked at.  reasons: why the others of them are not usable."""

    settled: int = 0
    usable: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    @property
    def passed(self) -> bool:
        return 2 * self.usable >= self.settled


async def tried(job: Job, plan: PassPlan, store: Store, *, completions: int) -> Trial:
    """The trial by what is stored: of whole chunks from the first, until so many completions were seen.

    Each counts as curating will judge it on its own, by the schema it was promised to follow too, which nobody looks
    at on its arrival.  Changes nothing."""
    curator, trial = Curator(job.spec.curation, job.spec.split), Trial()
    for chunk in range(await store.content.chunk_count(job.id, plan.prompt_set)):
        if trial.settled >= completions:
            break
        answers = await store.content.completion_chunk(job.id, plan.name, chunk)
        if answers:
            prompts = await store.content.prompt_chunk(job.id, plan.prompt_set, chunk)
            # A schema takes time, and the pump's other answers must not wait for it.
            trial = await asyncio.to_thread(_and, trial, curator, prompts, answers, chunk * job.chunk_size)
    return trial


def _and(
    trial: Trial, curator: Curator, prompts: Sequence[Prompt], answers: Mapping[int, StoredCompletion], first: int
) -> Trial:
    reasons, settled = Counter[str](), 0
    for index, prompt in enumerate(prompts, start=first):
        kept = answers.get(index)
        if kept is None:
            continue
        settled += 1
        sample = Sample.of(kept)
        if sample.message is None:
            reasons[kept.error.code if kept.error else "provider_error"] += 1
        elif (reason := curator.reason_alone(prompt, sample)) is not None:
            reasons[reason] += 1
    return Trial(trial.settled + settled, trial.usable + settled - reasons.total(), trial.reasons + reasons)

"""curating: the teacher's completions become a dataset.  A pure walk over what is stored; again, it says the same."""

from __future__ import annotations

from collections import Counter

import msgspec

from shared.curation import Curator, assistant_message, shortfall, summary
from shared.dataset import Digest, example_line
from shared.models import Decision, Job, JsonObject, Manifest, Prompt, StoredCompletion
from shared.store.jobs import TEACHER
from worker.completions import job_error
from worker.outcomes import Done, Fail, Outcome
from worker.stages import Save, Tools

HOLDOUT = "holdout"


async def curate(job: Job, tools: Tools, save: Save) -> Outcome:
    """Decide of every completion, set the holdout aside, and name the dataset by its hash."""
    content = tools.store.content
    curator = Curator(job.spec.curation, job.spec.split)
    digests = {"train": Digest(), "validation": Digest(), HOLDOUT: Digest()}
    made: Counter[Decision] = Counter()
    held: list[Prompt] = []
    held_chunks = 0
    for chunk in range(await content.chunk_count(job.id, "source")):
        prompts = await content.prompt_chunk(job.id, "source", chunk)
        completions = await content.completion_chunk(job.id, TEACHER, chunk)
        decisions: list[Decision] = []
        for index, prompt in enumerate(prompts, start=chunk * job.chunk_size):
            decision, message = _decide(curator, prompt, completions.get(index))
            decisions.append(decision)
            if decision.status == "accepted":
                digests[decision.split].update(example_line(job.spec, prompt, message))
                if decision.split == HOLDOUT:
                    held.append(msgspec.structs.replace(prompt, completion=message, origin=index))
        made.update(decisions)
        await content.put_decisions(job.id, chunk, decisions)
        while len(held) >= job.chunk_size:
            await content.put_prompt_chunk(job.id, HOLDOUT, held_chunks, held[: job.chunk_size])
            held, held_chunks = held[job.chunk_size :], held_chunks + 1
    if held:
        await content.put_prompt_chunk(job.id, HOLDOUT, held_chunks, held)
    tally = summary(made.elements())
    if (short := shortfall(tally, job.spec.curation, job.spec.split)) is not None:
        return Fail(job_error(short, job.stage))
    accepted = tally["accepted"]
    manifest = Manifest(
        sha256=digests["train"].sha256,
        holdout_sha256=digests[HOLDOUT].sha256,
        train=accepted["train"],
        validation=accepted["validation"],
        holdout=accepted[HOLDOUT],
        rejected=tally["rejected"],
        train_bytes=digests["train"].bytes,
    )
    return Done(set={"manifest": manifest})


def _decide(curator: Curator, prompt: Prompt, completion: StoredCompletion | None) -> tuple[Decision, JsonObject]:
    """The decision, and the message it was about."""
    if completion is None or completion.status == "failed":
        return curator.decide(prompt, None, failed=True), {}
    message, finish_reason = assistant_message(completion.raw)
    return curator.decide(prompt, message, finish_reason, completion.reason), message

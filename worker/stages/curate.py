"""curating: the teacher's completions become a dataset.  A pure walk over what is stored; again, it says the same.

Where a judge rates the answers, its pass comes first: every answer that has no fault of its own is asked about."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from msgspec.structs import replace

from shared.completions import Decision
from shared.curation import Curator, Sample, SplitName, shortfall, student_shortfalls, summary
from shared.dataset import Digest, text_of
from shared.errors import JobFailed
from shared.exports import Format, formats_of, kept_sample, lines_of, preference, split_of_all
from shared.ids import new_event_id
from shared.judge import rating_messages
from shared.models import DatasetFile, Event, Job, JobError, JsonObject, Manifest, Prompt, Student
from shared.plan import PassPlan, rating_plan, teacher_plans
from worker.completions import job_error
from worker.outcomes import Done, Fail, Outcome
from worker.stages import Save, Tools
from worker.stages.generate import run_pass
from worker.stages.judging import questions_written, replies_of_chunk, write_questions
from worker.stages.student import now_ms

HOLDOUT: Final = "holdout"
_SPLITS: Final[tuple[SplitName, ...]] = ("train", "validation", "holdout")


async def curate(job: Job, tools: Tools, save: Save) -> Outcome:
    """Decide of every completion, set the holdout aside, and name the dataset by its hash."""
    rating = rating_plan(job)
    if rating is not None and (outcome := await _rate(job, rating, tools)) is not None:
        return outcome
    content, samples = tools.store.content, job.spec.teacher.samples
    ratings = _Ratings(job, rating, tools)
    walk = _Walk(job)
    held_chunks = 0
    for chunk in range(await content.chunk_count(job.id, "source")):
        asked = await _asked(job, chunk, tools)
        first, end = chunk * job.chunk_size, chunk * job.chunk_size + len(asked)
        rated = await ratings.until(end * samples)
        # Scores take time, and the heartbeat of the lease must not wait for them.
        decisions = await asyncio.to_thread(walk.decide, asked, rated, first)
        for sample in range(samples):
            decided = [of_prompt[sample] for of_prompt in decisions]
            await content.put_decisions(job.id, chunk, decided, sample=sample)
        while len(walk.held) >= job.chunk_size:
            await content.put_prompt_chunk(job.id, HOLDOUT, held_chunks, walk.held[: job.chunk_size])
            walk.held, held_chunks = walk.held[job.chunk_size :], held_chunks + 1
    if walk.held:
        await content.put_prompt_chunk(job.id, HOLDOUT, held_chunks, walk.held)
    least = [(student, _examples_min(student, tools)) for student in job.spec.students]
    return _outcome(job, walk, least)


def _examples_min(student: Student, tools: Tools) -> int:
    try:
        return tools.providers.settings(student.provider).examples_min
    except JobFailed:
        return 1  # the provider is no longer configured: training says so, with the dataset kept


def _outcome(job: Job, walk: _Walk, students: Sequence[tuple[Student, int]]) -> Outcome:
    """The manifest is kept however it ends: what was decided is there to be read and exported.

    students: each with the fewest examples that its provider trains with."""
    tally, spec = summary(walk.made.elements()), job.spec
    manifest = walk.manifest(tally["accepted"], tally["rejected"])
    short = shortfall(tally, spec.curation, spec.split)
    lacking = student_shortfalls(tally["accepted"]["train"], walk.pairs, walk.unpaired, spec.curation, students)
    if short is None and lacking and len(lacking) == len(students):
        short = lacking[0]
    if short is not None:
        return Fail(job_error(short, job.stage), set={"manifest": manifest})
    if not lacking:
        return Done(set={"manifest": manifest})
    # The others have what they learn from; each student without it ends alone, before anything is uploaded.
    tunes, events = list(job.fine_tunes), list[Event]()
    for number, why in lacking.items():
        if tunes[number].step != "ended":
            error = job_error(why, job.stage)
            tunes[number] = replace(
                tunes[number], step="ended", status="not_submitted", error=error, ended_at_ms=now_ms()
            )
            events.append(_left_out(job, number, error))
    return Done(set={"manifest": manifest, "fine_tunes": tunes}, events=events)


def _left_out(job: Job, number: int, error: JobError) -> Event:
    return Event(
        id=new_event_id(),
        level="error",
        type="message",
        message=error.message,
        created_at_ms=now_ms(),
        stage=job.stage,
        data={"student": number, "code": error.code},
    )


_Asked = list[tuple[Prompt, list[Sample | None]]]


async def _asked(job: Job, chunk: int, tools: Tools) -> _Asked:
    """The prompts of one chunk, each with the teacher's samples: only the first where the prompt brought its answer."""
    content = tools.store.content
    prompts = await content.prompt_chunk(job.id, "source", chunk)
    answers = [await content.completion_chunk(job.id, plan.name, chunk) for plan in teacher_plans(job)]
    first = chunk * job.chunk_size
    return [
        (prompt, [None if n and prompt.completion else Sample.of(found.get(index)) for n, found in enumerate(answers)])
        for index, prompt in enumerate(prompts, start=first)
    ]


class _Walk:
    """What is decided of the completions, in order of the prompts.  held: of the holdout, what is not written yet."""

    def __init__(self, job: Job) -> None:
        self._spec = job.spec
        self._curator = Curator(job.spec.curation, job.spec.split)
        self._digests: dict[tuple[SplitName, Format], Digest] = {
            (split, format): Digest() for format in formats_of(job.spec) for split in _SPLITS
        }
        self._unpaired: Counter[str] = Counter()  # examples of all splits
        self.made: Counter[Decision] = Counter()
        self.held: list[Prompt] = []

    def decide(self, asked: _Asked, rated: Mapping[int, float], first: int) -> list[list[Decision | None]]:
        """rated: by place (see `_place`).  first: index of the first prompt."""
        return [
            self._decide(prompt, samples, rated, index) for index, (prompt, samples) in enumerate(asked, start=first)
        ]

    def _decide(
        self, prompt: Prompt, samples: list[Sample | None], rated: Mapping[int, float], index: int
    ) -> list[Decision | None]:
        places = {number: _place(index, number, len(samples)) for number in range(len(samples))}
        scores = {number: rated[place] for number, place in places.items() if place in rated}
        decisions = self._curator.decide_all(prompt, samples, scores)
        # Without their scores, decisions of a million prompts are a handful.
        self.made.update(replace(d, score=None) for d in decisions if d is not None)
        messages = [None if sample is None else sample.message for sample in samples]
        split = split_of_all(decisions)
        for (of_split, format), digest in self._digests.items():
            if of_split == split:
                digest.update(lines_of(self._spec, format, prompt, messages, decisions))
        kept = kept_sample(decisions)
        if kept is not None:
            self._count_pair(prompt, messages, decisions)
            if split == HOLDOUT:
                held = replace(prompt, completion=messages[kept], origin=index, sample=kept)
                self.held.append(held)
        return decisions

    def _count_pair(self, prompt: Prompt, messages: list[JsonObject | None], decisions: list[Decision | None]) -> None:
        if len(messages) > 1 and isinstance(pair := preference(prompt, messages, decisions), str):
            self._unpaired[pair] += 1

    @property
    def pairs(self) -> int:
        """For training."""
        digest = self._digests.get(("train", "openai_dpo"))
        return 0 if digest is None else digest.lines

    @property
    def unpaired(self) -> dict[str, int]:
        return dict(sorted(self._unpaired.items(), key=lambda pair: (-pair[1], pair[0])))

    def manifest(self, accepted: Mapping[str, int], rejected: dict[str, int]) -> Manifest:
        chat = {split: self._digests[split, "openai_chat"] for split in _SPLITS}
        return Manifest(
            sha256=chat["train"].sha256,
            holdout_sha256=chat["holdout"].sha256,
            train=accepted["train"],
            validation=accepted["validation"],
            holdout=accepted[HOLDOUT],
            rejected=rejected,
            train_bytes=chat["train"].bytes,
            files=[
                DatasetFile(split=split, format=format, lines=digest.lines, sha256=digest.sha256, bytes=digest.bytes)
                for (split, format), digest in self._digests.items()
            ],
            unpaired=self.unpaired,
        )


# --- ratings ---------------------------------------------------------------------------------------------------------


async def _rate(job: Job, plan: PassPlan, tools: Tools) -> Outcome | None:
    """None once the judge has been asked about every usable answer.  Like a teacher it is tried on a few first."""
    asked = await questions_written(job, plan, tools)
    if asked is None:
        asked = await write_questions(job, plan, _questions(job, tools), tools)
    return await run_pass(job, plan, tools, prompts=asked, trial=True)


async def _questions(job: Job, tools: Tools) -> AsyncIterator[Prompt]:
    spec = job.spec.curation
    assert spec.grader is not None
    criterion = spec.grader.get("prompt")
    curator = Curator(spec, job.spec.split)
    for chunk in range(await tools.store.content.chunk_count(job.id, "source")):
        asked = await _asked(job, chunk, tools)
        for index, (prompt, samples) in enumerate(asked, start=chunk * job.chunk_size):
            for number, sample in enumerate(samples):
                if sample is None or sample.message is None or curator.reason_alone(prompt, sample) is not None:
                    continue
                messages = rating_messages(
                    prompt.messages, text_of(sample.message), reference=prompt.reference, criterion=criterion
                )
                place = _place(index, number, len(samples))
                yield Prompt(messages=messages, key=prompt.key, origin=index, place=place)


def _place(index: int, sample: int, samples: int) -> int:
    return index * samples + sample


class _Ratings:
    """A judge's scores in the order of the prompts, read a chunk of its replies at a time."""

    def __init__(self, job: Job, plan: PassPlan | None, tools: Tools) -> None:
        self._job = job
        self._plan = plan
        self._tools = tools
        self._next = 0
        self._reached = -1  # place of the last reply that was read
        self._read: dict[int, float] = {}

    async def until(self, place: int) -> dict[int, float]:
        """Scores by place, from where the last call ended up to `place`, not included."""
        if self._plan is None:
            return {}
        while self._reached < place - 1:
            replies = await replies_of_chunk(self._job, self._plan, self._next, self._tools)
            if not replies:
                break
            self._next += 1
            self._reached = replies[-1][0]
            self._read |= {at: score for at, score in replies if score is not None}
        found = {at: score for at, score in self._read.items() if at < place}
        self._read = {at: score for at, score in self._read.items() if at >= place}
        return found

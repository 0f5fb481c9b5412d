"""generating: the teacher's pass over the prompts.  The pump does the work; this stage opens it and reads its end."""

from __future__ import annotations

from collections.abc import Sequence

from shared.lifecycle import PausedReason
from shared.models import Job, JobError
from shared.plan import PassPlan, teacher_plans
from shared.store.passes import Halt, PassId
from worker.outcomes import Done, Fail, Outcome, Pause, Wait
from worker.stages import Save, Tools
from worker.stages.batches.rounds import generate_by_batches
from worker.stages.preflight import preflight
from worker.stages.stored import read_stored
from worker.stages.waits import wait_told

_LOOK_AGAIN_SECONDS = 15.0  # the pump rings when the pass is complete; this is for the bell that was lost


async def generate(job: Job, tools: Tools, save: Save) -> Outcome:
    """One look at the teacher's pass."""
    stored = job.spec.stored is not None
    if stored and (reading := await read_stored(job, tools, save)) is not None:
        return reading
    untouched = job.counters.settled == 0 and not job.batches
    if untouched and (refusal := await preflight(job, tools, save)) is not None:
        return Fail(refusal)
    if job.spec.teacher.mode == "batch" and not stored:
        return await generate_by_batches(job, tools, save)
    prompts = job.counters.prompts_total
    first, *further = teacher_plans(job)
    outcome = await run_pass(job, first, tools, prompts=prompts, trial=True)
    # What the trial of the first samples has shown holds for the others, which are bought together.
    outcome = outcome or await run_passes(job, further, tools, prompts=prompts)
    return Done() if outcome is None else outcome


async def run_pass(job: Job, plan: PassPlan, tools: Tools, *, prompts: int, trial: bool = False) -> Outcome | None:
    """None once every prompt of the pass is settled; until then what to do instead.

    trial: the model is tried on a few prompts first, where there are more."""
    pass_id = PassId(job.id, plan.name)
    state = await tools.store.passes.state(pass_id)
    if state is not None and state.halt is not None:
        if state.halt.kind == "pause":
            # Read once: when the owner resumes, the pass opens again.
            await tools.store.passes.clear_halt(pass_id)
        return _outcome_of(state.halt, job)
    if state is not None and state.complete:
        return None
    tried = tools.settings.smoke_completions
    smoke = tried if trial and prompts > tried else 0
    opening = await tools.store.passes.open(pass_id, prompts=prompts, chunk_size=job.chunk_size, smoke=smoke)
    if opening == "complete":
        return None
    if opening == "opened":
        tools.wake_pump()
    moved = state is not None and state.settled > 0
    return Wait(_LOOK_AGAIN_SECONDS, events=await wait_told(job, pass_id, tools.store.passes), progress=moved)


async def run_passes(job: Job, plans: Sequence[PassPlan], tools: Tools, *, prompts: int) -> Outcome | None:
    """Passes that are open together, without a trial.  None once all are complete; until then what to do instead."""
    pending: list[Wait] = []
    for plan in plans:
        outcome = await run_pass(job, plan, tools, prompts=prompts)
        if isinstance(outcome, Wait):
            pending.append(outcome)
        elif outcome is not None:
            return outcome
    return first_of(pending)


def first_of(pending: Sequence[Wait]) -> Wait | None:
    """One wait for several things."""
    if not pending:
        return None
    return Wait(
        min(wait.seconds for wait in pending),
        events=[event for wait in pending for event in wait.events],
        progress=any(wait.progress for wait in pending),
    )


def _outcome_of(halt: Halt, job: Job) -> Outcome:
    if halt.kind == "pause":
        return Pause(PausedReason(halt.reason), needs_nano=halt.needs_nano)
    return Fail(halt.error or JobError(code=halt.reason, message="The pass was stopped.", stage=job.stage))

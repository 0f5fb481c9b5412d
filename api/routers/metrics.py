"""The curves of a job's trainings."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.deps import Caller, Wired, authenticate, known_query_only, requires
from api.problems import documented
from api.schemas.training import MetricOut, MetricsOut, StudentMetricsOut
from shared.training_metrics import thinned

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    dependencies=[Depends(authenticate), Depends(known_query_only)],
    responses=documented(401, 403, 422, 429, 503),
)


@router.get("/{job_id}/metrics", responses=documented(404, 410))
async def get_metrics(
    job_id: str,
    caller: Annotated[Caller, requires("jobs:read")],
    services: Wired,
    points: Annotated[int, Query(ge=2, le=2_000, description="of each student, at most")] = 500,
) -> MetricsOut:
    """Loss and token accuracy by training step, for each student.

    About 2,000 evenly spread steps of a training are kept, and up to `points` of them answered, first and last
    included.  While it trains they come from the provider's events, some minutes late when many jobs train; where the
    events leave steps out, from its result file at the end."""
    job = await services.jobs.get(caller.tenant, job_id)
    kept = await services.store.metrics.points(job.id)
    return MetricsOut(
        object="distillation.metrics",
        job_id=job.id,
        students=[
            StudentMetricsOut(
                student=number,
                model=student.model,
                fine_tuning_job_id=tune.fine_tuning_job_id,
                step=tune.step_number,
                total_steps=tune.total_steps,
                points_total=len(kept.get(number, ())),
                points=[MetricOut.of(point) for point in thinned(kept.get(number, ()), points)],
            )
            for number, (student, tune) in enumerate(zip(job.spec.students, job.fine_tunes, strict=False))
        ],
    )

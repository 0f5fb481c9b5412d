"""Training curves over HTTP."""

from __future__ import annotations

import pytest
from api_kit import Api, a_request, begin, loaded, problem_of
from msgspec.structs import replace

from shared.models import Checkpoint, MetricPoint
from shared.store.jobs import Change

pytestmark = pytest.mark.anyio
STUDENT = a_request()["students"][0]


async def test_points_are_answered_by_student_in_the_order_of_the_steps(api: Api):
    job = await begin(api, await api.create(students=[STUDENT, STUDENT | {"suffix": "other"}]))
    points = [MetricPoint(step=step, train_loss=1 / step) for step in (100, 9, 10)]
    await api.store.metrics.add(job.id, 1, points)

    body = (await api.http.get(f"/v1/jobs/{job.id}/metrics")).json()

    assert (body["object"], body["job_id"]) == ("distillation.metrics", job.id)
    first, second = body["students"]
    assert (first["points_total"], first["points"]) == (0, [])
    assert [point["step"] for point in second["points"]] == [9, 10, 100]
    assert second["points"][0] == {
        "step": 9,
        "train_loss": 1 / 9,
        "train_mean_token_accuracy": None,
        "valid_loss": None,
        "valid_mean_token_accuracy": None,
        "full_valid_loss": None,
        "full_valid_mean_token_accuracy": None,
    }


async def test_no_more_points_are_answered_than_asked_for(api: Api):
    job = await begin(api, await api.create())
    await api.store.metrics.add(job.id, 0, [MetricPoint(step=step, train_loss=1.0) for step in range(1, 1_201)])

    default = (await api.http.get(f"/v1/jobs/{job.id}/metrics")).json()["students"][0]
    few = (await api.http.get(f"/v1/jobs/{job.id}/metrics?points=3")).json()["students"][0]

    assert (default["points_total"], len(default["points"])) == (1_200, 500)
    assert [point["step"] for point in few["points"]] == [1, 601, 1_200]
    refused = await api.http.get(f"/v1/jobs/{job.id}/metrics?points=2001")
    assert problem_of(refused)["code"] == "validation_failed"


async def test_a_student_shows_its_checkpoints(api: Api):
    created = await api.create()
    assert created["students"][0]["checkpoints"] == []
    job = await begin(api, created)
    checkpoint = Checkpoint(id="ftckpt_1", model="ft:m:ckpt-step-8", step=8, created_at=1_795_345_200)
    tune = replace(job.fine_tunes[0], checkpoints=[checkpoint])
    await api.store.jobs.change(await loaded(api, created), Change(set={"fine_tunes": [tune]}))

    shown = (await api.http.get(f"/v1/jobs/{job.id}")).json()["students"][0]["checkpoints"]

    assert shown == [
        {"id": "ftckpt_1", "model": "ft:m:ckpt-step-8", "step": 8, "created_at": 1_795_345_200, "metrics": None}
    ]

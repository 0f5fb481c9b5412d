"""What a training leaves on its way: the points of its curve and its checkpoints."""

from __future__ import annotations

from typing import Literal, Self

from api.schemas.common import Response
from shared import models as domain


class MetricOut(Response):
    """Measures at one step; null where the provider took none."""

    step: int
    train_loss: float | None
    train_mean_token_accuracy: float | None
    valid_loss: float | None
    valid_mean_token_accuracy: float | None
    full_valid_loss: float | None
    full_valid_mean_token_accuracy: float | None

    @classmethod
    def of(cls, point: domain.MetricPoint) -> Self:
        return cls(
            step=point.step,
            train_loss=point.train_loss,
            train_mean_token_accuracy=point.train_mean_token_accuracy,
            valid_loss=point.valid_loss,
            valid_mean_token_accuracy=point.valid_mean_token_accuracy,
            full_valid_loss=point.full_valid_loss,
            full_valid_mean_token_accuracy=point.full_valid_mean_token_accuracy,
        )


class CheckpointOut(Response):
    """A model from before the end of the training, callable by name.  A provider keeps few: OpenAI the last three."""

    id: str
    model: str | None
    step: int
    created_at: int
    metrics: MetricOut | None

    @classmethod
    def of(cls, checkpoint: domain.Checkpoint) -> Self:
        return cls(
            id=checkpoint.id,
            model=checkpoint.model,
            step=checkpoint.step,
            created_at=checkpoint.created_at,
            metrics=None if checkpoint.metrics is None else MetricOut.of(checkpoint.metrics),
        )


class StudentMetricsOut(Response):
    """points: in the order of the steps, evenly chosen among the `points_total` that are kept."""

    student: int
    model: str
    fine_tuning_job_id: str | None
    step: int | None
    total_steps: int | None
    points_total: int
    points: list[MetricOut]


class MetricsOut(Response):
    object: Literal["distillation.metrics"]
    job_id: str
    students: list[StudentMetricsOut]

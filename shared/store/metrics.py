"""Training curves: the points that were reported, by student and step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
import redis.asyncio as redis

from shared.ids import JobId
from shared.models import MetricPoint
from shared.store import keys
from shared.store.connection import ask

_AT_ONCE: Final = 500
_encode: Final = msgspec.json.encode
_decoder: Final = msgspec.json.Decoder(MetricPoint)


class MetricStore:
    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    async def add(self, job_id: JobId, student: int, points: Sequence[MetricPoint]) -> None:
        """Keep points; one of the same step is replaced, so a report that is read again changes nothing."""
        for start in range(0, len(points), _AT_ONCE):
            items = [
                item
                for point in points[start : start + _AT_ONCE]
                for item in (f"{student}/{point.step}", _encode(point))
            ]
            await ask(self._redis.hset(keys.metrics(job_id), items=items))

    async def steps(self, job_id: JobId, student: int) -> list[int]:
        """The steps of which there is a point, sorted."""
        names = [name.decode().split("/") for name in await ask(self._redis.hkeys(keys.metrics(job_id)))]
        return sorted(int(step) for whose, step in names if whose == str(student))

    async def points(self, job_id: JobId) -> dict[int, list[MetricPoint]]:
        """All points by student, each in the order of the steps.  About 2,000 of a student are kept."""
        found: dict[int, list[MetricPoint]] = {}
        for name, text in (await ask(self._redis.hgetall(keys.metrics(job_id)))).items():
            found.setdefault(int(name.partition(b"/")[0]), []).append(_decoder.decode(text))
        for points in found.values():
            points.sort(key=lambda point: point.step)
        return found

"""A dataset's manifest as it goes out: what it is made of, and the identity of every file."""

from __future__ import annotations

from typing import Any, Literal, Self

from api.schemas.common import Response
from api.schemas.specs import CurationOut, SourceOut, SplitOut, TeacherOut, spec_fields
from shared import models as domain
from shared.exports import FORMATS, formats_of


class DatasetCounts(Response):
    """rejected: completions by reason, all samples.  unpaired: examples without a pair in `openai_dpo`, by reason."""

    prompts: int
    completions: int
    train: int
    validation: int
    holdout: int
    rejected: dict[str, int]
    unpaired: dict[str, int]


class DatasetFileOut(Response):
    """bytes, sha256: null for datasets from before they were kept for every format."""

    split: str
    format: str
    lines: int
    bytes: int | None
    sha256: str | None
    url: str


class ManifestOut(Response):
    """Where a dataset comes from.  Made again from the same completions, its files are the same, byte by byte."""

    object: Literal["distillation.dataset"]
    job_id: str
    source: SourceOut
    system_prompt: str | None
    teacher: TeacherOut
    curation: CurationOut
    split: SplitOut
    counts: DatasetCounts
    files: list[DatasetFileOut]

    @classmethod
    def of(cls, job: domain.Job, manifest: domain.Manifest) -> Self:
        shown: dict[str, Any] = spec_fields(job.spec, job.counters.prompts_total)
        return cls(
            object="distillation.dataset",
            job_id=job.id,
            **{name: shown[name] for name in ("source", "system_prompt", "teacher", "curation", "split")},
            counts=DatasetCounts(
                prompts=job.counters.prompts_total,
                completions=job.counters.settled,
                train=manifest.train,
                validation=manifest.validation,
                holdout=manifest.holdout,
                rejected=manifest.rejected,
                unpaired=manifest.unpaired,
            ),
            files=[
                DatasetFileOut(
                    split=split,
                    format=format,
                    lines=file.lines,
                    bytes=file.bytes,
                    sha256=file.sha256,
                    url=f"/v1/jobs/{job.id}/dataset?split={split}&format={format}",
                )
                for format in FORMATS
                if format in formats_of(job.spec)
                for split in ("train", "validation", "holdout")
                if (file := manifest.file(split, format)) is not None
            ],
        )

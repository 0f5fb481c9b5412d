"""Uploaded files of prompts."""

from __future__ import annotations

from typing import Literal, Self

from api.schemas.common import Response
from shared import models as domain


class FileOut(Response):
    """bytes, sha256: of the file as it was sent.  expires_at: from then on no new job can name it."""

    id: str
    object: Literal["distillation.file"]
    filename: str | None
    bytes: int
    prompts: int
    sha256: str
    created_at: int
    expires_at: int

    @classmethod
    def of(cls, file: domain.PromptFile) -> Self:
        return cls(
            id=file.id,
            object="distillation.file",
            filename=file.filename,
            bytes=file.bytes,
            prompts=file.counts.prompts,
            sha256=file.sha256,
            created_at=file.created_at_ms // 1000,
            expires_at=file.expires_at_ms // 1000,
        )

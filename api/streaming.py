"""Streamed bodies."""

from __future__ import annotations

from fastapi.responses import StreamingResponse


class Stream(StreamingResponse):
    """JSON lines.  When the store fails half-way, the connection breaks, so that no one takes a part for the whole."""

    media_type = "application/jsonl"

"""The baseline of `bench.api` and `bench.dataset`: FastAPI that takes the same requests and does nothing.

`python -m bench.bare PORT [FILE]`; the file is what a dataset is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

BLOCK_BYTES = 64_000
app = FastAPI()


@app.post("/v1/jobs", status_code=202)
async def create_job(request: Request) -> dict[str, int]:
    """Reads the body as JSON, without a model."""
    return {"members": len(await request.json())}


@app.get("/v1/jobs/{job_id}")
async def get_job(job_id: str) -> Response:
    return Response(status_code=304)


@app.get("/v1/jobs/{job_id}/dataset")
async def get_dataset(job_id: str) -> StreamingResponse:
    async def blocks() -> AsyncIterator[bytes]:
        with Path(sys.argv[2]).open("rb") as file:  # noqa: ASYNC230  # of the page cache
            while block := file.read(BLOCK_BYTES):
                yield block

    return StreamingResponse(blocks(), media_type="application/jsonl")


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")

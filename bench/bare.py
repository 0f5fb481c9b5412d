"""The baseline of `bench.api`: FastAPI that takes the same requests and does nothing.  `python -m bench.bare PORT`."""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request, Response

app = FastAPI()


@app.post("/v1/jobs", status_code=202)
async def create_job(request: Request) -> dict[str, int]:
    """Reads the body as JSON, without a model."""
    return {"members": len(await request.json())}


@app.get("/v1/jobs/{job_id}")
async def get_job(job_id: str) -> Response:
    return Response(status_code=304)


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning")

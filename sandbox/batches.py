"""Batches: a file of requests worked off by and by, answered in another order than asked (openai-contract §4)."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox import chat, files
from sandbox.errors import ApiError, invalid, not_found, wrong_value
from sandbox.faults import BATCH_KINDS
from sandbox.store import Json
from sandbox.web import answer, checked_metadata, json_object, limit_of, page, text_in, world_of
from sandbox.world import World

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_URL = "/v1/chat/completions"
_ENDPOINTS = (
    "/v1/responses", _URL, "/v1/embeddings", "/v1/completions", "/v1/moderations",
    "/v1/images/generations", "/v1/images/edits", "/v1/videos",
)  # fmt: skip
_MOST_LINES, _MOST_BYTES = 50_000, 200 * 1024 * 1024
_WINDOW_SECONDS, _OUTPUT_SECONDS = 86_400, 30 * 86_400
_MOST_ERRORS = 100
_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")
_STARTED_AT, _WORKED_AT = 0.1, 0.9
_LOST = {
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
    "cancelled": ("batch_cancelled", "This request was cancelled before it was executed."),
}


async def create(request: Request) -> Response:
    world = world_of(request)
    body = await json_object(request)
    endpoint, window = text_in(body, "endpoint"), text_in(body, "completion_window")
    if endpoint not in _ENDPOINTS:
        raise wrong_value("endpoint", f"supported values are {', '.join(_ENDPOINTS)}")
    if endpoint != _URL:
        raise invalid("The sandbox runs batches of /v1/chat/completions alone.", param="endpoint")
    if window != "24h":
        raise wrong_value("completion_window", "supported values are '24h'")
    expiry = body.get("output_expires_after")
    output_seconds = _OUTPUT_SECONDS if expiry is None else files.checked_expiry(expiry)
    content = files.usable(world, body.get("input_file_id"), purpose="batch", param="input_file_id")
    if len(content) > _MOST_BYTES:
        raise invalid("A batch input file is at most 200 MB.", param="input_file_id")
    stall = world.faults.take(BATCH_KINDS, method="POST", path=request.url.path, body=request.scope["sandbox.body"])
    now = world.clock.now()
    key = world.new_id("batch_")
    batch: Json = {
        "id": key,
        "object": "batch",
        "endpoint": endpoint,
        "model": None,
        "errors": None,
        "input_file_id": body["input_file_id"],
        "completion_window": window,
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": int(now),
        "expires_at": int(now) + _WINDOW_SECONDS,
        "request_counts": {"total": 0, "completed": 0, "failed": 0},
        "usage": _no_usage(),
        "metadata": checked_metadata(body.get("metadata")) or None,
        **{f"{name}_at": None for name in _TIMES},
    }
    row = {
        "batch": batch,
        "created": now,
        "seconds": world.options.batch_seconds,
        "output_seconds": output_seconds,
        "stalls_at": 1.0 if stall is None else stall.get("share", 0.5),
        "done": 0,
        "cancelled": None,
    }
    # The provider works from a copy: deleting the input file later does not stop a batch.
    world.store.put_content(f"input-{key}", content)
    world.store.put("batch", key, row)
    world.ledger.count("batches_created")
    return answer(batch)


def _no_usage() -> Json:
    return {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }


def faults_of(content: bytes, world: World) -> list[Json]:
    """What is wrong with an input file, by line from 1: {code, message, param, line}."""
    lines = content.splitlines()
    if not any(line.strip() for line in lines):
        return [{"code": "empty_file", "message": "The input file is empty.", "param": None, "line": None}]
    if len(lines) > _MOST_LINES:
        message = f"The input file has more than {_MOST_LINES} requests."
        return [{"code": "request_limit_exceeded", "message": message, "param": None, "line": None}]
    wrong: list[Json] = []
    seen: set[str] = set()
    model: object = None
    for number, line in enumerate(lines, 1):
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            row = None
        code, message, param = _fault_of_line(row, seen, model, world)
        if code:
            wrong.append({"code": code, "message": message, "param": param, "line": number})
        elif isinstance(row, dict):
            seen.add(row["custom_id"])
            model = model or row["body"]["model"]
    return wrong[:_MOST_ERRORS]


def _fault_of_line(row: Any, seen: set[str], model: object, world: World) -> tuple[str, str, str | None]:
    if not isinstance(row, dict):
        return "invalid_json_line", "This line is not parseable as valid JSON.", None
    if not isinstance(row.get("custom_id"), str):
        return "missing_required_parameter", "Missing required parameter: 'custom_id'.", "custom_id"
    if row["custom_id"] in seen:
        return "duplicate_custom_id", f"The custom_id '{row['custom_id']}' was used before.", "custom_id"
    if row.get("method") != "POST":
        return "invalid_method", "The method must be POST.", "method"
    if row.get("url") != _URL:
        return "invalid_url", "The URL does not match the batch's endpoint.", "url"
    body = row.get("body")
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        return "missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model"
    if body.get("stream"):
        return "invalid_request", "Streaming is not allowed in a batch.", "body.stream"
    if model is not None and body["model"] != model:
        return "mismatched_model", "All requests of a batch must name one model.", "body.model"
    try:
        world.find_model(body["model"])
    except ApiError as error:
        return "model_not_found", str(error), "body.model"
    return "", "", None


async def advance(world: World, row: Json) -> None:
    """Do what is due by now.  One call at a time for the whole sandbox: it lets others run between requests."""
    batch = row["batch"]
    now = world.clock.now()
    elapsed = (now - row["created"]) / row["seconds"] if row["seconds"] else 1.0
    if batch["status"] == "validating" and elapsed >= _STARTED_AT:
        _validate(world, row, now)
    if batch["status"] == "in_progress":
        share = min((elapsed - _STARTED_AT) / (_WORKED_AT - _STARTED_AT), row["stalls_at"])
        total = batch["request_counts"]["total"]
        await _work(world, row, up_to=min(total, int(total * share + 1e-9)))
        if row["done"] == total:
            _move(row, "finalizing", now)
        elif now >= batch["expires_at"]:
            _finish(world, row, "expired", now)
        world.store.put("batch", batch["id"], row)
    if batch["status"] == "finalizing" and elapsed >= 1:
        _finish(world, row, "completed", now)
    if batch["status"] == "cancelling" and now >= row["cancelled"] + 0.1 * row["seconds"]:
        _finish(world, row, "cancelled", now)


def _move(row: Json, status: str, at: float) -> None:
    row["batch"] |= {"status": status, f"{status}_at": int(at)}


def _validate(world: World, row: Json, now: float) -> None:
    batch = row["batch"]
    content = world.store.content(f"input-{batch['id']}") or b""
    if wrong := faults_of(content, world):
        batch["errors"] = {"object": "list", "data": wrong}
        _move(row, "failed", now)
        world.store.drop_content(f"input-{batch['id']}")
        world.webhooks.emit("batch.failed", batch["id"])
    else:
        requests = _requests(world, row)
        batch["request_counts"]["total"] = len(requests)
        batch["model"] = requests[0]["body"]["model"]
        _move(row, "in_progress", now)
    world.store.put("batch", batch["id"], row)


def _requests(world: World, row: Json) -> list[Json]:
    """The requests in the order they are worked off, which is shuffled, always in the same way."""
    key = row["batch"]["id"]
    if key not in world.batch_requests:
        requests = [msgspec.json.decode(line) for line in (world.store.content(f"input-{key}") or b"").splitlines()]
        random.Random(f"{world.options.seed}/{len(requests)}").shuffle(requests)
        world.batch_requests[key] = requests
    return world.batch_requests[key]


async def _work(world: World, row: Json, *, up_to: int) -> None:
    batch = row["batch"]
    for number in range(row["done"], up_to):
        result = await _answered(world, _requests(world, row)[number])
        if batch["status"] != "in_progress":
            return
        good = result["response"]["status_code"] == 200
        world.store.put("batch_line", f"{batch['id']}-{number}", {"batch": batch["id"], "good": good, "line": result})
        batch["request_counts"]["completed" if good else "failed"] += 1
        if good:
            _add_usage(batch["usage"], result["response"]["body"]["usage"])
        row["done"] = number + 1
        world.store.put("batch", batch["id"], row)
        if number % 50 == 49:
            world.store.flush()
            await asyncio.sleep(0)


async def _answered(world: World, request: Json) -> Json:
    request_id = world.new_id("req_")
    try:
        model = chat.checked(world, request["body"])
        mind = await world.mind_of(model)
        status, body = 200, chat.complete(world, request["body"], model, mind, request_id=request_id)
    except ApiError as error:
        status, body = error.status, error.envelope
    return {
        "id": world.new_id("batch_req_"),
        "custom_id": request["custom_id"],
        "response": {"status_code": status, "request_id": request_id, "body": body},
        "error": None,
    }


def _add_usage(sums: Json, usage: Json) -> None:
    sums["input_tokens"] += usage["prompt_tokens"]
    sums["output_tokens"] += usage["completion_tokens"]
    sums["total_tokens"] += usage["total_tokens"]
    reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
    sums["output_tokens_details"]["reasoning_tokens"] += reasoning


def _finish(world: World, row: Json, status: str, now: float) -> None:
    """Write the files: what was answered, and what was not.  Either is missing when it would be empty."""
    batch = row["batch"]
    lines = [(key, line) for key, line in world.store.table("batch_line").items() if line["batch"] == batch["id"]]
    good = [line["line"] for _, line in lines if line["good"]]
    bad = [line["line"] for _, line in lines if not line["good"]]
    if status in _LOST:
        code, message = _LOST[status]
        for request in _requests(world, row)[row["done"] :]:
            error = {"code": code, "message": message}
            bad.append(
                {"id": world.new_id("batch_req_"), "custom_id": request["custom_id"], "response": None, "error": error}
            )
        batch["request_counts"]["failed"] = len(bad)
    for name, results in (("output", good), ("error", bad)):
        if results:
            content = b"".join(msgspec.json.encode(result) + b"\n" for result in results)
            file = files.write(
                world,
                content,
                filename=f"{batch['id']}_{name}.jsonl",
                purpose="batch_output",
                expires_after=row["output_seconds"],
            )
            batch[f"{name}_file_id"] = file["id"]
    for key, _ in lines:
        world.store.drop("batch_line", key)
    world.store.drop_content(f"input-{batch['id']}")
    world.batch_requests.pop(batch["id"], None)
    _move(row, status, now)
    world.store.put("batch", batch["id"], row)
    world.webhooks.emit(f"batch.{status}", batch["id"])


def _row(request: Request) -> tuple[World, Json]:
    world, key = world_of(request), request.path_params["batch_id"]
    row = world.store.get("batch", key)
    if row is None:
        raise not_found(f"No batch found with id '{key}'.", param="batch_id")
    return world, row


async def retrieve(request: Request) -> Response:
    return answer(_row(request)[1]["batch"])


async def list_all(request: Request) -> Response:
    """Newest first."""
    rows = reversed(world_of(request).store.table("batch").values())
    return page(request, (row["batch"] for row in rows), limit=limit_of(request, default=20, most=100))


async def cancel(request: Request) -> Response:
    world, row = _row(request)
    batch = row["batch"]
    if batch["status"] not in {"validating", "in_progress"}:
        raise ApiError(409, f"Cannot cancel a batch with status '{batch['status']}'.")
    row["cancelled"] = world.clock.now()
    _move(row, "cancelling", row["cancelled"])
    world.store.put("batch", batch["id"], row)
    return answer(batch)

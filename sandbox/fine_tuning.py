"""Fine-tuning jobs over HTTP (openai-contract §1.4 and §1.5)."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sandbox import files, training
from sandbox.catalog import CATALOG, Model
from sandbox.errors import ApiError, invalid, not_found, wrong_type, wrong_value
from sandbox.faults import LISTING_KINDS, TRAINING_KINDS
from sandbox.store import Json
from sandbox.web import (
    answer,
    carries,
    checked_metadata,
    json_object,
    limit_of,
    metadata_filter,
    page,
    text_in,
    world_of,
)
from sandbox.world import World

_KNOWN = frozenset(
    {
        "hyperparameters",
        "integrations",
        "metadata",
        "method",
        "model",
        "seed",
        "suffix",
        "training_file",
        "validation_file",
    }
)
_INTEGER_RANGES = {"n_epochs": (1, 50), "batch_size": (1, 256)}
_ACTIVE = frozenset({"validating_files", "queued", "running"})


async def create(request: Request) -> Response:
    world = world_of(request)
    body = await json_object(request)
    struck = world.faults.take_all(
        TRAINING_KINDS, method="POST", path=request.url.path, body=request.scope["sandbox.body"]
    )
    plan: Json = {}
    for fault in struck:
        plan |= _planned(fault)
    unknown = next((name for name in body if name not in _KNOWN), None)
    if unknown is not None:
        raise invalid(f"Unknown parameter: '{unknown[:64]}'.", param=unknown[:64], code="unknown_parameter")
    model = _trainable(world, text_in(body, "model"))
    row = _new_row(world, body, model, plan)
    content = files.usable(world, text_in(body, "training_file"), purpose="fine-tune", param="training_file")
    validation = body.get("validation_file")
    checking = None
    if validation is not None:
        checking = files.usable(world, validation, purpose="fine-tune", param="validation_file")
    training.prepare(world, row, content, checking)
    job = row["job"]
    now = world.clock.now()
    training.log(world, row, f"Created fine-tuning job: {job['id']}", now)
    world.store.put("fine_tune", job["id"], row)
    world.ledger.count("fine_tuning_jobs_created")
    return answer(job)


def _planned(fault: Json) -> Json:
    """What a fault has in store for the job.  Raises the refusal where the provider no longer trains."""
    kind = fault["kind"]
    if kind == "training_closed":
        raise ApiError(
            403,
            fault.get("message", "Your organization can no longer create fine-tuning jobs."),
            code=fault.get("code", "fine_tuning_not_available"),
        )
    if kind == "training_failed":
        error = {
            "code": fault.get("code", "server_error"),
            "message": fault.get("message", "The job failed due to an internal error."),
            "param": fault.get("param"),
        }
        return {"bad_file" if fault.get("at") == "validating_files" else "failed": error}
    planned: dict[str, Json] = {
        "training_cancelled": {"cancelled": True},
        "training_status": {"held": {"status": fault.get("status", "paused"), "seconds": fault.get("seconds")}},
        "job_deleted": {"gone_after_seconds": fault.get("after_seconds", 0)},
        "list_lag": {"listed_after_seconds": fault.get("seconds", 5.0)},
        "success_error_value": {"success_error_value": fault.get("value")},
        "result_csv": {"result_csv": fault.get("encoding", "base64")},
    }
    return planned[kind]


def _trainable(world: World, name: str) -> Model:
    model = world.find_model(name)
    if not model.trainable:
        raise invalid(
            f"Model {name} is not available for fine-tuning or does not exist.",
            param="model",
            code="model_not_available",
        )
    return model


def _new_row(world: World, body: Json, model: Model, plan: Json) -> Json:
    method, hyperparameters = _method(body)
    suffix, seed = body.get("suffix"), body.get("seed")
    if suffix is not None and not (isinstance(suffix, str) and 1 <= len(suffix) <= 64):
        raise wrong_value("suffix", "must be a string of 1 to 64 characters")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= 2_147_483_647):
        raise wrong_value("seed", "must be an integer from 0 to 2147483647")
    now = world.clock.now()
    trained = world.store.get("model", model.id)
    base = trained["base"] if trained else model.id
    job = {
        "id": world.new_id("ftjob-"),
        "object": "fine_tuning.job",
        "created_at": int(now),
        "finished_at": None,
        "model": model.id,
        "fine_tuned_model": None,
        "organization_id": "org-sandbox",
        "status": "validating_files",
        "training_file": body.get("training_file"),
        "validation_file": body.get("validation_file"),
        "result_files": [],
        "trained_tokens": None,
        "error": {},
        "hyperparameters": hyperparameters,
        "seed": seed if seed is not None else world.options.seed,
        "estimated_finish": None,
        "integrations": body.get("integrations") or [],
        "metadata": checked_metadata(body.get("metadata")),
        "method": method,
        "user_provided_suffix": suffix,
        "usage_metrics": None,
        "shared_with_openai": False,
    }
    return {
        "job": job,
        "base": base,
        "name": training.new_model_name(base, suffix, secrets.token_hex(4)),
        "hyperparameters": hyperparameters,
        "plan": plan,
        "events": [],
        "checkpoints": [],
        "seconds": world.options.training_seconds,
        "work": 0.0,
        "since": now,
        "held_until": None,
        "passed": 0,
        "next_at": 0.0,
        "created": now,
    }


def _method(body: Json) -> tuple[Json, Json]:
    method: Any = body.get("method") or {
        "type": "supervised",
        "supervised": {"hyperparameters": body.get("hyperparameters") or {}},
    }
    if not isinstance(method, dict):
        raise wrong_type("method", "an object")
    kind = method.get("type")
    if kind == "reinforcement":
        raise invalid(
            "No model is available for reinforcement fine-tuning.", param="method", code="model_not_available"
        )
    if kind not in {"supervised", "dpo"}:
        raise wrong_value("method.type", "supported values are supervised, dpo, reinforcement")
    given = (method.get(kind) or {}).get("hyperparameters") or {}
    names = ("n_epochs", "batch_size", "learning_rate_multiplier", *(("beta",) if kind == "dpo" else ()))
    for name, value in given.items():
        _check_hyperparameter(name, value, names)
    numbers = {name: "auto" if given.get(name) is None else given[name] for name in names}
    return {"type": kind, kind: {"hyperparameters": numbers}}, numbers


def _check_hyperparameter(name: str, value: object, names: tuple[str, ...]) -> None:
    param = f"hyperparameters.{name}"
    if name not in names:
        raise invalid(f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if value is None or value == "auto":
        return
    low, high = _INTEGER_RANGES.get(name, (0, 2 if name == "beta" else float("inf")))
    if isinstance(value, bool) or not isinstance(value, int if name in _INTEGER_RANGES else (int, float)):
        raise wrong_type(param, "a number or 'auto'")
    if not (low <= value <= high and value > 0):
        raise wrong_value(param, f"must be from {low} to {high}")


def _row(request: Request) -> tuple[World, Json]:
    world = world_of(request)
    key = request.path_params["job_id"]
    row = world.store.get("fine_tune", key)
    if row is None or _gone(world, row):
        raise not_found(f"Could not find fine tune: {key}", param="fine_tune_id", code="fine_tune_not_found")
    training.advance(world, row)
    return world, row


def _gone(world: World, row: Json) -> bool:
    after = row["plan"].get("gone_after_seconds")
    return after is not None and world.clock.now() >= row["created"] + after


def _listed(world: World, row: Json) -> bool:
    lag = row["plan"].get("listed_after_seconds", 0)
    return world.clock.now() >= row["created"] + lag and not _gone(world, row)


async def list_all(request: Request) -> Response:
    world = world_of(request)
    limit, wanted = limit_of(request, default=20, most=100), metadata_filter(request)
    if world.faults.take(LISTING_KINDS, method="GET", path=request.url.path, body=b""):
        wanted = {}
    found = []
    for row in reversed(world.store.table("fine_tune").values()):
        if _listed(world, row) and carries(row["job"]["metadata"], wanted):
            training.advance(world, row)
            found.append(row["job"])
    return page(request, found, limit=limit)


async def retrieve(request: Request) -> Response:
    return answer(_row(request)[1]["job"])


def _must_not_be(row: Json, statuses: frozenset[str], verb: str) -> None:
    status = row["job"]["status"]
    if status in statuses:
        raise invalid(
            f"Job has already {status}." if status in training.TERMINAL else f"Job is {status}: cannot {verb}."
        )


async def cancel(request: Request) -> Response:
    world, row = _row(request)
    _must_not_be(row, training.TERMINAL, "cancel")
    training.finish(world, row, "cancelled", at=world.clock.now())
    world.store.put("fine_tune", row["job"]["id"], row)
    return answer(row["job"])


async def pause(request: Request) -> Response:
    world, row = _row(request)
    _must_not_be(row, training.TERMINAL | {"paused", "pausing"}, "pause")
    now = world.clock.now()
    if row["since"] is not None:
        training.stand_still(row, "paused", at=now)
    training.log(world, row, "The job has been paused", now)
    world.store.put("fine_tune", row["job"]["id"], row)
    return answer(row["job"])


async def resume(request: Request) -> Response:
    world, row = _row(request)
    _must_not_be(row, training.TERMINAL | _ACTIVE, "resume")
    now = world.clock.now()
    training.move_on(row, at=now)
    training.log(world, row, "The job has been resumed", now)
    world.store.put("fine_tune", row["job"]["id"], row)
    return answer(row["job"])


async def events(request: Request) -> Response:
    """Newest first."""
    return page(request, reversed(_row(request)[1]["events"]), limit=limit_of(request, default=20, most=100))


async def checkpoints(request: Request) -> Response:
    """Newest first."""
    return page(request, reversed(_row(request)[1]["checkpoints"]), limit=limit_of(request, default=10, most=100))


async def model_limits(request: Request) -> Response:
    """Per trainable model, as the rate-limit guide describes it; in no SDK."""
    world = world_of(request)
    active: dict[str, int] = {}
    for row in world.store.table("fine_tune").values():
        training.advance(world, row)
        if row["job"]["status"] not in training.TERMINAL:
            active[row["base"]] = active.get(row["base"], 0) + 1
    limits = [
        {"model": m.id, "max_total_jobs": 100, "max_concurrent_jobs": 20, "active_jobs": active.get(m.id, 0)}
        for m in CATALOG.values()
        if m.trainable and m.alias_of is None
    ]
    return answer({"object": "list", "data": limits})

"""The life of a fine-tuning job.  It is a list of milestones at shares of its time, passed as the clock goes on.

A job's row: `job` (what a client sees), `events`, `checkpoints`, `work` (seconds of training done when the clock was
last started), `since` (when that was; None while it stands still), `passed` (milestones behind it)."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

from sandbox import files
from sandbox.examples import BadTrainingFile, read_examples
from sandbox.store import Json
from sandbox.student import Example, decode_examples, encode_examples
from sandbox.world import ORGANIZATION, World

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_QUEUED_AT, _RUNNING_AT, _TROUBLE_AT, _TRAINED_AT = 0.12, 0.2, 0.6, 0.95
_MOST_METRICS = 60
_KEPT_CHECKPOINTS = 3

Milestone = tuple[float, str, Json]


def prepare(world: World, row: Json, content: bytes, validation: bytes | None) -> None:
    """Read the files while they are there.  What is wrong with them is told later, by the job's failure."""
    job = row["job"]
    method = job["method"]["type"]
    try:
        examples, tokens = read_examples(content, method=method)
        if validation is not None:
            read_examples(validation, method=method, param="validation_file")
    except BadTrainingFile as bad:
        row["plan"]["bad_file"] = {"code": bad.code, "message": str(bad), "param": bad.param}
        examples, tokens = [], 0
    parent = world.any_model(job["model"])
    known = decode_examples(world.store.content(parent.knowledge) or b"") if parent and parent.knowledge else []
    row |= {"examples": len(examples), "known": len(known), "tokens": tokens, "validated": validation is not None}
    world.store.put_content(f"knowledge-{job['id']}", encode_examples([*known, *examples]))


def numbers_for_auto(row: Json) -> Json:
    """What "auto" comes to once the examples have been counted."""
    given = row["hyperparameters"]
    count = max(1, row["examples"])
    auto: Json = {
        "n_epochs": 3 if count >= 30 else 5,
        "batch_size": max(1, min(256, count // 500)),
        "learning_rate_multiplier": 1.8,
        "beta": 0.1,
    }
    return {name: auto.get(name, value) if value == "auto" else value for name, value in given.items()}


def milestones(row: Json) -> Iterator[Milestone]:
    """All that will happen, in order: (share of the job's time, what, its particulars)."""
    plan = row["plan"]
    job = row["job"]
    yield 0.0, "event", {"message": f"Validating training file: {job['training_file']}"}
    if "bad_file" in plan:
        yield _QUEUED_AT, "failed", plan["bad_file"]
        return
    yield _QUEUED_AT, "queued", {"message": "Files validated, moving job to queued state"}
    yield _RUNNING_AT, "running", {"message": "Fine-tuning job started"}
    trouble = _trouble(plan)
    for milestone in _steps(row):
        if trouble is not None and milestone[0] >= _TROUBLE_AT:
            yield trouble
            if trouble[1] in {"failed", "cancelled"}:
                return
            trouble = None
        yield milestone
    if trouble is not None:
        yield trouble
        if trouble[1] in {"failed", "cancelled"}:
            return
    yield 1.0, "succeeded", {}


def _trouble(plan: Json) -> Milestone | None:
    if "failed" in plan:
        return _TROUBLE_AT, "failed", plan["failed"]
    if "cancelled" in plan:
        return _TROUBLE_AT, "cancelled", {}
    return (_TROUBLE_AT, "held", plan["held"]) if "held" in plan else None


def _steps(row: Json) -> Iterator[Milestone]:
    numbers = numbers_for_auto(row)
    epochs = int(numbers["n_epochs"])
    per_epoch = math.ceil(max(1, row["examples"]) / int(numbers["batch_size"]))
    total = per_epoch * epochs
    told = {1, total, *(round(n * total / _MOST_METRICS) for n in range(1, _MOST_METRICS))} - {0}
    for step in sorted(told | {per_epoch * epoch for epoch in range(1, epochs + 1)}):
        at = _RUNNING_AT + (_TRAINED_AT - _RUNNING_AT) * step / total
        yield at, "metrics", _metrics(step, total, validated=row["validated"] and step % per_epoch == 0)
        if step % per_epoch == 0:
            yield at, "checkpoint", {"step": step, "epoch": step // per_epoch, "epochs": epochs}


def _metrics(step: int, total: int, *, validated: bool) -> Json:
    """A smooth curve over the steps.  It is drawn, not measured: nearest neighbours have no loss."""
    loss = round(0.15 + 2.0 * math.exp(-4 * step / total), 4)
    accuracy = round(1 - 0.35 * math.exp(-3 * step / total), 4)
    data: Json = {"step": step, "total_steps": total, "train_loss": loss, "train_mean_token_accuracy": accuracy}
    for name, value in (("valid_loss", loss + 0.05), ("valid_mean_token_accuracy", accuracy - 0.03)):
        data[name] = round(value, 4) if validated else None
        data["full_" + name] = round(value, 4) if validated else None
    return data


def advance(world: World, row: Json) -> None:
    """Pass every milestone whose time has come."""
    now = world.clock.now()
    if now < row["next_at"]:
        return
    ahead = list(milestones(row))
    changed = False
    while row["passed"] < len(ahead):
        if row["since"] is None:
            until = row["held_until"]
            if until is None or now < until:
                break
            row |= {"since": until, "held_until": None}
            row["job"]["status"] = "running"
        share, what, detail = ahead[row["passed"]]
        due = row["since"] + share * row["seconds"] - row["work"]
        if due > now:
            row["next_at"] = due
            break
        row["passed"] += 1
        changed = True
        _pass(world, row, what, detail, due)
    if changed:
        world.store.put("fine_tune", row["job"]["id"], row)


def _pass(world: World, row: Json, what: str, detail: Json, at: float) -> None:
    job = row["job"]
    if what == "event":
        log(world, row, detail["message"], at)
    elif what in {"queued", "running"}:
        job["status"] = what
        if what == "running":
            numbers = numbers_for_auto(row)
            job["hyperparameters"] = numbers
            job["method"][job["method"]["type"]]["hyperparameters"] = numbers
            job["estimated_finish"] = math.ceil(at + (1 - _RUNNING_AT) * row["seconds"])
        log(world, row, detail["message"], at)
    elif what == "metrics":
        text = f"Step {detail['step']}/{detail['total_steps']}: training loss={detail['train_loss']}"
        if detail["valid_loss"] is not None:
            text += f", validation loss={detail['valid_loss']}, full validation loss={detail['full_valid_loss']}"
        log(world, row, text, at, kind="metrics", data={k: v for k, v in detail.items() if v is not None})
    elif what == "checkpoint":
        _keep_checkpoint(world, row, detail, at)
    elif what == "held":
        stand_still(row, detail["status"], at=at, seconds=detail.get("seconds"))
        log(world, row, f"The job is {detail['status']}", at)
    else:
        finish(world, row, what, at=at, error=detail or None)


def log(
    world: World,
    row: Json,
    message: str,
    at: float,
    *,
    level: str = "info",
    kind: str = "message",
    data: Json | None = None,
) -> None:
    event = {
        "id": world.new_id("ftevent-"),
        "object": "fine_tuning.job.event",
        "created_at": int(at),
        "level": level,
        "message": message,
        "type": kind,
        "data": data or {},
    }
    row["events"].append(event)


def stand_still(row: Json, status: str, *, at: float, seconds: float | None = None) -> None:
    """Stop the job's own clock, for some seconds or until it is resumed."""
    row["work"] += at - row["since"]
    row |= {"since": None, "held_until": None if seconds is None else at + seconds, "next_at": 0.0}
    row["job"]["status"] = status


def move_on(row: Json, *, at: float) -> None:
    row |= {"since": at, "held_until": None, "next_at": 0.0}
    row["job"]["status"] = "running" if row["work"] >= _RUNNING_AT * row["seconds"] else "queued"


def finish(world: World, row: Json, status: str, *, at: float, error: Json | None = None) -> None:
    job = row["job"]
    job |= {"status": status, "finished_at": int(at), "estimated_finish": None}
    row |= {"since": None, "held_until": None, "passed": 1_000_000_000}
    if status == "failed":
        job["error"] = error
        log(world, row, f"The job failed: {(error or {}).get('message')}", at, level="error")
    elif status == "cancelled":
        log(world, row, "The job has been cancelled", at)
    else:
        _deploy(world, row, at)
    world.webhooks.emit(f"fine_tuning.job.{status}", job["id"])


def _deploy(world: World, row: Json, at: float) -> None:
    job = row["job"]
    name = row["name"]
    _add_model(world, row, name, at, knowledge=f"knowledge-{job['id']}", listed=True)
    job["fine_tuned_model"] = name
    job["trained_tokens"] = row["tokens"] * int(job["hyperparameters"]["n_epochs"])
    job["error"] = row["plan"].get("success_error_value", {})
    lines = ["step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy"]
    for event in row["events"]:
        if event["type"] == "metrics":
            data: Any = event["data"]
            names = ("step", "train_loss", "train_mean_token_accuracy", "valid_loss", "valid_mean_token_accuracy")
            lines.append(",".join(str(data.get(key, "")) for key in names))
    content = ("\n".join(lines) + "\n").encode()
    if row["plan"].get("result_csv") == "base64":
        content = base64.b64encode(content)
    results = files.write(world, content, filename="step_metrics.csv", purpose="fine-tune-results")
    job["result_files"] = [results["id"]]
    log(world, row, f"New fine-tuned model created: {name}", at)
    log(world, row, "The job has successfully completed", at)


def _add_model(world: World, row: Json, name: str, at: float, *, knowledge: str, listed: bool) -> None:
    base = world.any_model(row["base"])
    model = {
        "id": name,
        "base": row["base"],
        "knowledge": knowledge,
        "created": int(at),
        "callable_at": at + world.options.fresh_model_404_seconds,
        "shutdown_date": base.shutdown_date.isoformat() if base and base.shutdown_date else None,
        "listed": listed,
    }
    world.store.put("model", name, model)


def _keep_checkpoint(world: World, row: Json, detail: Json, at: float) -> None:
    """One per epoch, of which the last three stay.  An earlier one has seen only its share of the examples."""
    if detail["epoch"] <= detail["epochs"] - _KEPT_CHECKPOINTS:
        return
    job = row["job"]
    name = f"{row['name']}:ckpt-step-{detail['step']}"
    everything: list[Example] = decode_examples(world.store.content(f"knowledge-{job['id']}") or b"")
    seen = row["known"] + math.ceil(row["examples"] * detail["epoch"] / detail["epochs"])
    knowledge = f"knowledge-{job['id']}-{detail['step']}"
    world.store.put_content(knowledge, encode_examples(everything[:seen]))
    _add_model(world, row, name, at, knowledge=knowledge, listed=False)
    metrics = next(event["data"] for event in reversed(row["events"]) if event["type"] == "metrics")
    row["checkpoints"].append(
        {
            "id": world.new_id("ftckpt_"),
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(at),
            "fine_tuned_model_checkpoint": name,
            "fine_tuning_job_id": job["id"],
            "step_number": detail["step"],
            "metrics": {key: value for key, value in metrics.items() if key != "total_steps"},
        }
    )
    log(world, row, f"Checkpoint created at step {detail['step']}", at)


def new_model_name(base: str, suffix: str | None, key: str) -> str:
    return f"ft:{base}:{ORGANIZATION}:{suffix or ''}:{key}"

"""The routes of the experimenter: faults, the ledger, the clock, webhooks, a fresh start.  They ask for no key."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox import progress
from sandbox.errors import invalid, missing, wrong_type
from sandbox.web import answer, json_object, world_of


async def script_faults(request: Request) -> Response:
    """A rule or a list of rules, added to those there are."""
    world = world_of(request)
    try:
        rules: Any = msgspec.json.decode(await request.body())
    except msgspec.DecodeError:
        raise invalid("The body must be a rule or a list of rules.") from None
    world.faults.script(rules if isinstance(rules, list) else [rules])
    return answer({"rules": world.faults.rules()})


async def faults(request: Request) -> Response:
    return answer({"rules": world_of(request).faults.rules()})


async def clear_faults(request: Request) -> Response:
    world = world_of(request)
    world.faults.clear()
    return answer({"rules": world.faults.rules()})


async def ledger(request: Request) -> Response:
    return answer(world_of(request).ledger.report())


async def reset(request: Request) -> Response:
    world = world_of(request)
    async with world.progressing:
        world.reset()
    return answer({"reset": True})


async def advance_clock(request: Request) -> Response:
    """What falls due by the new time has happened when this is answered."""
    world = world_of(request)
    seconds = (await json_object(request)).get("advance_seconds")
    if seconds is None:
        raise missing("advance_seconds")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or seconds < 0:
        raise wrong_type("advance_seconds", "a number of seconds, not negative")
    world.advance_clock(seconds)
    await progress.catch_up(world)
    return answer({"now": world.clock.now(), "advanced_seconds": world.clock.advanced_seconds})


async def configure_webhook(request: Request) -> Response:
    return answer(world_of(request).webhooks.configure(await json_object(request)))


async def webhook_deliveries(request: Request) -> Response:
    return answer({"deliveries": world_of(request).webhooks.deliveries()})


async def remove_webhook(request: Request) -> Response:
    return answer(world_of(request).webhooks.configure({}))

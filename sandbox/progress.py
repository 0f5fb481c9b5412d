"""What goes on in the sandbox by itself: jobs train, batches run, webhooks leave."""

from __future__ import annotations

import asyncio
import logging

from sandbox import batches, training
from sandbox.world import World

_TICK_SECONDS = 0.05


async def catch_up(world: World) -> None:
    """Let everything happen that is due now."""
    async with world.progressing:
        for row in list(world.store.table("fine_tune").values()):
            if row["job"]["status"] not in training.TERMINAL:
                training.advance(world, row)
        for row in list(world.store.table("batch").values()):
            if row["batch"]["status"] not in batches.TERMINAL:
                await batches.advance(world, row)
    world.webhooks.send_due()
    world.store.flush()


async def run(world: World) -> None:
    while True:
        try:
            await catch_up(world)
        except Exception:
            logging.getLogger("sandbox").exception("the sandbox could not go on by itself")
        await asyncio.sleep(_TICK_SECONDS)

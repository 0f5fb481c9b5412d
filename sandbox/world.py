"""Everything one running sandbox knows, handed to each handler."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from datetime import date

from sandbox.catalog import CATALOG, Model
from sandbox.clock import Clock
from sandbox.errors import model_not_found
from sandbox.faults import Faults
from sandbox.ledger import Ledger
from sandbox.limits import Limits
from sandbox.options import Options
from sandbox.store import Json, Store
from sandbox.student import Mind
from sandbox.webhooks import Webhooks

ORGANIZATION = "sandbox"


class World:
    def __init__(self, options: Options) -> None:
        self.options = options
        self.clock = Clock(options.today)
        self.store = Store(options.data_dir)
        if kept := self.store.get("clock", "clock"):
            self.clock.advance(kept["advanced_seconds"])
        self.ledger = Ledger(self.store)
        self.faults = Faults(self.store, options.seed)
        self.limits = Limits(options)
        self.webhooks = Webhooks(self.store, self.clock)
        self.progressing = asyncio.Lock()
        self.batch_requests: dict[str, list[Json]] = {}
        self._minds: dict[str, Mind] = {}
        self._learning: dict[str, asyncio.Lock] = {}

    def new_id(self, prefix: str) -> str:
        return prefix + secrets.token_hex(12)

    def reset(self) -> None:
        self.store.clear()
        self.limits = Limits(self.options)
        self.ledger.max_in_flight = self.ledger.in_flight
        self.clock.advanced_seconds = 0.0
        self.batch_requests.clear()
        self._minds.clear()

    def advance_clock(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.store.put("clock", "clock", {"advanced_seconds": self.clock.advanced_seconds})

    def find_model(self, name: str) -> Model:
        """A model that answers now.  Retired, deleted, unknown and too fresh ones raise the same `model_not_found`."""
        model = self.any_model(name)
        if model is None or (model.shutdown_date is not None and model.shutdown_date <= self.clock.today()):
            raise model_not_found(name)
        trained = self.store.get("model", name)
        if trained is not None and self.clock.now() < trained["callable_at"]:
            raise model_not_found(name)
        return model

    def any_model(self, name: str) -> Model | None:
        """A model by name, retired or not; an alias gives its snapshot."""
        if model := CATALOG.get(name):
            return CATALOG[model.alias_of] if model.alias_of else model
        trained = self.store.get("model", name)
        return None if trained is None else self._student(trained)

    def forget_model(self, name: str) -> None:
        """The model, and what it has learned: that is made of training examples."""
        trained = self.store.get("model", name)
        if trained is not None:
            self.store.drop("model", name)
            self.store.drop_content(trained["knowledge"])
            self._minds.pop(trained["knowledge"], None)

    def _student(self, trained: Json) -> Model:
        base = CATALOG[trained["base"]]
        retires = trained["shutdown_date"]
        return replace(
            base,
            id=trained["id"],
            role="student",
            shutdown_date=date.fromisoformat(retires) if retires else None,
            knowledge=trained["knowledge"],
            owned_by=ORGANIZATION,
            created=trained["created"],
        )

    async def mind_of(self, model: Model) -> Mind | None:
        """What a student has learned, indexed once and kept; None for a model that was never trained here."""
        key = model.knowledge
        if key is None:
            return None
        async with self._learning.setdefault(key, asyncio.Lock()):
            if key not in self._minds:
                learned = self.store.content(key) or b""
                self._minds[key] = await asyncio.to_thread(Mind.of, learned)
            return self._minds[key]

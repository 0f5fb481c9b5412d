"""The models that a provider lists, and the catalogue of them that workers keep for the API."""

from __future__ import annotations

from typing import Literal

import msgspec

from shared.models import Record


class ListedModel(Record, frozen=True, kw_only=True):
    """As the provider lists it.  created: unix seconds.  shutdown_date: "YYYY-MM-DD"."""

    created: int | None = None
    owned_by: str | None = None
    shutdown_date: str | None = None


class Catalogue(Record, frozen=True, kw_only=True):
    """A provider's models, as a worker has read them.

    outcome: of the last look, at tried_at_ms; `unlisted`: the server has no list of models.  models: of the last look
    that went well, at read_at_ms; today: the day it was then, by the provider's clock."""

    outcome: Literal["ok", "auth_failed", "unreachable", "unlisted"]
    tried_at_ms: int
    read_at_ms: int | None = None
    today: str | None = None
    models: dict[str, ListedModel] = msgspec.field(default_factory=dict)

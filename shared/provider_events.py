"""What providers tell us by their own webhooks.  An event is a hint to look now: it is believed in nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec
from standardwebhooks import Webhook, WebhookVerificationError

from shared.errors import BadRequest
from shared.ids import JobId
from shared.store.followed import FollowedStore

#: First part of an event's type → what the id in it must begin with.
_ABOUT: Final[Mapping[str, str]] = {"fine_tuning": "ftjob-", "batch": "batch_"}
_ID_CHARS_MAX: Final = 128


class _Data(msgspec.Struct):
    id: str


class _Event(msgspec.Struct):
    type: str
    data: _Data


_events: Final = msgspec.json.Decoder(_Event)


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> None:
    """headers: by lower-case name.  Raises BadRequest `invalid_signature` for whatever is not signed with `secret`
    within the last five minutes, or the next five: clocks differ."""
    try:
        Webhook(secret).verify(body, dict(headers), json_parse=False)
    except (WebhookVerificationError, ValueError):  # ValueError: headers and bodies that are not even malformed right
        raise BadRequest(
            "The event is not signed with this provider's secret, or not within five minutes from now.",
            code="invalid_signature",
        ) from None


def subject(body: bytes) -> str | None:
    """Id of the fine-tuning job or batch that an event is about; None for any other event, and for what is none."""
    try:
        event = _events.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    prefix = _ABOUT.get(event.type.partition(".")[0])
    known = prefix is not None and event.data.id.startswith(prefix) and len(event.data.id) <= _ID_CHARS_MAX
    return event.data.id if known else None


class ProviderEvents:
    """secrets: of the providers that have one, by name.  ring: calls a worker for a job; never waits."""

    def __init__(self, followed: FollowedStore, secrets: Mapping[str, str], ring: Callable[[JobId], None]) -> None:
        self._followed = followed
        self._secrets = secrets
        self._ring = ring

    def secret(self, provider: str) -> str | None:
        return self._secrets.get(provider)

    async def take(self, provider: str, event_id: str, body: bytes) -> None:
        """A verified event.  event_id: the same at every delivery of it; a second one does nothing."""
        object_id = subject(body)
        if object_id is None or len(event_id) > _ID_CHARS_MAX:
            return
        job_id = await self._followed.hint(provider, object_id, event_id)
        if job_id is not None:
            self._ring(job_id)

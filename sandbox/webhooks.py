"""Webhooks out: signed as Standard Webhooks says, tried again until taken, doubled or reordered when asked to."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import secrets

import httpx2
import msgspec

from sandbox.clock import Clock
from sandbox.errors import invalid
from sandbox.store import Json, Store

_GIVE_UP_SECONDS = 72 * 3600.0
_TIMEOUT_SECONDS = 5.0


def signature(secret: str, *, delivery_id: str, timestamp: int, body: bytes) -> str:
    """secret: `whsec_` and base64, as shown when the endpoint was made."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = hmac.new(key, b"%b.%d.%b" % (delivery_id.encode(), timestamp, body), hashlib.sha256).digest()
    return "v1," + base64.b64encode(signed).decode()


class Webhooks:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._sending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def configure(self, endpoint: Json) -> Json:
        """endpoint: {url, secret?, duplicates? (further copies of each event), reorder?}; no URL, no webhooks."""
        if not endpoint.get("url"):
            self._store.drop("webhook", "endpoint")
            return {"url": None}
        kept = {
            "url": endpoint["url"],
            "secret": endpoint.get("secret") or "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode(),
            "duplicates": endpoint.get("duplicates", 0),
            "reorder": bool(endpoint.get("reorder", False)),
            "first_retry_seconds": endpoint.get("first_retry_seconds", 0.2),
        }
        try:
            base64.b64decode(str(kept["secret"]).removeprefix("whsec_"), validate=True)
        except ValueError:
            raise invalid("A webhook secret is whsec_ and base64.", param="secret") from None
        self._store.put("webhook", "endpoint", kept)
        return kept

    def emit(self, kind: str, object_id: str) -> None:
        """Queue an event; it leaves with the next `send_due`."""
        endpoint = self._store.get("webhook", "endpoint")
        if endpoint is None:
            return
        now = self._clock.now()
        event_id = "evt_" + secrets.token_hex(12)
        event = {"id": event_id, "object": "event", "type": kind, "created_at": int(now), "data": {"id": object_id}}
        delivery_id = "wh_" + secrets.token_hex(12)
        # A reordered event waits until one that came after it has overtaken it.
        late = 0.5 if endpoint["reorder"] and len(self._store.table("delivery")) % 2 == 0 else 0.0
        for copy in range(1 + endpoint["duplicates"]):
            row = {
                "delivery_id": delivery_id,
                "event": event,
                "attempts": [],
                "due_at": now + late + 0.1 * copy,
                "first_at": now,
                "done": False,
            }
            self._store.put("delivery", f"{delivery_id}-{copy}", row)

    def deliveries(self) -> list[Json]:
        return list(self._store.table("delivery").values())

    def send_due(self) -> None:
        """Start sending what is due.  Sending goes on by itself; a delivery is in the air once at a time."""
        endpoint = self._store.get("webhook", "endpoint")
        if endpoint is None:
            return
        now = self._clock.now()
        for key, row in list(self._store.table("delivery").items()):
            if not row["done"] and row["due_at"] <= now and key not in self._sending:
                self._sending.add(key)
                task = asyncio.create_task(self._send(key, row, endpoint))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _send(self, key: str, row: Json, endpoint: Json) -> None:
        body, timestamp = msgspec.json.encode(row["event"]), int(self._clock.now())
        headers = {
            "content-type": "application/json",
            "user-agent": "OpenAI/1.0 (+https://platform.openai.com/docs/webhooks)",
            "webhook-id": row["delivery_id"],
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(
                endpoint["secret"], delivery_id=row["delivery_id"], timestamp=timestamp, body=body
            ),
        }
        try:
            async with httpx2.AsyncClient(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
                status = (await client.post(endpoint["url"], content=body, headers=headers)).status_code
        except httpx2.HTTPError as error:
            status = 0
            row["attempts"].append(type(error).__name__)
        else:
            row["attempts"].append(status)
        now = self._clock.now()
        wait = endpoint["first_retry_seconds"] * 2 ** (len(row["attempts"]) - 1)
        row["done"] = 200 <= status < 300 or now + wait - row["first_at"] > _GIVE_UP_SECONDS
        row["due_at"] = now + wait
        if self._store.get("delivery", key) is row:
            self._store.put("delivery", key, row)
            self._store.flush()
        self._sending.discard(key)

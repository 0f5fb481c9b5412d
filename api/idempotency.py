"""`Idempotency-Key`: a request that may be repeated, and is carried out once."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, Header, Request
from pydantic import BaseModel

from shared.errors import BadRequest, StoreError
from shared.ids import TenantId
from shared.models import Job
from shared.store import Store
from shared.store.idempotency import Kept, Once

_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')  # a structured header's string, as the RFC draft asks for
_PLAIN: Final = re.compile(r"[\x20-\x7e]{1,255}")


async def idempotency_key(
    request: Request,
    _: Annotated[
        str | None,
        Header(alias="Idempotency-Key", description="bare or quoted; a repetition within 24 h makes no second job"),
    ] = None,
) -> str | None:
    sent = [value.strip() for value in request.headers.getlist("idempotency-key")]
    if not sent:
        return None
    quoted = _QUOTED.fullmatch(sent[0])
    key = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else sent[0]
    if len(sent) > 1 or not _PLAIN.fullmatch(key) or (quoted is None and '"' in key):
        raise BadRequest(
            "Idempotency-Key must be one text of 1 to 255 plain ASCII characters, bare or quoted.",
            code="invalid_idempotency_key",
        )
    return key


IdempotencyKey = Annotated[str | None, Depends(idempotency_key)]


async def _refuse_key(request: Request) -> None:
    if "idempotency-key" in request.headers:
        raise BadRequest(
            "This route takes no Idempotency-Key: sent twice, it is carried out twice.  Nothing was done.",
            code="idempotency_key_unsupported",
        )


#: Of a route that makes something anew each time it is asked, most of them a secret, which is not kept to be shown
#: again.  Who counts on a key there is told before anything is done.
NOT_REPEATABLE: Final = Depends(_refuse_key)


def repeatable(
    store: Store, tenant: TenantId, route: str, key: str | None, asked: BaseModel, answer: Callable[[Job], bytes]
) -> AbstractAsyncContextManager[Once | Kept | None]:
    """What to do with a request: carry it out under `Once`, or answer as before.  None: it came without a key.

    asked: the body with its defaults filled in, so that neither the order of its members nor a default that is sent
    along makes it another request."""
    return nullcontext() if key is None else _repeatable(store, tenant, route, key, asked, answer)


@asynccontextmanager
async def _repeatable(
    store: Store, tenant: TenantId, route: str, key: str, asked: BaseModel, answer: Callable[[Job], bytes]
) -> AsyncIterator[Once | Kept]:
    fingerprint = await asyncio.to_thread(_fingerprint, asked)
    begun = await store.idempotency.begin(tenant, route, key, fingerprint, answer)
    try:
        yield begun
    except BaseException:
        if isinstance(begun, Once):
            with suppress(StoreError):
                await store.idempotency.end(begun)
        raise


def _fingerprint(asked: BaseModel) -> str:
    value: Any = asked.model_dump(mode="json")
    return hashlib.sha256(msgspec.json.encode(value, order="sorted")).hexdigest()

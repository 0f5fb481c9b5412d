"""The models of one endpoint, over the openai SDK: which there are, until when, and whether any can be trained.

Servers differ: some have no list, some no route for one model, some a bare array for a list."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from shared.catalogue import ListedModel
from shared.errors import ProviderError, ProviderModelMissing, ProviderTrainingClosed, ProviderUnavailable
from shared.ports import ModelFacts, ModelList
from shared.settings import ProviderSettings
from worker.providers.sdk import asked, sdk_client

_MODELS_MAX: Final = 5_000
_LIST_MAX_BYTES: Final = 20_000_000
_ID_MAX_CHARS: Final = 300
_LIST_SECONDS: Final = 60.0
_NO_ROUTE: Final = frozenset({404, 405, 410, 501})


class _Model(msgspec.Struct):
    id: str
    created: Any = None
    owned_by: Any = None
    shutdown_date: Any = None


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


_lists: Final = msgspec.json.Decoder(_List | list[msgspec.Raw])


class OpenAIModels:
    def __init__(self, provider: ProviderSettings, *, timeout_seconds: float) -> None:
        self._client = sdk_client(provider, timeout_seconds)
        self._lists_all = provider.lists_models

    async def listed(self) -> ModelList:
        body, day = await asked(self._read(), seconds=_LIST_SECONDS)
        try:
            found = _lists.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProviderUnavailable("The list of models cannot be read.", provider_code="malformed_answer") from None
        models: dict[str, ListedModel] = {}
        for raw in found.data if isinstance(found, _List) else found:
            model = _parsed(raw)
            if model is not None and len(model.id) <= _ID_MAX_CHARS:
                models[model.id] = _public(model)
            if len(models) >= _MODELS_MAX:
                break
        return ModelList(models, day)

    async def _read(self) -> tuple[bytes, str]:
        """The body, counted as it arrives, and the provider's day."""
        parts, size = [], 0
        async with self._client.models.with_streaming_response.list() as response:
            async for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > _LIST_MAX_BYTES:
                    raise ProviderUnavailable("The list of models is too long.", provider_code="answer_too_large")
            return b"".join(parts), _day(response.headers.get)

    async def look_up(self, model: str) -> ModelFacts:
        try:
            answer = await asked(self._client.models.with_raw_response.retrieve(model))
        except ProviderModelMissing:
            return await self._on_the_list(model)
        found = _parsed(answer.content)
        return ModelFacts(ListedModel() if found is None else _public(found), _day(answer.headers.get))

    async def _on_the_list(self, model: str) -> ModelFacts:
        """A 404 counts only where the list says the same, and shows all there is: not every server has both routes."""
        try:
            listed = await self.listed()
        except ProviderError:
            return ModelFacts(ListedModel(), _day(lambda _: None))
        if self._lists_all and listed.models and model not in listed.models:
            raise ProviderModelMissing("The provider has no such model.", status=404)
        return ModelFacts(listed.models.get(model, ListedModel()), listed.today)

    async def require_training(self) -> None:
        try:
            await asked(self._client.fine_tuning.jobs.list(limit=1))
        except ProviderError as error:
            if error.status in _NO_ROUTE:
                raise ProviderTrainingClosed(
                    "The provider serves no fine-tuning jobs.",
                    status=error.status,
                    provider_code=error.provider_code,
                    request_id=error.request_id,
                ) from None
            raise

    async def close(self) -> None:
        await self._client.close()


def _parsed(raw: bytes | msgspec.Raw) -> _Model | None:
    try:
        return msgspec.json.decode(raw, type=_Model)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _public(model: _Model) -> ListedModel:
    return ListedModel(
        created=model.created if isinstance(model.created, int) and 0 <= model.created < 2**53 else None,
        owned_by=model.owned_by[:64] if isinstance(model.owned_by, str) else None,
        shutdown_date=model.shutdown_date[:10] if isinstance(model.shutdown_date, str) else None,
    )


def _day(header: Callable[[str], str | None]) -> str:
    """By the provider's clock where it says so (RFC 9110, Date): its dates are of its calendar."""
    text = header("date")
    try:
        moment = parsedate_to_datetime(text) if text else datetime.now(UTC)
    except (ValueError, TypeError):
        moment = datetime.now(UTC)
    return moment.astimezone(UTC).date().isoformat()

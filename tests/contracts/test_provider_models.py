"""A provider's models over real connections: with and without a list, by the provider's own calendar."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from sandbox.testing import SandboxProcess
from shared.errors import (
    ProviderAuthFailed,
    ProviderError,
    ProviderModelMissing,
    ProviderTrainingClosed,
    ProviderUnavailable,
)
from shared.settings import ProviderSettings
from worker.providers.openai_models import OpenAIModels

pytestmark = pytest.mark.anyio
STUDENT = "gpt-4.1-mini-2025-04-14"


@pytest.fixture(scope="module")
def sandbox():
    with SandboxProcess(today="2026-10-01") as running:
        yield running


class Server:
    """Plain HTTP on loopback.  answers: path → (status, body); every other path is 404."""

    def __init__(self, answers, *headers, **provider):
        self.answers, self.headers, self.provider, self.asked = answers, headers, provider, []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._models = OpenAIModels(ProviderSettings(base_url=url, **self.provider), timeout_seconds=5)
        return self._models

    async def __aexit__(self, *_):
        await self._models.close()
        self._server.close()

    async def _serve(self, reader, writer):
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode().partition("?")[0]
        self.asked.append(path)
        status, body = self.answers.get(path, (404, {"error": {"message": "no", "type": "x", "code": None}}))
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(text)}"]
        writer.write("\r\n".join([*head, *self.headers, "connection: close", "", ""]).encode() + text)
        await writer.drain()
        writer.close()


async def test_the_sandboxes_models_are_read_with_their_last_days_and_its_calendar(sandbox):
    models = OpenAIModels(ProviderSettings(base_url=sandbox.base_url, api_key="sk-test"), timeout_seconds=5)

    listed = await models.listed()
    found = await models.look_up(STUDENT)
    await models.require_training()

    assert listed.today == found.today == "2026-10-01"
    assert listed.models[STUDENT] == found.model
    assert found.model.shutdown_date == "2027-01-14"
    with pytest.raises(ProviderModelMissing):
        await models.look_up("gpt-17")
    await models.close()


async def test_a_refused_key_is_told_from_a_missing_model(sandbox):
    models = OpenAIModels(ProviderSettings(base_url=sandbox.base_url, api_key="sk-invalid"), timeout_seconds=5)
    for ask in (models.listed(), models.look_up(STUDENT), models.require_training()):
        with pytest.raises(ProviderAuthFailed):
            await ask
    await models.close()


async def test_a_server_without_a_route_for_one_model_is_asked_for_its_list():
    listed = {"object": "list", "data": [{"id": "qwen", "owned_by": 7}, {"no": "id"}, "x"]}
    async with Server({"/v1/models": (200, listed)}, "date: Wed, 25 Nov 2026 23:59:59 GMT") as models:
        found = await models.look_up("qwen")
        assert (found.model.owned_by, found.model.shutdown_date, found.today) == (None, None, "2026-11-25")
        with pytest.raises(ProviderModelMissing):
            await models.look_up("llama")


async def test_a_server_that_lists_only_some_of_its_models_lacks_none_and_tells_last_days_of_those():
    listed = {"data": [{"id": "gpt-4.1", "shutdown_date": "2027-01-14"}]}
    async with Server({"/v1/models": (200, listed)}, lists_models=False) as models:
        assert (await models.look_up("our-deployment")).model.shutdown_date is None
        assert (await models.look_up("gpt-4.1")).model.shutdown_date == "2027-01-14"


async def test_a_bare_array_is_a_list_too_and_a_server_without_a_date_has_ours():
    async with Server({"/v1/models": (200, [{"id": "qwen", "created": 5}])}) as models:
        listed = await models.listed()
    assert listed.models["qwen"].created == 5
    assert listed.today == datetime.now(UTC).date().isoformat()


async def test_a_server_that_lists_nothing_lacks_no_model():
    async with Server({}) as nothing, Server({"/v1/models": (200, {"data": []})}) as empty:
        assert (await nothing.look_up("anything")).model.shutdown_date is None
        assert (await empty.look_up("anything")).model.shutdown_date is None
        with pytest.raises(ProviderModelMissing):
            await nothing.listed()


@pytest.mark.parametrize("body", [b"<html>", b'{"data": 5}', b"[" * 100_000, b'"' + b"x" * 21_000_000 + b'"'])
async def test_a_list_that_cannot_be_read_is_no_list(body):
    async with Server({"/v1/models": (200, body)}) as models:
        with pytest.raises(ProviderUnavailable):
            await models.listed()


async def test_only_so_many_models_are_kept():
    rows = [{"id": f"m-{n}"} for n in range(6_000)]
    async with Server({"/v1/models": (200, {"data": rows})}) as models:
        assert len((await models.listed()).models) == 5_000


@pytest.mark.parametrize(
    ("status", "error"), [(404, ProviderTrainingClosed), (405, ProviderTrainingClosed), (500, ProviderError)]
)
async def test_a_server_without_fine_tuning_jobs_does_not_train(status, error):
    async with Server({"/v1/fine_tuning/jobs": (status, {"error": None})}) as models:
        with pytest.raises(error) as raised:
            await models.require_training()
    assert isinstance(raised.value, ProviderTrainingClosed) is (status != 500)

"""Both clients of a teacher over real connections: the same request, the same judgement, and never a second request."""

import asyncio
import contextlib
import json
import time

import pytest

from shared.errors import ProviderError, ProviderRateLimited, ProviderUnavailable
from shared.ports import CompletionRequest
from shared.settings import ProviderSettings
from worker.providers.lean import LeanTeacher
from worker.providers.openai import OpenAITeacher

pytestmark = pytest.mark.anyio
CLIENTS = {"lean": LeanTeacher, "sdk": OpenAITeacher}
BODY = {
    "model": "gpt-4.1",
    "messages": [{"role": "user", "content": 'Où est la facture "7" ? 🙂'}],
    "temperature": 0.5,
    "max_completion_tokens": 64,
    "metadata": {"distillation_job": "job_1", "prompt": "3"},
    "store": True,
}
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4.1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Là."}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }
).encode()


def http(status=200, body=ANSWER, *headers):
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Server:
    """Plain TCP on loopback.  behave(request, writer) answers; every request that arrives whole is kept."""

    def __init__(self, behave):
        self.behave = behave
        self.connections = 0
        self.requests = []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        self._tasks = set()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _serve(self, reader, writer):
        self._tasks.add(asyncio.current_task())
        self.connections += 1
        try:
            while self.behave is not hang_up_unread and await self._one(reader, writer) is not False:
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.requests.append((first, headers, body))
        return await self.behave(len(self.requests), writer)


def saying(answer):
    async def behave(_, writer):
        writer.write(answer)
        await writer.drain()

    return behave


async def hang_up(_, writer):
    return False


async def hang_up_unread(_, writer):
    return False


async def never_answer(_, writer):
    await asyncio.sleep(60)


async def drip(_, writer):
    writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(ANSWER)}\r\n\r\n".encode())
    for place in range(len(ANSWER)):
        writer.write(ANSWER[place : place + 1])
        await writer.drain()
        await asyncio.sleep(0.1)


async def pour(_, writer):
    """40 MB."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 40000000\r\n\r\n")
    for _ in range(400):
        writer.write(b" " * 100_000)
        await writer.drain()


#: pyreqwest calls everything that fails before the first byte of the answer a failure to connect.


@pytest.fixture(params=sorted(CLIENTS))
def kind(request):
    return request.param


@contextlib.asynccontextmanager
async def asking(kind, behave, **settings):
    async with Server(behave) as server:
        client = CLIENTS[kind](ProviderSettings(base_url=server.url, api_key="sk-test", **settings))
        try:
            yield client, server
        finally:
            await client.close()


async def error_from(kind, behave, *, timeout_seconds=5.0, **settings):
    """(error, the server, seconds it took)"""
    async with asking(kind, behave, **settings) as (client, server):
        started = time.monotonic()
        with pytest.raises(ProviderError) as caught:
            await client.complete(CompletionRequest(BODY, timeout_seconds))
        return caught.value, server, time.monotonic() - started


# --- the request -----------------------------------------------------------------------------------------------------


async def test_the_lean_client_sends_what_the_sdk_sends():
    seen = {}
    for kind in CLIENTS:
        async with asking(kind, saying(http())) as (client, server):
            await client.complete(CompletionRequest(BODY, 5.0))
        seen[kind] = server.requests[0]

    (first, headers, body), (sdk_first, sdk_headers, sdk_body) = seen["lean"], seen["sdk"]
    assert first == sdk_first == "POST /v1/chat/completions HTTP/1.1"
    assert json.loads(body) == json.loads(sdk_body) == BODY
    for name in ("authorization", "content-type", "accept"):
        assert headers[name] == sdk_headers[name], name
    meaningless = ("x-stainless", "user-agent", "host", "connection", "accept-encoding", "content-length")
    assert {n for n in sdk_headers if not n.startswith(meaningless)} == {
        n for n in headers if not n.startswith(meaningless)
    }


async def test_the_operators_headers_go_with_every_call(kind):
    async with asking(kind, saying(http()), headers={"OpenAI-Project": "proj_1"}) as (client, server):
        await client.complete(CompletionRequest(BODY, 5.0))

    headers = server.requests[0][1]
    assert (headers["openai-project"], headers["authorization"]) == ("proj_1", "Bearer sk-test")


async def test_an_answer_is_read_alike(kind):
    answer = http(200, ANSWER, "x-request-id: req_1", "x-ratelimit-limit-requests: 500")
    async with asking(kind, saying(answer)) as (client, _):
        completion = await client.complete(CompletionRequest(BODY, 5.0))

    assert completion.raw == ANSWER
    assert completion.message["content"] == "Là."
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (9, 2)
    assert completion.provider_request_id == "req_1"
    assert completion.limits.requests_per_minute == 500


async def test_one_connection_serves_many_calls(kind):
    async with asking(kind, saying(http())) as (client, server):
        for _ in range(5):
            await client.complete(CompletionRequest(BODY, 5.0))

    assert (len(server.requests), server.connections) == (5, 1)


# --- trouble, each with exactly one request ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_a_failed_call_is_not_repeated(kind, status):
    error, server, _ = await error_from(kind, saying(http(status, b"{}", "retry-after: 0", "x-should-retry: true")))

    assert error.status == status
    assert len(server.requests) == 1


async def test_the_time_to_wait_arrives(kind):
    error, _, _ = await error_from(
        kind, saying(http(429, b'{"error":{"code":"rate_limit_exceeded"}}', "retry-after: 7"))
    )

    assert isinstance(error, ProviderRateLimited)
    assert error.retry_after_seconds == 7.0


async def test_html_with_status_200_is_no_answer(kind):
    error, server, _ = await error_from(kind, saying(http(200, b"<html>maintenance</html>")))

    assert (error.provider_code, error.billed_maybe) == ("malformed_answer", True)
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", ["lean", "sdk"])
async def test_a_connection_dropped_after_the_request_was_read_may_have_been_billed(kind):
    error, server, _ = await error_from(kind, hang_up)

    assert isinstance(error, ProviderUnavailable)
    assert error.billed_maybe
    assert len(server.requests) == 1


async def test_a_connection_dropped_after_it_served_others_is_not_tried_again(kind):
    """A request on a kept connection that dies is the one that HTTP clients like to repeat by themselves."""

    async def once_then_hang_up(number, writer):
        if number == 1:
            await saying(http())(number, writer)
            return None
        return False

    async with asking(kind, once_then_hang_up) as (client, server):
        await client.complete(CompletionRequest(BODY, 5.0))
        with pytest.raises(ProviderUnavailable):
            await client.complete(CompletionRequest(BODY, 5.0))

    assert len(server.requests) == 2


async def test_a_connection_dropped_before_the_request_was_read_brings_no_request(kind):
    error, server, _ = await error_from(kind, hang_up_unread)

    assert isinstance(error, ProviderUnavailable)
    assert (len(server.requests), server.connections) == (0, 1)


async def test_nobody_listening_is_told_as_not_billed():
    async with Server(never_answer) as server:
        gone = server.url
    client = LeanTeacher(ProviderSettings(base_url=gone))

    with pytest.raises(ProviderUnavailable) as caught:
        await client.complete(CompletionRequest(BODY, 5.0))

    await client.close()
    assert not caught.value.billed_maybe


@pytest.mark.parametrize("kind", ["lean", "sdk"])
async def test_an_answer_that_does_not_come_is_given_up_in_time(kind):
    error, server, seconds = await error_from(kind, never_answer, timeout_seconds=0.4)

    assert (error.provider_code, error.billed_maybe) == ("timeout", True)
    assert seconds < 2
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "kind",
    [
        "lean",
        "sdk",
    ],
)
async def test_a_slow_drip_is_given_up_in_time(kind):
    async with asking(kind, drip) as (client, _):
        async with asyncio.timeout(3):
            with pytest.raises(ProviderUnavailable) as caught:
                await client.complete(CompletionRequest(BODY, 0.5))

    assert caught.value.provider_code == "timeout"


async def test_an_answer_of_40_megabytes_is_refused_and_not_read_to_the_end():
    error, server, _ = await error_from("lean", pour, answer_max_bytes=1_000_000)

    assert error.provider_code == "answer_too_large"
    assert len(server.requests) == 1


async def test_a_redirect_is_not_followed_with_the_key():
    async with Server(saying(http())) as elsewhere:
        error, server, _ = await error_from(
            "lean", saying(http(307, b"", f"location: {elsewhere.url}/chat/completions"))
        )

    assert error.status == 307
    assert (len(server.requests), len(elsewhere.requests)) == (1, 0)


async def test_errors_carry_no_key(kind):
    error, _, _ = await error_from(kind, saying(http(401, b'{"error":{"message":"sk-test","code":"invalid_api_key"}}')))

    assert "sk-test" not in f"{error!r} {vars(error)} {error.__cause__!r} {error.__suppress_context__}"

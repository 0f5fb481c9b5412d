"""The pump's client: one chat completion at the cost of a few hundred microseconds.

The openai SDK spends 20 to 60 times the CPU on the same request (docs/decisions/0003).  tests/contracts compares what
the two send; the SDK stays behind the same port as `client = "sdk"`."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Final

import msgspec
from pyreqwest.client import ClientBuilder
from pyreqwest.exceptions import DetailedPyreqwestError, PyreqwestError, RequestTimeoutError
from pyreqwest.response import Response

from shared.errors import ProviderUnavailable
from shared.ports import Completion, CompletionRequest
from shared.settings import ProviderSettings
from worker.providers.answers import error_of, parse_completion, word

_encoder: Final = msgspec.json.Encoder()
_CONNECT_SECONDS: Final = 5


class LeanTeacher:
    """Chat completions of one OpenAI-compatible endpoint over a keep-alive pool as wide as its in-flight limit."""

    def __init__(self, provider: ProviderSettings) -> None:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        headers |= {name: value.get_secret_value() for name, value in provider.headers.items()}
        if provider.api_key is not None:
            headers["Authorization"] = f"Bearer {provider.api_key.get_secret_value()}"
        self._url = provider.base_url.rstrip("/") + "/chat/completions"
        self._answer_max_bytes = provider.answer_max_bytes
        self._client = (
            ClientBuilder()
            .default_headers(headers)
            .user_agent("distillery")
            .no_proxy()
            .follow_redirects(False)
            .connect_timeout(timedelta(seconds=_CONNECT_SECONDS))
            .pool_max_idle_per_host(provider.max_in_flight)
            .pool_idle_timeout(timedelta(seconds=15))
            .build()
        )

    async def complete(self, request: CompletionRequest) -> Completion:
        started = time.monotonic()
        call = (
            self._client.post(self._url)
            .body_bytes(_encoder.encode(request.body))
            .timeout(timedelta(seconds=request.timeout_seconds))
            .build_streamed()
        )
        try:
            async with call as response:
                body = await self._read(response)
        except DetailedPyreqwestError as error:
            raise _unavailable(error) from error
        except PyreqwestError as error:
            raise ProviderUnavailable("The connection to the provider broke.", provider_code="disconnected") from error
        if response.status != 200:
            raise error_of(response.status, body, response.get_header)
        return parse_completion(body, response.get_header, latency_ms=int((time.monotonic() - started) * 1000))

    async def _read(self, response: Response) -> bytes:
        """The whole body, refused once it is larger than any answer we would keep."""
        parts: list[bytes] = []
        size = 0
        while (part := await response.body_reader.read_chunk()) is not None:
            size += len(part)
            if size > self._answer_max_bytes:
                raise ProviderUnavailable(
                    "The provider's answer is larger than `answer_max_bytes`.",
                    status=response.status,
                    provider_code="answer_too_large",
                    request_id=word(response.get_header("x-request-id")),
                )
            parts.append(bytes(part))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def close(self) -> None:
        await self._client.close()


def _unavailable(error: DetailedPyreqwestError) -> ProviderUnavailable:
    """pyreqwest calls every failure to get an answer a ConnectError; only its causes tell whether the request left."""
    causes = [cause["message"] for cause in error.details["causes"] or ()]
    if any(cause.startswith("client error (Connect)") for cause in causes):
        return ProviderUnavailable(
            "The provider cannot be reached.", billed_maybe=False, provider_code="connection_failed"
        )
    if isinstance(error, RequestTimeoutError):
        return ProviderUnavailable("The provider did not answer in time.", provider_code="timeout")
    return ProviderUnavailable("The connection to the provider broke.", provider_code="disconnected")

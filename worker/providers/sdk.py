"""What every adapter over the openai SDK shares: its client, its errors in our words, its list pages.

Every call goes out once (`max_retries=0`): the SDK would repeat a POST whose answer was lost, and submit twice.  SDK
exceptions carry the Authorization header, so none leaves this package; ours are raised `from None`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, Protocol, TypeVar

import openai
from openai import AsyncOpenAI
from openai.pagination import AsyncCursorPage

from shared.errors import ProviderModelMissing, ProviderUnavailable
from shared.settings import ProviderSettings
from worker.providers.answers import error_of

T = TypeVar("T")
Raw = TypeVar("Raw")

LONGEST_CALL_SECONDS: Final = 900.0  # the upload of half a gigabyte included
_LIST_PAGES_MAX: Final = 100


class Submitted(Protocol):
    """A job or batch as the provider lists it."""

    @property
    def created_at(self) -> int: ...

    @property
    def metadata(self) -> dict[str, str]: ...


Job = TypeVar("Job", bound=Submitted)


def sdk_client(provider: ProviderSettings, timeout_seconds: float) -> AsyncOpenAI:
    key = provider.api_key.get_secret_value() if provider.api_key else "none"
    return AsyncOpenAI(
        api_key=key,
        base_url=provider.base_url,
        max_retries=0,
        timeout=timeout_seconds,
        default_headers={name: value.get_secret_value() for name, value in provider.headers.items()},
    )


async def asked(answer: Awaitable[T], *, seconds: float = LONGEST_CALL_SECONDS) -> T:
    """The SDK's answer, its exceptions in our words.  seconds: for the whole call; the SDK's own time-out is per read,
    and a slow drip outlasts it."""
    try:
        async with asyncio.timeout(seconds):
            return await answer
    except TimeoutError:
        raise ProviderUnavailable("The provider did not answer in time.", provider_code="timeout") from None
    except openai.APITimeoutError:
        raise ProviderUnavailable("The provider did not answer in time.", provider_code="timeout") from None
    except openai.APIConnectionError:
        raise ProviderUnavailable("The connection to the provider broke.", provider_code="disconnected") from None
    except openai.APIStatusError as error:
        raise error_of(error.status_code, error.response.content, error.response.headers.get) from None
    except (openai.OpenAIError, ValueError):
        raise ProviderUnavailable("The provider's answer cannot be read.", provider_code="malformed_answer") from None


async def pages(first: Awaitable[AsyncCursorPage[Raw]]) -> AsyncIterator[list[Raw]]:
    """The pages of a list, each asked for when the one before is used up; bounded, so that no list holds a worker."""
    page = await asked(first)
    for _ in range(_LIST_PAGES_MAX):
        yield page.data
        if not page.has_next_page():
            return
        page = await asked(page.get_next_page())


async def files_named(client: AsyncOpenAI, purpose: Any, prefix: str, *, not_before: int) -> list[str]:
    """Ids of files of one purpose whose names begin with `prefix`, newest first, read down to `not_before` (unix s)."""
    found: list[str] = []
    async for page in pages(client.files.list(purpose=purpose, limit=1000, order="desc")):
        found += [file.id for file in page if file.filename.startswith(prefix)]
        if page and page[-1].created_at < not_before:
            break
    return found


async def deleted(answer: Awaitable[Any]) -> bool:
    """Whether the thing was there to be deleted: after a 404 it is gone just the same."""
    try:
        await asked(answer)
    except ProviderModelMissing:
        return False
    return True


async def lost_jobs(
    listed: AsyncIterator[list[Raw]],
    read: Callable[[Raw], Job],
    metadata: dict[str, str],
    *,
    file: Callable[[Job], str | None],
    of_file: str,
    not_before: int,
) -> list[Job]:
    """What an earlier submission made, oldest first: told by our metadata, or by the file that is only ours, for not
    every server filters by metadata, or keeps it.

    listed: newest first; read until a page ends before `not_before` (unix s), which is before any of ours.
    file: the file that a job was made from, `of_file` for ours."""
    found: list[Job] = []
    async for page in listed:
        jobs = [read(raw) for raw in page]
        found += [
            job
            for job in jobs
            if file(job) == of_file or all(job.metadata.get(name) == value for name, value in metadata.items())
        ]
        if jobs and jobs[-1].created_at < not_before:
            break
    return sorted((job for job in found if job.created_at >= not_before), key=lambda job: job.created_at)

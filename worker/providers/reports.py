"""What a provider reports of a training besides its events."""

from __future__ import annotations

from typing import Final

import httpx2
import openai
import structlog
from openai import AsyncOpenAI
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint

from shared.errors import ProviderUnavailable
from shared.models import Checkpoint
from shared.training_metrics import point_of
from worker.providers.answers import error_of

_log: Final = structlog.get_logger()
_RESULT_BYTES_MAX: Final = 20_000_000  # some hundred thousand steps


def checkpoint_of(found: FineTuningJobCheckpoint) -> Checkpoint:
    measured = found.to_dict().get("metrics")
    return Checkpoint(
        id=found.id,
        created_at=found.created_at,
        step=found.step_number,
        model=found.fine_tuned_model_checkpoint,
        metrics=point_of({**(measured if isinstance(measured, dict) else {}), "step": found.step_number}),
    )


async def read_result_file(client: AsyncOpenAI, file_id: str) -> bytes:
    """The file, up to 20 MB of it; empty when it is gone.  Raises a `ProviderError`."""
    content = bytearray()
    try:
        async with client.files.with_streaming_response.content(file_id) as response:
            async for part in response.iter_bytes(65_536):
                content += part
                if len(content) > _RESULT_BYTES_MAX:
                    _log.warning("result_file_cut", file=file_id, bytes=_RESULT_BYTES_MAX)
                    break
    except openai.NotFoundError:
        return b""
    except openai.APIStatusError as error:
        raise error_of(error.status_code, error.response.content, error.response.headers.get) from None
    except (openai.OpenAIError, httpx2.HTTPError, httpx2.StreamError):
        raise ProviderUnavailable(
            "The result file could not be read to its end.", billed_maybe=False, provider_code="disconnected"
        ) from None
    return bytes(content[:_RESULT_BYTES_MAX])

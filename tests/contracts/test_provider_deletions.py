"""Deleting through the SDK, against the sandbox over HTTP: each call once, what is gone is no error."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox.testing import SandboxProcess
from shared.errors import ProviderAuthFailed, ProviderUnavailable
from shared.settings import ProviderSettings
from worker.providers.openai import OpenAIArchive, OpenAITrainer
from worker.providers.openai_batches import OpenAIBatcher

pytestmark = pytest.mark.anyio
KEY = "sk-sandbox"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[SandboxProcess]:
    with SandboxProcess(latency_seconds=0.01, today="2026-11-22") as running:
        yield running


@pytest.fixture
async def clients(sandbox: SandboxProcess) -> AsyncIterator[tuple[OpenAITrainer, OpenAIBatcher, OpenAIArchive]]:
    sandbox.reset()
    settings = ProviderSettings(base_url=sandbox.base_url, api_key=KEY, can_store=True)
    made = [kind(settings, timeout_seconds=5) for kind in (OpenAITrainer, OpenAIBatcher, OpenAIArchive)]
    yield made[0], made[1], made[2]
    for client in made:
        await client.close()


def deletions(sandbox: SandboxProcess) -> int:
    return sum(sum(n.values()) for route, n in sandbox.ledger()["requests"].items() if route.startswith("DELETE /v1"))


async def test_files_are_found_by_the_beginning_of_their_names_and_deleted(
    sandbox: SandboxProcess, clients: Any, tmp_path: Path
):
    path = tmp_path / "lines.jsonl"
    path.write_text('{"messages": []}\n')
    for client in clients[:2]:
        ours = [await client.upload(path, f"distill-job_1-{n}.jsonl") for n in range(2)]
        other = await client.upload(path, "distill-job_2-0.jsonl")
        assert set(await client.find_files("distill-job_1-", not_before=0)) == set(ours)
        assert await client.delete_file(ours[0])
        assert not await client.delete_file(ours[0])
        assert await client.find_files("distill-job_1-", not_before=0) == [ours[1]]
        assert await client.find_files("distill-job_2-", not_before=0) == [other]
    assert deletions(sandbox) == 4


async def test_a_stored_completion_is_listed_by_metadata_alone_and_deleted(sandbox: SandboxProcess, clients: Any):
    for job in ("job_1", "job_2"):
        body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Where is my invoice?"}], "store": True}
        body["metadata"] = {"distillation_job": job}
        httpx2.post(
            f"{sandbox.base_url}/chat/completions", json=body, headers={"Authorization": f"Bearer {KEY}"}
        ).raise_for_status()
    archive = clients[2]
    [found] = (await archive.page(None, {"distillation_job": "job_1"}, after=None)).completions
    assert await archive.delete(found.id)
    assert not await archive.delete(found.id)
    assert (await archive.page(None, {"distillation_job": "job_1"}, after=None)).completions == []
    assert len((await archive.page(None, {"distillation_job": "job_2"}, after=None)).completions) == 1


async def test_a_model_that_is_gone_is_no_error_and_one_of_the_provider_s_own_is_refused(clients: Any):
    assert not await clients[0].delete_model("ft:gpt-4.1:sandbox::gone")
    with pytest.raises(ProviderAuthFailed) as refused:
        await clients[0].delete_model("gpt-4.1")
    assert refused.value.status == 403


async def test_a_deletion_is_asked_once_and_its_trouble_is_told_in_our_words(sandbox: SandboxProcess, clients: Any):
    trainer, _, archive = clients
    match = {"method": "DELETE"}
    sandbox.faults([{"match": match, "times": 1, "fault": {"kind": "server_error"}},
                    {"match": match, "times": 1, "fault": {"kind": "drop"}}])  # fmt: skip
    with pytest.raises(ProviderUnavailable):
        await trainer.delete_file("file-1")
    with pytest.raises(ProviderUnavailable):
        await archive.delete("chatcmpl-1")
    assert sum(rule["hits"] for rule in sandbox.admin("faults")["rules"]) == 2
    assert not await trainer.delete_file("file-1")

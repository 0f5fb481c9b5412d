"""The trainer over real HTTP, against the sandbox: files of any size stored once, submissions found again."""

import asyncio
import json
import tracemalloc

import httpx2
import pytest

from sandbox.testing import SandboxProcess
from shared.errors import (
    ProviderAuthFailed,
    ProviderModelMissing,
    ProviderRejected,
    ProviderTrainingClosed,
    ProviderUnavailable,
)
from shared.ports import TrainingRequest
from shared.settings import ProviderSettings
from worker.providers.openai import OpenAITrainer
from worker.providers.uploads import Window

pytestmark = pytest.mark.anyio
EXAMPLE = b'{"messages":[{"role":"user","content":"Where is it?"},{"role":"assistant","content":"Here."}]}\n'
LARGE = EXAMPLE * 200  # 19 parts of 1,000 bytes
NAME = "distill-job_1-abc-0-train.jsonl"


@pytest.fixture(scope="module")
def sandbox():
    with SandboxProcess(training_seconds=1) as running:
        yield running


@pytest.fixture
async def trainer(sandbox, anyio_backend):
    sandbox.reset()
    made = a_trainer(sandbox)
    yield made
    await made.close()


def a_trainer(sandbox, *, timeout_seconds=5.0, **fields):
    limits = {"upload_max_bytes": 5_000, "upload_part_bytes": 1_000}
    settings = ProviderSettings(base_url=sandbox.base_url, api_key="sk-test", **limits | fields)
    return OpenAITrainer(settings, timeout_seconds=timeout_seconds)


def a_file(folder, content=LARGE):
    path = folder / NAME
    path.write_bytes(content)
    return path


def stored(sandbox):
    """(name, content) of every file at the provider."""
    key = {"Authorization": "Bearer sk-test"}
    with httpx2.Client(base_url=sandbox.base_url, headers=key) as client:
        files = client.get("/files").raise_for_status().json()["data"]
        return [(file["filename"], client.get(f"/files/{file['id']}/content").content) for file in files]


def fault(path, kind, **rule):
    return {"match": {"path": path, "method": "POST"}, "fault": {"kind": kind, **rule.pop("fault", {})}, **rule}


def struck(sandbox):
    return [rule["hits"] for rule in sandbox.admin("faults")["rules"]]


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [EXAMPLE * 12, LARGE], ids=["in one request", "in parts"])
async def test_a_file_is_stored_byte_for_byte(sandbox, trainer, tmp_path, content):
    file_id = await trainer.upload(a_file(tmp_path, content), NAME)

    assert stored(sandbox) == [(NAME, content)]
    assert await trainer.find_files(NAME, not_before=0) == [file_id]


async def test_a_part_that_fails_is_sent_again_and_no_other(sandbox, trainer, tmp_path):
    faults = [fault("/uploads/*/parts", kind, skip=skip) for kind, skip in (("server_error", 0), ("overloaded", 5))]
    sandbox.faults(faults)

    await trainer.upload(a_file(tmp_path), NAME)

    assert struck(sandbox) == [1, 1]
    assert stored(sandbox) == [(NAME, LARGE)]


REFUSED = [(path, "error", ProviderRejected) for path in ("/uploads", "/uploads/*/parts", "/uploads/*/complete")]


@pytest.mark.parametrize(("path", "kind", "error"), [*REFUSED, ("/uploads/*/parts", "drop", ProviderUnavailable)])
async def test_an_upload_that_fails_leaves_no_file_and_nothing_that_could_become_one(
    sandbox, trainer, tmp_path, path, kind, error
):
    sandbox.faults([fault(path, kind, fault={"status": 400} if kind == "error" else {}, times=9)])

    with pytest.raises(error):
        await trainer.upload(a_file(tmp_path), NAME)

    sandbox.clear_faults()
    assert stored(sandbox) == []
    await trainer.upload(a_file(tmp_path), NAME)
    assert stored(sandbox) == [(NAME, LARGE)]


async def test_an_upload_whose_completion_is_not_answered_is_found_by_its_name(sandbox, trainer, tmp_path):
    sandbox.faults([fault("/uploads/*/complete", "drop_after_work")])

    with pytest.raises(ProviderUnavailable):
        await trainer.upload(a_file(tmp_path), NAME)

    assert len(await trainer.find_files(NAME, not_before=0)) == 1
    assert stored(sandbox) == [(NAME, LARGE)]


async def test_a_provider_without_multi_part_uploads_says_no_to_the_file_and_not_to_the_model(
    sandbox, trainer, tmp_path
):
    sandbox.faults([fault("/uploads", "error", fault={"status": 404})])

    with pytest.raises(ProviderRejected):
        await trainer.upload(a_file(tmp_path), NAME)


async def test_files_are_found_newest_first_by_how_their_names_begin(sandbox, trainer, tmp_path):
    path = a_file(tmp_path, EXAMPLE * 12)
    first, second = await trainer.upload(path, NAME), await trainer.upload(path, NAME)
    await trainer.upload(path, "distill-job_2-abc-0-train.jsonl")

    assert set(await trainer.find_files("distill-job_1-", not_before=0)) == {first, second}
    assert await trainer.delete_file(first)
    assert not await trainer.delete_file(first)
    assert await trainer.find_files("distill-job_1-", not_before=0) == [second]


def test_a_part_is_read_as_it_is_sent_whatever_its_size(tmp_path):
    path = tmp_path / "large.jsonl"
    path.write_bytes(bytes(range(256)) * 4096 * 24)  # 24 MiB
    tracemalloc.start()
    with Window(path, 1_000_000, 20_000_000) as part:
        assert part.seek(0, 2) == 20_000_000
        part.seek(0)
        read = sum(len(piece) for piece in iter(lambda: part.read(65_536), b""))
        part.seek(256)
        assert part.read(3) == bytes([(1_000_000 + 256) % 256 + n for n in range(3)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert read == 20_000_000
    assert peak < 1_000_000
    with Window(path, 24 * 1024**2 - 5, 100) as last:
        assert len(last.read()) == 5


# --- fine-tuning jobs ------------------------------------------------------------------------------------------------

STUDENT = "gpt-4.1-mini-2025-04-14"


def a_training_request(**fields):
    defaults = {
        "model": STUDENT,
        "training_file": "file-1",
        "validation_file": None,
        "method": "supervised",
        "hyperparameters": {},
        "suffix": None,
        "seed": None,
        "metadata": {"distillation_job_id": "job_1", "student": "0"},
    }
    return TrainingRequest(**defaults | fields)


class Recorder:
    """A provider that answers every request alike, and keeps what it was sent."""

    def __init__(self, body, status=200):
        self.sent = []
        self._answer = (status, body)

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.base_url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        self.sent.append((head, json.loads(await reader.readexactly(length) or "null")))
        status, body = self._answer
        body = json.dumps(body).encode() if body is not None else b""
        kind = "content-type: application/json\r\nconnection: close\r\n"
        writer.write(f"HTTP/1.1 {status} X\r\n{kind}content-length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


def a_job_object(**fields):
    return {"id": "ftjob-1", "object": "fine_tuning.job", "created_at": 1, "status": "queued", **fields}


async def submitted(request, answer=None, *, status=200, **fields):
    """(what was sent, what became of it)"""
    async with Recorder(answer or a_job_object(), status) as provider:
        settings = ProviderSettings(base_url=provider.base_url, api_key="sk-test", **fields)
        made = OpenAITrainer(settings, timeout_seconds=5)
        try:
            return await made.submit(request), provider.sent
        finally:
            await made.close()


async def test_a_submission_says_what_was_asked_and_leaves_out_what_is_auto():
    wandb = {"type": "wandb", "wandb": {"project": "triage", "tags": ["a"]}}
    request = a_training_request(
        hyperparameters={"n_epochs": 3, "batch_size": "auto", "lora": True, "learning_rate": "auto"},
        integrations=[wandb],
        suffix="triage",
        seed=0,
    )

    _, [(head, body)] = await submitted(
        request, training_extra={"trainingType": "GlobalStandard"}, headers={"OpenAI-Project": "proj_1"}
    )

    assert "openai-project: proj_1" in head
    assert body == {
        "model": STUDENT,
        "training_file": "file-1",
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "lora": True}}},
        "metadata": {"distillation_job_id": "job_1", "student": "0"},
        "integrations": [wandb],
        "suffix": "triage",
        "seed": 0,
        "trainingType": "GlobalStandard",
    }


async def test_a_providers_own_status_means_what_the_operator_says():
    statuses = {"pending": "waiting", "completed": "succeeded"}
    for status, state in (("pending", "waiting"), ("completed", "succeeded"), ("running", "running"), ("?", "running")):
        job, _ = await submitted(a_training_request(), a_job_object(status=status), statuses=statuses)
        assert (job.status, job.state) == (status, state)


def refusal(code=None, kind="invalid_request_error"):
    return {"error": {"message": "No.", "type": kind, "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (403, refusal("fine_tuning_not_available"), ProviderTrainingClosed),
        (403, refusal(), ProviderTrainingClosed),
        (403, {"detail": "Forbidden"}, ProviderTrainingClosed),
        (410, refusal(), ProviderTrainingClosed),
        (404, {"detail": "Not Found"}, ProviderTrainingClosed),
        (403, refusal("unsupported_country_region_territory"), ProviderAuthFailed),
        (401, refusal("invalid_api_key"), ProviderAuthFailed),
        (404, refusal("model_not_found"), ProviderModelMissing),
        (400, refusal("model_not_available"), ProviderRejected),
    ],
)
async def test_the_end_of_training_is_told_from_other_refusals(status, body, error):
    with pytest.raises(error) as caught:
        await submitted(a_training_request(), body, status=status)

    assert type(caught.value) is error
    assert caught.value.status == status


async def test_a_submission_is_found_again_by_its_file_where_metadata_is_not_kept(sandbox, trainer, tmp_path):
    ours = await trainer.upload(a_file(tmp_path), NAME)
    other = await trainer.upload(a_file(tmp_path), "distill-job_2-abc-0-train.jsonl")
    job = await trainer.submit(a_training_request(training_file=ours))
    await trainer.submit(a_training_request(training_file=other, metadata={"distillation_job_id": "job_2"}))
    sandbox.faults([{"match": {"path": "/fine_tuning/jobs"}, "times": 9, "fault": {"kind": "ignore_metadata_filter"}}])

    for metadata, file in (({"distillation_job_id": "job_1"}, "file-x"), ({"distillation_job_id": "gone"}, ours)):
        assert [found.id for found in await trainer.find(metadata, file, not_before=0)] == [job.id]
    assert await trainer.find({"distillation_job_id": "job_1"}, ours, not_before=4_000_000_000) == []

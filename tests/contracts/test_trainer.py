"""The trainer over real HTTP, against the sandbox: files of any size stored once, submissions found again."""

import tracemalloc

import httpx2
import pytest

from sandbox.testing import SandboxProcess
from shared.errors import ProviderRejected, ProviderUnavailable
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

"""Files of prompts, on both servers: whole or not at all, shared by jobs, gone with the last that uses them."""

import msgspec
import pytest
from builders import TENANT, a_job, a_prompt, a_spec, accepted, an_event, loaded, now_ms

from shared.errors import NotFound, StoreError
from shared.ids import FileId, TenantId, new_file_id, new_job_id
from shared.models import PromptCounts, PromptDefaults, PromptFile
from shared.store import keys
from shared.store.content import pack_prompts

pytestmark = pytest.mark.anyio
DAY_MS = 86_400_000


def a_file(**fields) -> PromptFile:
    defaults = {
        "id": new_file_id(),
        "tenant": TENANT,
        "filename": "prompts.jsonl",
        "bytes": 100,
        "sha256": "0" * 64,
        "counts": PromptCounts(prompts=3, asked=3),
        "chunk_size": 2,
        "created_at_ms": now_ms(),
        "expires_at_ms": now_ms() + 30 * DAY_MS,
    }
    return PromptFile(**defaults | fields)


async def kept(store, **fields) -> PromptFile:
    """A file of three prompts in two chunks."""
    file = a_file(**fields)
    await store.files.write(file.id, {0: pack_prompts([a_prompt("a"), a_prompt("b")])})
    await store.files.write(file.id, {1: pack_prompts([a_prompt("c")])})
    await store.files.add(file, chunks=2)
    return file


def a_job_from(file, **fields):
    return a_job(spec=a_spec(source="file", file_id=file.id), chunk_size=file.chunk_size, **fields)


async def left_of(client, file) -> set[str]:
    return {key.decode().rpartition("}:")[2] for key in await client.keys(f"*{file.id}*")}


async def test_an_upload_is_no_file_until_it_is_whole(store, client):
    file = a_file()
    await store.files.write(file.id, {0: b"x"})

    with pytest.raises(NotFound):
        await store.files.get(TENANT, file.id)
    assert 0 < await client.pttl(keys.file_prompts(file.id)) <= 3_600_000, "it vanishes by itself"
    with pytest.raises(StoreError):
        await store.files.add(file, chunks=2)
    assert await store.files.load(file.id) is None


async def test_a_file_is_kept_as_it_was_sent_until_it_expires(store, client):
    file = await kept(store)
    await store.files.add(file, chunks=2)  # sent again

    assert await store.files.get(TENANT, file.id) == file
    assert await store.files.chunk(file.id, 0) == [a_prompt("a"), a_prompt("b")]
    assert await store.files.chunk(file.id, 2) == []
    for key in (keys.file(file.id), keys.file_prompts(file.id)):
        assert 29 * DAY_MS < await client.pttl(key) <= 30 * DAY_MS
    with pytest.raises(NotFound):
        await store.files.get(TenantId("other"), file.id)


async def test_a_discarded_upload_leaves_nothing(store, client):
    file = a_file()
    await store.files.write(file.id, {0: b"x"})
    await store.files.discard(file.id)
    assert await left_of(client, file) == set()


async def test_files_are_paged_and_those_that_are_gone_are_passed_over(store, client):
    files = [await kept(store, id=FileId(f"pf_{n}")) for n in range(5)]
    await client.delete(keys.file(files[1].id))  # as when it expires
    await store.files.delete(files[3])

    first, more = await store.files.page(TENANT, limit=2, after=None, newest_first=True)
    rest, no_more = await store.files.page(TENANT, limit=2, after=first[-1].id, newest_first=True)

    assert [file.id for file in first] == ["pf_4", "pf_2"]
    assert ([file.id for file in rest], more, no_more) == (["pf_0"], True, False)
    assert await client.zcard(keys.tenant_files(TENANT)) == 3
    oldest, _ = await store.files.page(TENANT, limit=5, after=None, newest_first=False)
    assert [file.id for file in oldest] == ["pf_0", "pf_2", "pf_4"]


async def test_an_unused_file_is_deleted_at_once(store, client):
    file = await kept(store)
    await store.files.delete(file)
    await store.files.delete(file)
    assert await left_of(client, file) == set()


async def test_a_job_reads_the_chunks_of_its_file_with_what_it_says_for_all(store):
    file = await kept(store)
    defaults = PromptDefaults(system_prompt="Be brief.")
    job = a_job_from(file, prompt_defaults=defaults)
    await store.jobs.accept(job, [], an_event())

    prompts = await store.content.prompt_chunk(job.id, "source", 0)

    assert [prompt.messages for prompt in prompts] == [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in ("a", "b")
    ]
    assert await store.content.chunk_count(job.id, "source") == 2
    assert [prompt.messages[1]["content"] async for prompt, _, _ in store.content.curated(job.id, ["teacher"])] == [
        *"abc"
    ]
    assert (await loaded(store, job.id)).prompt_defaults == defaults
    assert await store.content.prompt_chunk(job.id, "holdout", 0) == [], "the holdout is the job's own"


async def test_a_deleted_file_is_hidden_and_lives_on_in_its_jobs(store, client):
    file = await kept(store)
    first, second = a_job_from(file), a_job_from(file)
    await store.jobs.accept(first, [], an_event())
    await store.jobs.accept(second, [], an_event())
    await store.files.delete(file)

    with pytest.raises(NotFound):
        await store.files.get(TENANT, file.id)
    assert len(await store.content.prompt_chunk(first.id, "source", 0)) == 2
    assert await client.pttl(keys.file_prompts(file.id)) == -1

    await store.files.release(file, first.id)
    assert len(await store.content.prompt_chunk(second.id, "source", 0)) == 2
    await store.files.release(file, second.id)
    await store.files.release(file, second.id)
    assert await left_of(client, file) == set()


async def test_a_file_that_is_no_longer_used_expires_when_it_would_have(store, client):
    file = await kept(store)
    job = a_job_from(file)
    await store.jobs.accept(job, [], an_event())
    await store.files.release(file, job.id)

    assert await store.files.get(TENANT, file.id) == file
    assert 0 < await client.pttl(keys.file_prompts(file.id)) <= 30 * DAY_MS


async def test_a_file_that_expired_while_it_was_used_goes_with_the_last_job(store, client):
    file = await kept(store)
    job = a_job_from(file)
    await store.jobs.accept(job, [], an_event())
    past = msgspec.structs.replace(file, expires_at_ms=now_ms() - 1)
    await client.hset(
        keys.file(file.id), mapping={"row": msgspec.json.encode(past), "expires_at_ms": past.expires_at_ms}
    )

    with pytest.raises(NotFound):
        await store.files.get(TENANT, file.id)
    with pytest.raises(NotFound):
        await store.jobs.accept(a_job_from(file), [], an_event())
    await store.files.release(past, job.id)
    assert await left_of(client, file) == set()
    assert await client.zcard(keys.tenant_files(TENANT)) == 0


async def test_a_deleted_file_takes_no_new_job_but_a_retry_of_one_that_uses_it(store):
    file = await kept(store)
    old = a_job_from(file)
    await store.jobs.accept(old, [], an_event())
    await store.files.delete(file)

    refused = a_job_from(file)
    with pytest.raises(NotFound):
        await store.jobs.accept(refused, [], an_event())
    assert await store.jobs.load(refused.id) is None

    again = a_job_from(file, retry_of=old.id)
    await store.jobs.accept(again, [], an_event())
    await store.jobs.accept(again, [], an_event())  # sent twice
    await store.files.release(file, old.id)
    assert len(await store.content.prompt_chunk(again.id, "source", 1)) == 1


async def test_a_file_that_never_was_makes_no_job(store):
    job = a_job(spec=a_spec(source="file", file_id=new_file_id()), id=new_job_id())
    with pytest.raises(NotFound):
        await store.jobs.accept(job, [], an_event())
    assert await store.jobs.load(job.id) is None


async def test_prompts_that_came_with_a_job_are_its_own(store):
    job = await accepted(store, a_job(chunk_size=2), [a_prompt("x")])
    assert await store.content.prompt_chunk(job.id, "source", 0) == [a_prompt("x")]

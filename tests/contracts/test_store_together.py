"""Many small reads at once are one exchange with the server, and each has its own answer or error."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio as redis
from builders import a_job, accepted, prompts
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, ResponseError

from cli import embedded
from shared.store import Store
from shared.store.together import Together

pytestmark = pytest.mark.anyio


async def test_each_gets_its_own_answer_and_one_that_is_wrong_spoils_no_other(valkey_client: redis.Redis):
    await valkey_client.set("text", "no hash")
    for n in range(1_200):
        await valkey_client.hset(f"row:{n}", "number", n)
    together = Together(valkey_client)
    before = (await valkey_client.info("stats"))["total_reads_processed"]
    wrong = together.ask("HMGET", "text", "number")
    answers = await asyncio.gather(*(together.ask("HMGET", f"row:{n}", "number", "nothing") for n in range(1_200)))
    assert answers == [[str(n).encode(), None] for n in range(1_200)]
    with pytest.raises(ResponseError):
        await wrong
    assert (await valkey_client.info("stats"))["total_reads_processed"] - before < 100


async def test_who_goes_away_while_waiting_leaves_the_others_their_answers(valkey_client: redis.Redis):
    together = Together(valkey_client)
    gone, stays = together.ask("HMGET", "a", "b"), together.ask("HMGET", "c", "d")
    gone.cancel()
    assert await stays == [None]


async def test_a_server_that_is_away_is_told_to_everybody():
    client = redis.Redis(host="127.0.0.1", port=1, retry=None)
    together = Together(client)
    answers = await asyncio.gather(*(together.ask("HMGET", "a", "b") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [ConnectionError] * 3
    await client.aclose()


async def test_an_answer_that_does_not_come_is_given_up_and_never_taken_for_another(valkey: embedded.Embedded):
    client = redis.Redis.from_url(valkey.url, socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
    together = Together(client)
    with pytest.raises(redis.TimeoutError):
        await together.ask("BLPOP", "a list that nobody fills", "0.5")
    answers = await asyncio.gather(*(together.ask("ECHO", str(n)) for n in range(3)))
    assert answers == [b"0", b"1", b"2"]
    await client.aclose()


async def test_what_a_server_does_not_answer_in_time_is_asked_again_on_another_connection():
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1_000))
        if len(asked) > 1:
            writer.write(b"$4\r\nhere\r\n")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        client = redis.Redis(
            port=server.sockets[0].getsockname()[1],
            protocol=2,
            driver_info=None,  # nothing is said before the command
            socket_timeout=0.2,
            retry=Retry(NoBackoff(), 1),
        )
        assert await Together(client).ask("GET", "a") == b"here"
        await client.aclose()
    assert asked[0] == asked[1]


async def test_what_a_lost_connection_has_swallowed_is_asked_again(
    valkey: embedded.Embedded, valkey_client: redis.Redis
):
    client = redis.Redis.from_url(valkey.url, client_name="lost", retry=Retry(NoBackoff(), 1))
    together = Together(client)
    waits = together.ask("BLPOP", "filled later", "5")
    while not (blocked := [row for row in await valkey_client.client_list() if row["name"] == "lost"]):
        await asyncio.sleep(0.01)
    await valkey_client.client_kill_filter(_id=blocked[0]["id"])
    await valkey_client.rpush("filled later", "here")
    assert await waits == [b"filled later", b"here"]
    await client.aclose()


@pytest.mark.parametrize("turns", range(4))
async def test_a_store_that_closes_leaves_no_connection_although_who_asked_last_has_gone(
    valkey: embedded.Embedded, valkey_client: redis.Redis, turns: int
):
    before = len(await valkey_client.client_list())
    store = Store.at(valkey.url, patient=True)
    store._together.ask("HMGET", "a", "b").cancel()
    for _ in range(turns):  # of the loop: the exchange has not begun, connects, greets
        await asyncio.sleep(0)
    await store.close()
    await asyncio.sleep(0.05)
    assert len(await valkey_client.client_list()) == before


async def test_jobs_read_by_many_at_once_take_no_connection_for_each(
    valkey: embedded.Embedded, valkey_client: redis.Redis
):
    store = Store.at(valkey.url, patient=False)
    job = await accepted(store, a_job(), prompts(1))

    found = await asyncio.gather(*(store.jobs.get(job.tenant, job.id) for _ in range(300)))

    assert found == [found[0]] * 300
    assert int((await store._redis.info("clients"))["connected_clients"]) < 20
    await store.close()

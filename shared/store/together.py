"""What is asked for in the same turn of the event loop, sent to the server as one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import redis.asyncio as redis
from redis.exceptions import RedisError, ResponseError

_Command: TypeAlias = tuple[str | bytes | float, ...]
_Asked: TypeAlias = tuple[_Command, asyncio.Future[Any]]
_AT_ONCE_MAX: Final = 500  # commands in one pipeline
_UNDER_WAY_MAX: Final = 2


class Together:
    """A command alone costs a connection, a write, a read and two timers; among others next to nothing.

    For what many callers ask at once.  Each gets its own answer, or its own error.  Sent again after a lost connection,
    like every command and script of ours.  What is asked while two exchanges are under way waits for the end of one:
    the busier the server, the more go together."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._waiting: list[_Asked] = []
        self._scheduled = False
        self._sending: set[asyncio.Task[None]] = set()

    def ask(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """The raw answer to a command without a response callback in redis-py."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, answer))
        if not self._scheduled and len(self._sending) < _UNDER_WAY_MAX:
            self._scheduled = True
            loop.call_soon(self._send)
        return answer

    async def settled(self) -> None:
        """Wait until nothing is under way, though who asked may have gone: at most as long as commands may take.

        An exchange that goes on while its connections are closed would open new ones, which nobody closes."""
        self._send()
        while self._sending:
            await asyncio.wait(self._sending)

    def _send(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._sending) < _UNDER_WAY_MAX:
            asked, self._waiting = self._waiting[:_AT_ONCE_MAX], self._waiting[_AT_ONCE_MAX:]
            task = asyncio.ensure_future(self._exchange(asked))
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send()

    async def _exchange(self, asked: list[_Asked]) -> None:
        answers: list[Any]
        try:
            answers = await exchange(self._redis, [command for command, _ in asked])
        except (RedisError, OSError) as error:
            answers = [error] * len(asked)
        except BaseException:  # the loop ends; nobody may be left waiting
            for _, answer in [*asked, *self._waiting]:
                answer.cancel()
            self._waiting.clear()
            raise
        for (_, answer), found in zip(asked, answers, strict=True):
            if answer.done():
                continue  # who asked has gone
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)


async def exchange(client: redis.Redis, commands: Sequence[_Command]) -> list[Any]:
    """Send commands as one and read their raw answers, errors of single ones among them.

    What redis-py's pipeline does, with one timer for all answers: it sets one for each, which is most of what they
    cost.  Raises RedisError, OSError."""
    pool: Any = client.connection_pool  # untyped, where redis-py deprecates an argument
    connection = await pool.get_connection()

    async def sent_and_read() -> list[Any]:
        await connection.send_packed_command(connection.pack_commands(commands))
        answers: list[Any] = []
        try:
            async with asyncio.timeout(connection.socket_timeout):
                for _ in commands:
                    try:
                        answers.append(await connection.read_response(timeout=math.inf))
                    except ResponseError as error:
                        answers.append(error)
        except TimeoutError as error:  # in redis-py's own words, which it sends again on
            raise redis.TimeoutError("The server did not answer in time.") from error
        return answers

    try:
        answered: list[Any] = await connection.retry.call_with_retry(sent_and_read, lambda _: connection.disconnect())
    finally:
        await asyncio.shield(pool.release(connection))
    return answered

"""What is asked for in the same turn of the event loop, sent to the server as one."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeAlias

import redis.asyncio as redis
from redis.exceptions import RedisError

_Asked: TypeAlias = tuple[tuple[str | bytes | float, ...], asyncio.Future[Any]]
_AT_ONCE_MAX: Final = 500  # commands in one pipeline


class Together:
    """A command alone costs a connection, a write, a read and two timers; among others next to nothing.

    For what many callers ask at once.  Each gets its own answer, or its own error.  Sent again after a lost connection,
    like every command and script of ours."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._waiting: list[_Asked] = []
        self._sending: set[asyncio.Task[None]] = set()

    def ask(self, *command: str | bytes | float) -> asyncio.Future[Any]:
        """The raw answer to a command without a response callback in redis-py."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)
        self._waiting.append((command, answer))
        return answer

    def _send(self) -> None:
        asked, self._waiting = self._waiting, []
        for start in range(0, len(asked), _AT_ONCE_MAX):
            task = asyncio.ensure_future(self._exchange(asked[start : start + _AT_ONCE_MAX]))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _exchange(self, asked: list[_Asked]) -> None:
        answers: list[Any]
        try:
            pipe = self._redis.pipeline(transaction=False)
            for command, _ in asked:
                pipe.execute_command(*command)
            answers = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            answers = [error] * len(asked)
        except BaseException:  # the loop ends; nobody may be left waiting
            for _, answer in asked:
                answer.cancel()
            raise
        for (_, answer), found in zip(asked, answers, strict=True):
            if answer.done():
                continue  # who asked has gone
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

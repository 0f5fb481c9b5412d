"""The supervisor and the stack around it, with small stand-ins for the API, the worker and the sandbox."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import httpx2
import pytest
import redis
from typer.testing import CliRunner

from cli import client, doctor, embedded, stack
from cli.main import app
from cli.stack import Address, Options, Stack, StackError
from cli.supervisor import ChildFailed, Program, Supervisor, restart_delay

ROOT = Path(__file__).resolve().parents[2]
ENVIRON = dict(os.environ)

#: Answers 200 to everything, as an API does that is up and has a worker.
HTTP_STAND_IN = """
import http.server, sys
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{}")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Ok).serve_forever()
"""
SLEEPER = "import time; time.sleep(60)"
#: Writes its name to the file when told to stop.
STOPS_LOUDLY = """
import signal, sys, time
def stop(*_):
    open(sys.argv[1], "a").write(sys.argv[2] + "\\n"); sys.exit(0)
signal.signal(signal.SIGTERM, stop); open(sys.argv[1] + "." + sys.argv[2], "w"); time.sleep(60)
"""
DEAF = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open(sys.argv[1], 'w'); time.sleep(60)"


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="dt-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def said() -> list[str]:
    return []


def python(name: str, code: str, *arguments: object, grace_seconds: float = 5.0) -> Program:
    argv = (sys.executable, "-c", code, *map(str, arguments))
    return Program(name, argv, ENVIRON, grace_seconds=grace_seconds)


def eventually(holds: Callable[[], bool], *, within_seconds: float = 8.0) -> bool:
    deadline = time.monotonic() + within_seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z"


def supervisor(programs: list[Program], data_dir: Path, said: list[str]) -> Supervisor:
    return Supervisor(programs, log_dir=data_dir / "logs", cwd=data_dir, say=said.append, tick_seconds=0.02)


def test_restarts_come_ever_later_but_never_too_late() -> None:
    assert [restart_delay(deaths) for deaths in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert restart_delay(50) == 30.0


def test_a_child_that_is_killed_runs_again_and_it_is_said(data_dir: Path, said: list[str]) -> None:
    watched = supervisor([python("worker-1", SLEEPER)], data_dir, said)
    watched.start()
    watched.watch()
    try:
        child = watched.children[0]
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: child.running() and child.process.pid != first)
        assert said[0].startswith("worker-1 was killed by SIGKILL; starting it again in 0.5 s")
    finally:
        watched.stop()
    assert gone(child.process.pid)


def test_children_stop_in_order_and_workers_together(data_dir: Path, said: list[str]) -> None:
    order = data_dir / "order"
    names = ["api", "worker-1", "worker-2", "sandbox"]
    watched = supervisor([python(name, STOPS_LOUDLY, order, name) for name in names], data_dir, said)
    watched.start()
    assert eventually(lambda: all(Path(f"{order}.{name}").exists() for name in names))
    watched.stop()
    stopped = order.read_text().split()
    assert stopped[0] == "api"
    assert set(stopped[1:3]) == {"worker-1", "worker-2"}
    assert stopped[3] == "sandbox"
    assert said == []


def test_a_child_that_does_not_stop_is_killed_after_its_grace(data_dir: Path, said: list[str]) -> None:
    watched = supervisor([python("api", DEAF, data_dir / "up", grace_seconds=0.3)], data_dir, said)
    watched.start()
    assert eventually((data_dir / "up").exists)
    watched.stop()
    assert gone(watched.children[0].process.pid)
    assert said == ["api had to be killed."]


def test_a_second_signal_does_not_wait_for_the_grace(data_dir: Path, said: list[str]) -> None:
    watched = supervisor([python("worker-1", DEAF, data_dir / "up", grace_seconds=60)], data_dir, said)
    watched.start()
    assert eventually((data_dir / "up").exists)
    threading.Timer(0.1, watched.hurry.set).start()
    began = time.monotonic()
    watched.stop()
    assert time.monotonic() - began < 5


def test_a_child_that_cannot_start_is_reported_with_the_end_of_its_log(data_dir: Path, said: list[str]) -> None:
    watched = supervisor([python("api", "raise SystemExit('secret_key is missing')")], data_dir, said)
    watched.start()
    assert eventually(lambda: not watched.children[0].running())
    with pytest.raises(ChildFailed, match=r"api ended with exit code 1.*\n.*secret_key is missing"):
        watched.check_all_run()
    watched.stop()


def test_no_child_outlives_a_killed_supervisor(data_dir: Path) -> None:
    (data_dir / "patient.py").write_text("import time, sys\nprint('up', flush=True)\ntime.sleep(60)\n")
    code = """
import os, sys, time; from pathlib import Path; from cli.supervisor import Program, Supervisor
folder = Path(sys.argv[1])
program = Program("api", (sys.executable, "-m", "cli.launch", "patient"), dict(os.environ))
watched = Supervisor([program], log_dir=folder, cwd=folder, say=print); watched.start()
print(watched.children[0].process.pid, flush=True); time.sleep(60)
"""
    environ = {**ENVIRON, "PYTHONPATH": os.pathsep.join((str(ROOT), str(data_dir)))}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)], stdout=subprocess.PIPE, text=True, env=environ, cwd=ROOT
    )
    pid = int(parent.stdout.readline())
    assert eventually(lambda: "up" in (data_dir / "api.log").read_text())
    assert not gone(pid)
    parent.kill()
    parent.communicate()
    assert eventually(lambda: gone(pid))


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    def programs(options: Options, address: Address, environment: dict[str, str]) -> list[Program]:
        assert environment["DISTILL_REDIS_URL"] == address.redis_url
        servers = [("api", address.api_url)]
        if address.sandbox_url is not None:
            servers.append(("sandbox", address.sandbox_url))
        return [
            *(python(name, HTTP_STAND_IN, httpx2.URL(url).port) for name, url in servers),
            *(python(f"worker-{n}", SLEEPER) for n in range(1, options.workers + 1)),
        ]

    monkeypatch.setattr(stack, "programs", programs)


def a_stack(data_dir: Path, said: list[str], **options: object) -> Stack:
    chosen = Options(**{"data_dir": data_dir, "port": 0, "sandbox_port": 0, **options})
    return Stack(chosen, environ=ENVIRON, cwd=data_dir, say=said.append)


@pytest.mark.usefixtures("stand_ins")
def test_a_stack_comes_up_is_found_and_leaves_nothing_running(data_dir: Path, said: list[str]) -> None:
    running = a_stack(data_dir, said, workers=2)
    with running:
        address = running.address
        assert stack.running_at(data_dir) == address
        assert httpx2.get(f"{address.api_url}/healthz", trust_env=False).status_code == 200
        with closing(redis.Redis.from_url(address.redis_url)) as store:
            assert store.ping()
            pids = [store.info("server")["process_id"]]
        pids += [child.process.pid for child in running._supervisor.children]
        assert len(pids) == 5
        assert running.admin_key == (data_dir / "admin_key").read_text().strip()
    assert all(gone(pid) for pid in pids)
    assert stack.running_at(data_dir) is None
    assert said == []


@pytest.mark.usefixtures("stand_ins")
def test_a_second_stack_on_the_same_data_says_where_the_first_one_runs(data_dir: Path, said: list[str]) -> None:
    with a_stack(data_dir, said) as first:
        with pytest.raises(StackError, match=first.address.api_url), a_stack(data_dir, said):
            pass
        assert stack.running_at(data_dir) == first.address
        assert first._store.alive()


@pytest.mark.usefixtures("stand_ins")
def test_ports_and_keys_are_the_same_after_a_restart(data_dir: Path, said: list[str]) -> None:
    with a_stack(data_dir, said) as first:
        pass
    with a_stack(data_dir, said, port=None, sandbox_port=None) as second:
        assert second.address == first.address
        assert second.admin_key == first.admin_key


@pytest.mark.usefixtures("stand_ins")
def test_a_usual_port_that_is_taken_is_replaced_and_it_is_said(data_dir: Path, said: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (data_dir / "ports.json").write_text(json.dumps({"api": port}))
        with a_stack(data_dir, said, port=None, sandbox=False) as running:
            assert not running.address.api_url.endswith(f":{port}")
        assert said == [f"Port {port} is taken; the api listens on {httpx2.URL(running.address.api_url).port}."]
        with pytest.raises(StackError, match=f"Port {port}"), a_stack(data_dir, said, port=port):
            pass


@pytest.mark.usefixtures("stand_ins")
def test_a_store_that_dies_comes_back_with_its_data_under_the_same_address(data_dir: Path, said: list[str]) -> None:
    running = a_stack(data_dir, said, sandbox=False)
    with running, closing(redis.Redis.from_url(running.address.redis_url)) as db:
        db.set("kept", "yes")
        first = running._store.pid
        os.kill(first, signal.SIGKILL)
        assert eventually(lambda: running._store.pid != first)
        assert said == ["Valkey ended; starting it again with everything it had acknowledged."]
        assert db.get("kept") == b"yes"


@pytest.mark.usefixtures("stand_ins")
def test_a_named_redis_is_used_and_none_is_started(data_dir: Path, said: list[str]) -> None:
    with a_stack(data_dir, said, sandbox=False, redis_url="redis://127.0.0.1:1/0") as running:
        assert running.address.redis_url == "redis://127.0.0.1:1/0"
        assert not (data_dir / "store").exists()


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"requirepass": "another"}, "does not answer: "),
        ({"appendfsync": "everysec"}, "appendfsync: is everysec: the last second of accepted jobs can be lost"),
    ],
)
def test_a_store_that_cannot_serve_is_told_in_the_doctors_words_before_anything_is_started(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with embedded.start(data_dir) as server, closing(redis.Redis.from_url(server.url)) as db:
        for setting, value in wrong.items():
            db.config_set(setting, value)
        monkeypatch.setenv("DISTILL_REDIS_URL", server.url)
        failed = [check for check in doctor.store(server.url) if check.state == "fail"]
        ended = CliRunner().invoke(app, ["up", "--data-dir", "data"])
    assert str(ended.exception) == f"{failed[0].name}: {failed[0].detail.rstrip('.')}; {failed[0].advice}."
    assert told in str(ended.exception)
    assert not (tmp_path / "data").exists()


def test_the_sandbox_runs_when_no_provider_is_configured(tmp_path: Path) -> None:
    assert stack.wants_sandbox({"PATH": "/bin"})
    assert not stack.wants_sandbox({"OPENAI_API_KEY": "sk-1"})
    assert not stack.wants_sandbox({"DISTILL_PROVIDERS__AZURE__BASE_URL": "https://azure.example"})
    (tmp_path / ".env").write_text("OPENAI_API_KEY=sk-from-file\n")
    assert not stack.wants_sandbox(stack.configured({}, tmp_path))
    assert not stack.wants_sandbox({"DISTILL_OPENAI_API_KEY_FILE": "key"})


def test_an_api_that_is_not_there_gives_a_sentence_with_what_to_do() -> None:
    port = stack.free_port("127.0.0.1")
    with client.Api(client.Endpoint(f"http://127.0.0.1:{port}", None)) as api:
        with pytest.raises(client.ApiError, match=r"cannot be reached.*distill up"):
            api.post("/v1/jobs", {})

"""The whole service as real processes on loopback: Valkey, sandbox, API and any number of workers, each by its pid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

from cli import embedded
from cli.stack import free_port
from sandbox.testing import SandboxProcess
from shared.webhooks import signing_secret

ROOT = Path(__file__).resolve().parent.parent
KEY = "dk_test_0123456789abcdefghjkmnpqrstv"
SECRET_KEY = "a secret key of the test suite, 40 chars"
PROVIDER_KEY = "sk-sandbox"
#: Words of every ticket, of its instructions and of every answer to it.
MARKS = ("zebrafinch", "You triage support tickets", "priority")
STUDENT = "gpt-4.1-mini-2025-04-14"  # priced, and alive on the day at which the sandbox stands still
TEACHER = "gpt-6.1-sol"

#: Short waits, so that a takeover is seen within seconds instead of half a minute.
IMPATIENT = {
    "LEASE_SECONDS": "3",
    "CHUNK_LEASE_SECONDS": "3",
    "TAKEOVER_GRACE_SECONDS": "0.5",
    "SWEEP_INTERVAL_SECONDS": "0.2",
    "SWEEP_GRACE_SECONDS": "1",
    "POLL_MIN_SECONDS": "0.2",
    "POLL_MAX_SECONDS": "0.5",
    "UNKNOWN_OUTCOME_WAIT_SECONDS": "3",
    "RETRY_BASE_SECONDS": "0.1",
    "RETRY_CAP_SECONDS": "2",
}


class System:
    """settings: DISTILL_… without the prefix, over `IMPATIENT`.  sandbox: options of `SandboxProcess`.

    At its end, nothing of a prompt, an answer or a key may stand in a log or in an error that its client was answered.
    private: further words that may not; a test adds the keys it makes."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None, **sandbox: Any) -> None:
        self._folder = folder
        self._settings = {**IMPATIENT, **(settings or {})}
        options = {"latency_seconds": 0.05, "training_seconds": 1, "today": "2026-11-22"}
        self.sandbox = SandboxProcess(**options | sandbox)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.private = {*MARKS, KEY, SECRET_KEY, PROVIDER_KEY, signing_secret(SECRET_KEY.encode(), "local")}
        self.problems: list[str] = []  # bodies of the errors that the client has been answered

    def __enter__(self) -> Self:
        self.redis = embedded.start(self._folder)
        self.sandbox.start()
        port = free_port("127.0.0.1")
        given = {
            "REDIS_URL": self.redis.url,
            "SECRET_KEY": SECRET_KEY,
            "ADMIN_KEY": KEY,
            "API_PORT": str(port),
            "PROVIDERS__SANDBOX__BASE_URL": self.sandbox.base_url,
            "PROVIDERS__SANDBOX__API_KEY": PROVIDER_KEY,
            "PROVIDERS__SANDBOX__PRICES": "openai",
            "PROVIDERS__SANDBOX__CAN_STORE": "true",
            "WEBHOOK_ALLOW_HTTP": "true",
            "WEBHOOK_ALLOW_NETWORKS": '["127.0.0.0/8"]',
            "WEBHOOK_PORTS": "[]",
            **self._settings,
        }
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DISTILL_", "OPENAI_"))},
            **{f"DISTILL_{name}": value for name, value in given.items()},
            "PYTHONPATH": str(ROOT),
        }
        self._url = f"http://127.0.0.1:{port}"
        self.api = self._spawn("api")
        return self

    @cached_property
    def client(self) -> httpx2.Client:
        """Of the API, which has begun to answer: it starts while workers do."""
        client = httpx2.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=10,
            event_hooks={"response": [self._keep_problem]},
        )
        self.until(lambda: _answers(client), "the API answers")
        return client

    @property
    def url(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def _keep_problem(self, answer: httpx2.Response) -> None:
        if answer.is_error and str(answer.url).startswith(self._url):
            self.problems.append(answer.read().decode(errors="replace"))

    def _spawn(self, module: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{module}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", module],
                env=self.environment,
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self._spawn("worker")

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        """kill -9: nothing is said goodbye to."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def logs(self) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted(self._folder.glob("*.log")))

    # --- what a client does -------------------------------------------------------------------------------------------

    def submit(self, **changes: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/jobs", json=a_request(**changes))
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
        return job

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.02)
        raise AssertionError(f"not within {seconds} s: {what}\n{self.logs()[-8000:]}")

    def finished(self, job_id: str, *, seconds: float = 90) -> dict[str, Any]:
        """The job once it has ended, however it did."""

        def ended() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in {"succeeded", "failed", "cancelled"} else None

        found: dict[str, Any] = self.until(ended, f"{job_id} ends", seconds=seconds)
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
        self.sandbox.kill()
        self.redis.stop()
        if kind is None:
            self.assert_private()

    def assert_private(self) -> None:
        for what, text in (("a log", self.logs()), ("a problem", "\n".join(self.problems))):
            for word in self.private:
                place = text.find(word)
                assert place < 0, f"{what} tells {word!r}: …{text[max(0, place - 300) : place + 300]}…"


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx2.TransportError:
        return False


def a_request(*, prompts: int = 60, first: int = 0, **changes: Any) -> dict[str, Any]:
    """A triage job of distinct prompts, the tickets from number `first` on; `changes` replace top-level members."""
    request = {
        "name": "ticket-triage",
        "teacher": {"provider": "sandbox", "model": TEACHER, "params": {"max_completion_tokens": 100}},
        "students": [{"provider": "sandbox", "model": STUDENT, "suffix": "triage"}],
        "system_prompt": "You triage support tickets.  Answer with JSON: category, priority, team.",
        "source": {"type": "inline", "prompts": _prompts(first, prompts)},
        "metadata": {"distillation": "teams_dataset"},
    }
    return request | changes


def a_ticket(number: int) -> str:
    """Distinct in its words, not only in a number."""
    troubles = [
        "I was charged twice for my subscription",
        "I cannot log in since the password reset",
        "The parcel has not arrived and tracking stands still",
        "The export button crashes the app",
        "Please add a dark theme to the dashboard",
        "The whole site is down for our team, this is urgent",
        "I want my money back for the broken headset",
    ]
    places = ["Lisbon", "Oslo", "Denver", "Nairobi", "Osaka", "Quito", "Perth", "Riga", "Turin", "Accra", "Hanoi"]
    when = ["today", "since Monday", "after the update", "last night", "for a week", "since the move", "at noon"]
    trouble, place, since = troubles[number % 7], places[number // 7 % 11], when[number // 77 % 7]
    return f"{trouble}, {since}. We are in {place}, zebrafinch {number:06d}."


def _prompts(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {"key": f"t-{number}", "messages": [{"role": "user", "content": a_ticket(number)}]}
        for number in range(first, first + count)
    ]

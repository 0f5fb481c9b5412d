"""A sandbox in a process of its own, for tests and demonstrations: started, asked, killed and started again.

with SandboxProcess(latency_seconds=0.01) as sandbox:
    client = OpenAI(base_url=sandbox.base_url, api_key="sk-test")
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2

_START_SECONDS = 20.0


class SandboxProcess:
    """options: those of `sandbox.options.Options` by name; `port=0`, the default here, takes a free port."""

    def __init__(self, data_dir: Path | str | None = None, **options: Any) -> None:
        # A test run that is itself killed leaves no sandbox behind.
        self._options = {"port": 0, "until_stdin_closes": True, **options}
        if data_dir is not None:
            self._options["data_dir"] = data_dir
        self._process: subprocess.Popen[str] | None = None
        self.root_url = ""

    @property
    def base_url(self) -> str:
        """What goes into OPENAI_BASE_URL."""
        return self.root_url + "/v1"

    @property
    def pid(self) -> int:
        if self._process is None:
            raise RuntimeError("the sandbox does not run")
        return self._process.pid

    def start(self) -> Self:
        """Returns once the sandbox listens.  Raises RuntimeError, with what it wrote, if it does not come up."""
        flags = [part for name, value in self._options.items() for part in ("--" + name.replace("_", "-"), str(value))]
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        if self._process.stdout is None:
            raise RuntimeError("the sandbox has no output to read")
        line = self._process.stdout.readline()
        if not line.startswith("sandbox listening on "):
            self.kill()
            raise RuntimeError(f"the sandbox did not start: {line!r}")
        self.root_url = line.split()[-1].removesuffix("/v1")
        # From now on the port is known; a restart takes the same one, so that clients find it again.
        self._options["port"] = int(self.root_url.rsplit(":", 1)[1])
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash would be; harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_START_SECONDS)
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None

    def restart(self) -> Self:
        """Kill and start again on the same port; with a data directory nothing is forgotten."""
        self.kill()
        return self.start()

    def __enter__(self) -> Self:
        return self if self._process is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def admin(self, path: str, json: Any = None, *, method: str | None = None) -> Any:
        """Call `/_sandbox/<path>`: POST when there is a body, else GET, unless told otherwise."""
        verb = method or ("GET" if json is None else "POST")
        url = f"{self.root_url}/_sandbox/{path.lstrip('/')}"
        answer = httpx2.request(verb, url, json=json, timeout=30, trust_env=False)
        if answer.is_error:
            raise RuntimeError(f"{verb} {url}: {answer.text}")
        return answer.json()

    def ledger(self) -> dict[str, Any]:
        return dict(self.admin("ledger"))

    def faults(self, rules: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add rules; returns all there are, with how often each has struck in `hits`."""
        return list(self.admin("faults", list(rules))["rules"])

    def clear_faults(self) -> None:
        self.admin("faults", method="DELETE")

    def reset(self) -> None:
        """Forget everything: state, faults, counters and the clock's advance."""
        self.admin("reset", {})

    def advance(self, seconds: float) -> None:
        """Move the sandbox's clock ahead; what falls due has happened on return."""
        self.admin("clock", {"advance_seconds": seconds})

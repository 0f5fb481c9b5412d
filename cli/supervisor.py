"""Keeps child processes running: starts them, restarts what dies with back-off, stops them in order."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: A child that lived this long was well, and its next death counts as the first.
WELL_AFTER_SECONDS = 30.0
LOG_MAX_BYTES = 20_000_000


class ChildFailed(RuntimeError):
    """A child ended before the stack was up; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Program:
    """What to run.  grace_seconds: between SIGTERM and SIGKILL."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    grace_seconds: float = 10.0


def restart_delay(deaths_in_a_row: int) -> float:
    """Seconds to wait before the next start, after this many early deaths in a row (>= 1)."""
    return float(min(30.0, 0.5 * 2 ** (deaths_in_a_row - 1)))


@dataclass
class Child:
    program: Program
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths_in_a_row: int = 0
    restart_at: float | None = field(default=None)

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self, cwd: Path, now: float) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.program.argv,
                stdin=subprocess.PIPE,  # the lifeline, see cli/launch.py
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(self.program.env),
                cwd=cwd,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor, who stops children in order
            )
        self.started_at, self.restart_at = now, None

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """At once, with whatever it started itself: its session, and so its process group, is our making."""
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def log_tail(self, lines: int = 8) -> str:
        try:
            return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class Supervisor:
    """Children in the order in which they stop.  `say` gets one line for a person; each_tick runs with every look."""

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        log_dir: Path,
        cwd: Path,
        say: Callable[[str], None],
        each_tick: Callable[[], None] = lambda: None,
        hurry: threading.Event | None = None,
        tick_seconds: float = 0.2,
    ) -> None:
        self.children = [Child(program, log_dir / f"{program.name}.log") for program in programs]
        self.hurry = hurry or threading.Event()
        self._cwd, self._say, self._each_tick, self._tick_seconds = cwd, say, each_tick, tick_seconds
        self._stopping = threading.Event()
        self._watcher: threading.Thread | None = None

    def start(self) -> None:
        now = time.monotonic()
        for child in self.children:
            child.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _rotate(child.log)
            child.spawn(self._cwd, now)

    def check_all_run(self) -> None:
        """For the time before the stack is up, when a death is a mistake to report and not to repeat."""
        for child in self.children:
            if not child.running():
                raise ChildFailed(
                    f"{child.program.name} {_how_it_ended(child)}; its log is {child.log}\n{child.log_tail()}".rstrip()
                )

    def watch(self) -> None:
        """From now on restart what dies, in a thread of its own."""
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """SIGTERM and then SIGKILL, one kind after the other.  Setting `hurry` meanwhile skips the waiting."""
        self._stopping.set()
        if self._watcher is not None:
            self._watcher.join()
        kinds: dict[str, list[Child]] = {}
        for child in self.children:
            kinds.setdefault(child.program.name.partition("-")[0], []).append(child)
        for alike in kinds.values():  # several workers let go together
            for child in alike:
                child.signal(signal.SIGTERM)
            deadline = time.monotonic() + max(child.program.grace_seconds for child in alike)
            while any(child.running() for child in alike):
                if time.monotonic() > deadline or self.hurry.is_set():
                    self._say(f"{alike[0].program.name} had to be killed.")
                    break
                time.sleep(0.02)  # several children at once, and a second Ctrl-C, are waited for together
            for child in alike:
                child.kill()
                child.close()

    def _watch(self) -> None:
        while not self._stopping.wait(self._tick_seconds):
            self._each_tick()
            for child in self.children:
                self._look_after(child, time.monotonic())

    def _look_after(self, child: Child, now: float) -> None:
        if child.running():
            return
        if child.restart_at is None:
            lived = now - child.started_at
            child.deaths_in_a_row = 1 if lived > WELL_AFTER_SECONDS else child.deaths_in_a_row + 1
            delay = restart_delay(child.deaths_in_a_row)
            child.close()
            child.restart_at = now + delay
            ended = f"{child.program.name} {_how_it_ended(child)}"
            self._say(f"{ended}; starting it again in {delay:g} s (log: {child.log})")
        elif now >= child.restart_at:
            try:
                child.spawn(self._cwd, now)
            except OSError as error:  # no memory or no process free; the next attempt waits longer
                self._say(f"{child.program.name} cannot be started: {error}")
                child.started_at, child.restart_at = now, None


def _rotate(log: Path) -> None:
    """Keep one former log of a long-lived stack beside the present one."""
    with contextlib.suppress(FileNotFoundError):
        if log.stat().st_size > LOG_MAX_BYTES:
            log.replace(log.with_suffix(".log.1"))


def _how_it_ended(child: Child) -> str:
    code = child.process.returncode if child.process is not None else None
    if code is None:
        return "was not started"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"

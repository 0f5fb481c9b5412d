"""What a process has cost so far, and children that cannot outlive us."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
_MB = 1_000_000


@dataclass(frozen=True)
class Cost:
    """cpu_seconds: user and system, all threads, since the process began.  peak_mb: largest resident size."""

    cpu_seconds: float
    peak_mb: float


def cost(pid: int) -> Cost:
    """Of a running process; zeros when it has ended."""
    if sys.platform.startswith("linux"):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except (OSError, ProcessLookupError):
            return Cost(0.0, 0.0)
        ticks = int(fields[11]) + int(fields[12])
        peak = next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)
        return Cost(ticks / os.sysconf("SC_CLK_TCK"), peak / _MB)
    # Elsewhere `ps` knows the present size alone, so a peak between two looks is missed.
    shown = subprocess.run(["ps", "-o", "cputime=,rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
    clock, _, size = shown.stdout.strip().rpartition(" ")
    if not clock:
        return Cost(0.0, 0.0)
    seconds = 0.0
    for part in clock.strip().replace("-", ":").split(":"):
        seconds = seconds * 60 + float(part)
    return Cost(seconds, int(size) * 1024 / _MB)


def reset_peak(pid: int) -> None:
    """From here on the peak is that of what follows.  Elsewhere than on Linux it is of the process's whole life."""
    path = Path(f"/proc/{pid}/clear_refs")
    if path.exists():
        path.write_text("5")


def python(
    *arguments: str, env: dict[str, str] | None = None, log: Path | None = None, **pipes: int
) -> subprocess.Popen:
    """A child running `python …` in the repository's root."""
    if log is not None:
        pipes |= {"stderr": subprocess.STDOUT}
        with log.open("ab") as out:
            return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=out, **pipes)
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, **pipes)


def end(process: subprocess.Popen, *, gently: bool = False) -> None:
    """Stop a child of ours and wait for it."""
    if process.poll() is None:
        process.terminate() if gently else process.kill()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

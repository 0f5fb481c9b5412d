"""`distill demo` as a newcomer runs it, on fewer prompts: the whole product in one command."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    with (ROOT / "examples" / "support_tickets.jsonl").open(encoding="utf-8") as lines:
        (tmp_path / "few.jsonl").write_text("".join(itertools.islice(lines, 80)), encoding="utf-8")
    return tmp_path / "few.jsonl"


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Short, for the sake of the socket in it, and of this test alone, to see what is left there."""
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        yield Path(folder)


def demo(prompts: Path, temporary: Path, *arguments: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "TMPDIR": str(temporary), "DISTILL_REDIS_URL": "redis://127.0.0.1:1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "demo", "--file", str(prompts), *arguments],
        cwd=ROOT,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def processes_in(folder: Path) -> list[int]:
    """Those whose command line or working directory names the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names = (process / "cmdline").read_bytes() + bytes((process / "cwd").readlink())
        except OSError:
            continue
        if os.fsencode(folder) in names:
            found.append(int(process.name))
    return found


def test_the_demo_ends_with_a_verdict_and_leaves_nothing_behind(prompts: Path, temporary: Path) -> None:
    process = demo(prompts, temporary)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    assert re.search(r"json_match +teacher +1\.000\*", said)
    assert re.search(r"student +0\.\d{3}", said)
    assert "than its base by" in said or "not clearly different" in said
    assert re.search(r"Dataset: \d+ lines, sha256 [0-9a-f]{64}", said)
    assert not re.search(r"curl|dk_", said), "nothing answers there any more"
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_a_demo_that_is_stopped_midway_leaves_nothing_behind(prompts: Path, temporary: Path) -> None:
    process = demo(prompts, temporary)
    for line in process.stdout:
        if line.startswith("Submitted"):
            break
    assert len(processes_in(temporary)) >= 4
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    time.sleep(0.1)
    assert processes_in(temporary) == []
    assert list(temporary.iterdir()) == []


def test_what_a_kept_demo_prints_can_be_pasted_into_a_shell(prompts: Path, temporary: Path) -> None:
    for program in ("bash", "curl"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    process = demo(prompts, temporary, "--keep")
    try:
        said = list(itertools.takewhile(lambda line: "Running until Ctrl-C" not in line, process.stdout))
        lines = [line.strip() for line in said if line.strip().startswith(("export ", "curl "))]
        assert len(lines) == 5, "".join(said)

        pasted = "\necho; echo ----\n".join(lines)
        bash = ("bash", "-euo", "pipefail", "-c", pasted)
        shell = subprocess.run(bash, capture_output=True, check=True, text=True, timeout=30)
        _, job, completions, dataset, results = shell.stdout.split("----\n")
        assert json.loads(job)["status"] == "succeeded"
        assert len(json.loads(completions)["data"]) == 3
        examples = [json.loads(line) for line in dataset.strip().split("\n")]
        assert len(examples) == json.loads(job)["dataset"]["train"]
        assert all(example["messages"] for example in examples)
        assert json.loads(results)["students"]

        process.send_signal(signal.SIGTERM)
        last, _ = process.communicate(timeout=60)
        assert process.returncode == 0, last
        assert [path.name.startswith("distill-demo-") for path in temporary.iterdir()] == [True], "its data stay"
        if Path("/proc/self/cmdline").exists():
            assert processes_in(temporary) == []
    finally:
        process.kill()
        process.wait()
        for pid in processes_in(temporary):  # the store outlives a demo that was killed
            os.kill(pid, signal.SIGKILL)

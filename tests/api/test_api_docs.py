"""docs/api.md and the README's first job keep their word: every snippet runs against a real server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from system import KEY, System

from api.schemas.api_keys import Scope
from api.schemas.jobs import StudentOut

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = dict(re.findall(r"^```\w+ (\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """What `make up` brings: API, worker, store, and a sandbox as the one provider."""
    with System(tmp_path_factory.mktemp("logs"), training_seconds=3) as running:
        running.start_worker()
        running.until(lambda: running.client.get("/readyz").status_code == 200, "a worker lives")
        yield running


def run(url: str, folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as the page's first lines set it
    environment = os.environ | {"DISTILL_URL": url, "DISTILL_API_KEY": KEY, "PATH": path}
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_snippets_do_what_the_page_says_as_often_as_they_are_run(system: System, tmp_path: Path):
    assert set(SNIPPETS) == {"keys", "curl", "httpx2", "openai"}
    assert 'export PATH="$PWD/.venv/bin:$PATH"' in PAGE
    for _ in range(2):
        told = run(system.url, tmp_path, "bash", "-euo", "pipefail", "-c", SNIPPETS["keys"])
        made = [line for line in told.splitlines() if line.startswith("dk_")]
        system.private.update(made)
        assert len(made) == 2
        assert "at sandbox alone" in told

        told = run(system.url, tmp_path, sys.executable, "-c", SNIPPETS["httpx2"])
        assert told.startswith(("queued ", "running "))
        assert '"status":"cancelled"' in told.splitlines()[-1]

        told = run(system.url, tmp_path, sys.executable, "-c", SNIPPETS["openai"])
        assert " cancelled\n" in told
        assert "Error code: 404 - There is no such job. not_found req_" in told

        if shutil.which("curl") is None:
            pytest.skip("there is no curl here")
        told = run(system.url, tmp_path, "bash", "-euo", "pipefail", "-c", SNIPPETS["curl"])
        assert '"object":"distillation.estimate"' in told
        assert "id: 2\n" in told
        assert '"status":"purging"' in told


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
def test_the_first_job_of_the_readme_is_accepted_with_the_key_that_the_stack_has_made(system: System, tmp_path: Path):
    first = re.search(r"^## Your first job\n\n```sh\nmake up .*?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert first is not None
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".distillery").mkdir()
    (tmp_path / ".distillery" / "admin_key").write_text(f"{KEY}\n", encoding="utf-8")
    lines = "unset DISTILL_API_KEY\n" + first[1].replace("http://127.0.0.1:8600", system.url)
    told = run(system.url, tmp_path, "bash", "-euo", "pipefail", "-c", lines)
    assert '"status":"queued"' in told


def test_every_scope_is_explained():
    assert [scope for scope in get_args(Scope) if f"| `{scope}` |" not in PAGE] == []


@pytest.mark.parametrize("status", ["not_submitted", "refused", "awaiting_deployment", "deleted", "cancelled"])
def test_every_status_that_we_give_a_student_is_explained(status: str):
    assert f"| `{status}` |" in PAGE
    assert f"`{status}`" in (StudentOut.__doc__ or "")

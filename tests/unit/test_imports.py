"""Who may import whom.  Imports go down only; api and worker never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {"api", "worker", "shared", "cli", "sandbox", "bench", "tests"}
MAY_USE = {
    "api": {"shared"},
    "worker": {"shared"},
    "shared": set(),
    "cli": {"shared", "sandbox", "api", "worker"},
    "sandbox": set(),
}
#: Third-party package → where it may be imported.
HOME = {
    "fastapi": ("api/", "sandbox/"),
    "celery": ("worker/", "shared/queue.py"),
    "kombu": ("worker/", "shared/queue.py"),
    "openai": ("worker/providers/", "sandbox/"),
    "pyreqwest": ("worker/providers/",),
}


def imported(file):
    """Full names of the modules a file imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield node.module or ""


FILES = [file for package in MAY_USE for file in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_down_only(file):
    package = file.relative_to(ROOT).parts[0]
    used = {name.partition(".")[0] for name in imported(file)} & OURS - {package}

    assert used <= MAY_USE[package]


@pytest.mark.parametrize("library", sorted(HOME))
def test_each_framework_stays_at_home(library):
    at = {
        str(file.relative_to(ROOT))
        for file in FILES
        if any(name.partition(".")[0] == library for name in imported(file))
    }

    assert {file for file in at if not file.startswith(HOME[library])} == set()
    assert at, "the rule guards nothing any more"

"""What an upload writes to the worker's disk is gone with it, or with the worker."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from worker.scratch import remove_leftovers, scratch_folder

_UPLOADS = """
from worker.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "train.jsonl").write_text("A customer's words.")
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_a_folder_is_gone_at_the_end_of_the_upload_whatever_ends_it(tmp_path):
    def upload():
        with scratch_folder() as folder:
            (folder / "train.jsonl").write_text("words")
            assert remove_leftovers() == 0, "it is in use"
            raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        upload()

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_worker_was_uploading_is_removed_by_the_next_and_nothing_else(tmp_path):
    uploading = [
        subprocess.Popen(
            [sys.executable, "-c", _UPLOADS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        for _ in range(2)
    ]
    folders = [Path(process.stdout.readline().strip()) for process in uploading]
    (tmp_path / "distill-upload-note.txt").write_text("Not ours.")
    uploading[0].kill()
    uploading[0].wait(timeout=10)

    assert remove_leftovers() == 1

    assert not folders[0].exists()
    assert (folders[1] / "train.jsonl").exists()
    assert (tmp_path / "distill-upload-note.txt").exists()
    uploading[1].communicate("\n", timeout=10)
    assert not folders[1].exists()
    for process in uploading:
        process.stdin.close()
        process.stdout.close()

"""Files on their way to a provider: customers' words on the worker's own disk, for no longer than an upload takes.

A worker that is killed removes nothing.  Each folder is locked while it is in use, and the system lets go of the lock
with the process; the next worker that starts on the machine removes what nobody holds."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

_PREFIX: Final = "distill-upload-"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that is gone at the end of the block, and soon after the end of the process."""
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as name:
        held = os.open(name, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            Path(name).mkdir(exist_ok=True)  # a worker may have started, and looked, just before the lock
            yield Path(name)
        finally:
            os.close(held)


def remove_leftovers() -> int:
    """What workers that were killed have left; how many folders."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # gone meanwhile, or another user's
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
            removed += 1
        except OSError:  # in use
            continue
        finally:
            os.close(held)
    return removed

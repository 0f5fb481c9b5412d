"""How many files and sockets a process may have open."""

from __future__ import annotations

import resource
from typing import Final

_ENOUGH: Final = (65_536, 10_240)  # where the hard limit is none at all; macOS takes no soft one above its OPEN_MAX


def raise_open_file_limit() -> int:
    """Lift the soft limit, often 256 or 1,024, to the hard one: a thousand event streams are a thousand sockets.

    Returns the limit that holds then.  One that cannot be lifted stays as it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, *_ENOUGH):
        if wanted == soft or (wanted != resource.RLIM_INFINITY and wanted < soft):
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            continue
        return wanted
    return soft

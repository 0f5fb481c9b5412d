"""`BENCH_PROFILE=file python -m bench api`: the API process under cProfile, for pstats to read once it has ended."""

from __future__ import annotations

import cProfile
import signal
import sys

from api.__main__ import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn would raise it once more, and nothing would be written
    profile = cProfile.Profile()
    try:
        profile.runcall(main)
    finally:
        profile.dump_stats(sys.argv[1])

"""`python -m cli.launch MODULE [ARGUMENT…]`: run a module as `python -m` does, for as long as its supervisor lives.

The supervisor holds the other end of standard input.  When that closes, however the supervisor died, the program is
asked to stop as by SIGTERM; so no API or worker outlives a killed `distill up`.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time
from threading import Thread

#: Longer than a worker's own grace for answers in flight.
LAST_GRACE_SECONDS = 60.0


def _end_with_the_supervisor() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_GRACE_SECONDS)  # in a thread of its own; a program that ends in time ends this with it
    os._exit(1)


def main() -> None:
    module = sys.argv[1]
    del sys.argv[0]
    Thread(target=_end_with_the_supervisor, name="lifeline", daemon=True).start()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

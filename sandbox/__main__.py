"""`python -m sandbox --port 8790 --data-dir .sandbox`"""

import contextlib
import sys

from sandbox.options import read_options
from sandbox.server import serve

if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        serve(read_options(sys.argv[1:]))

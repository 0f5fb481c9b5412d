"""`python -m sandbox --port 8790 --data-dir .sandbox`"""

import sys

from sandbox.options import read_options
from sandbox.server import serve

if __name__ == "__main__":
    serve(read_options(sys.argv[1:]))

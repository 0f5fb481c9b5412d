"""`python -m bench [name] [--quick|--full]`: each benchmark prints a table; without a name, all of them."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys

NAMES = ("completions", "workers", "limits", "fairness", "million", "files", "api", "clients", "polling", "dataset")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", nargs="?", choices=NAMES)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="smaller numbers; the default of a run of all")
    length.add_argument("--full", action="store_true", help="the numbers of the targets, a million prompts among them")
    parser.add_argument("--only", help="completions: `engine` leaves the baselines out")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every `with` still ends what it started
    for name in [options.name] if options.name else NAMES:
        bench = importlib.import_module(f"bench.{name}")
        more = {"only": options.only} if name == "completions" else {}
        bench.main(quick=not options.full, **more)


if __name__ == "__main__":
    main()

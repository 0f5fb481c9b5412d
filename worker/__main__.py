"""`python -m worker`: one worker process."""

from __future__ import annotations

import sys

from shared.logs import configure_logs, warn_of_unknown_settings
from shared.open_files import raise_open_file_limit
from shared.settings_loading import WrongSettings, load_settings
from worker.app import MetricsPortTaken, Worker


def main() -> int:
    """Works until SIGTERM or SIGINT.  Returns 2 for settings that cannot be used."""
    try:
        settings = load_settings()
    except WrongSettings as error:
        sys.stderr.write(f"Wrong settings: {error}.\n")
        return 2
    configure_logs(level=settings.log_level, format=settings.log_format)
    warn_of_unknown_settings()
    raise_open_file_limit()
    try:
        Worker(settings).run()
    except MetricsPortTaken as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

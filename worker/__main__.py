"""`python -m worker`: one worker process."""

from __future__ import annotations

from shared.logs import configure_logs
from shared.open_files import raise_open_file_limit
from shared.settings import load_settings
from worker.app import Worker


def main() -> None:
    settings = load_settings()
    configure_logs(level=settings.log_level, format=settings.log_format)
    raise_open_file_limit()
    Worker(settings).run()


if __name__ == "__main__":
    main()

"""`python -m api`: the API process."""

from __future__ import annotations

import sys

import uvicorn
from pydantic import ValidationError

from api.app import NoAdminKey, create_app
from shared.logs import configure_logs
from shared.settings import load_settings

_GRACE_SECONDS = 10


def main() -> int:
    """Serves until SIGTERM or SIGINT, then lets requests in flight end.  Returns 2 for settings that cannot be used."""
    try:
        settings = load_settings()
        configure_logs(level=settings.log_level, format=settings.log_format)
        app = create_app(settings)
    except ValidationError as error:
        wrong = ", ".join(".".join(map(str, fault["loc"])) + ": " + fault["msg"] for fault in error.errors())
        sys.stderr.write(f"Wrong settings: {wrong}\n")
        return 2
    except (NoAdminKey, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    uvicorn.run(
        app,
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

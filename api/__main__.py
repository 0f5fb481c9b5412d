"""`python -m api`: the API process."""

from __future__ import annotations

import gc
import socket
import sys

import uvicorn
from pydantic import ValidationError

from api.app import NoAdminKey, create_app
from api.watch import Watcher
from shared.logs import configure_logs
from shared.open_files import raise_open_file_limit
from shared.settings import load_settings

_GRACE_SECONDS = 10
_GARBAGE_AFTER = 20_000  # objects made and not let go: a few megabytes


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
    raise_open_file_limit()
    config = uvicorn.Config(
        app,
        host=settings.api_host,
        port=settings.api_port,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    _Server(config, app.state.services.watcher).run()
    return 0


class _Server(uvicorn.Server):
    """On SIGTERM answers first whoever waits or listens: none of them would end by itself."""

    def __init__(self, config: uvicorn.Config, watcher: Watcher) -> None:
        super().__init__(config)
        self._watcher = watcher

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        # What lives as long as the process is not looked through again for cycles, and what a request makes not every
        # 700 objects: a body of a hundred prompts has a thousand of them, and none is in a cycle.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE_AFTER, 20, 20)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watcher.drain()
        await super().shutdown(sockets=sockets)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m api`: the API process."""

from __future__ import annotations

import gc
import socket
import sys

import uvicorn

from api.app import NoAdminKey, create_app
from api.watch import Watcher
from shared.logs import configure_logs, warn_of_unknown_settings
from shared.open_files import raise_open_file_limit
from shared.settings_loading import WrongSettings, load_settings

_GRACE_SECONDS = 10
_GARBAGE_AFTER = 20_000  # objects made and not let go: a few megabytes


def main() -> int:
    """Serves until SIGTERM or SIGINT, then lets requests in flight end.  Returns 2 for settings that cannot be used."""
    try:
        settings = load_settings()
        configure_logs(level=settings.log_level, format=settings.log_format)
        warn_of_unknown_settings()
        app = create_app(settings)
    except WrongSettings as error:
        sys.stderr.write(f"Wrong settings: {error}.\n")
        return 2
    except (NoAdminKey, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for setting, port in (("DISTILL_API_PORT", settings.api_port), ("DISTILL_METRICS_PORT", settings.metrics_port)):
        if complaint := _cannot_listen(settings.api_host, port):
            sys.stderr.write(f"Port {port} of {setting} cannot be listened on at {settings.api_host}: {complaint}.\n")
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


def _cannot_listen(host: str, port: int | None) -> str | None:
    """Why not.  Asked before the server is made, which would tell it by a traceback."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port or 0))
        except OSError as error:
            return error.strerror
    return None


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

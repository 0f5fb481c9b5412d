"""Logging for every process: one event per line, with the ids that explain it, and never a prompt, answer or key."""

from __future__ import annotations

import logging
import sys
from typing import Final, Literal

import structlog

from shared.settings_loading import unknown_names

#: Libraries that write a line per request, or quote what they send.
_QUIET: Final = ("httpx2", "httpcore2", "openai", "kombu", "amqp", "asyncio", "pyreqwest")


def configure_logs(*, level: str, format: Literal["json", "console"]) -> None:
    """Route structlog and the standard library's loggers to stderr, as JSON or for people.

    Tracebacks are rendered without local variables: a frame of ours may hold a prompt or a key."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format == "json":
        tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ending: list[structlog.typing.Processor] = [
            structlog.processors.ExceptionRenderer(tracebacks),
            structlog.processors.JSONRenderer(),
        ]
    else:
        plain = structlog.dev.plain_traceback
        ending = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("celery", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).setLevel(logging.WARNING)


def warn_of_unknown_settings() -> None:
    """A misspelt setting is one that was not set."""
    for name, nearest in unknown_names():
        structlog.get_logger().warning("unknown_setting", name=name, nearest=nearest)

"""Time in the sandbox: the real clock, moved ahead on request, so that a day of waiting takes no day."""

from __future__ import annotations

import time
from datetime import UTC, date, datetime
from email.utils import format_datetime


class Clock:
    def __init__(self, today: date | None = None) -> None:
        self.advanced_seconds = 0.0
        self._calendar_shift = 0.0
        if today is not None:
            noon = datetime(today.year, today.month, today.day, 12, tzinfo=UTC).timestamp()
            self._calendar_shift = noon - time.time()

    def now(self) -> float:
        """Unix seconds.  Stays near the real time unless advanced, because clients compare it with their own."""
        return time.time() + self.advanced_seconds

    def today(self) -> date:
        """The date by which models retire; it starts at the option `today`."""
        return self._calendar().date()

    def http_date(self) -> str:
        """The Date header: the calendar's day, by which clients know what day it is here."""
        return format_datetime(self._calendar(), usegmt=True)

    def _calendar(self) -> datetime:
        return datetime.fromtimestamp(self.now() + self._calendar_shift, UTC)

    def advance(self, seconds: float) -> None:
        self.advanced_seconds += seconds

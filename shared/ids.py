"""Typed ids that speak: `job_…`, `evt_…`.  Made here, checked once at the door, opaque everywhere else."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from functools import lru_cache
from typing import Final, NewType

JobId = NewType("JobId", str)
CompletionId = NewType("CompletionId", str)
EventId = NewType("EventId", str)
DeliveryId = NewType("DeliveryId", str)
FileId = NewType("FileId", str)
KeyId = NewType("KeyId", str)
EndpointId = NewType("EndpointId", str)
RequestId = NewType("RequestId", str)
TenantId = NewType("TenantId", str)

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]
_TIME_CHARS: Final = 10  # 50 bits of unix milliseconds, enough until the year 37,000
_RANDOM_CHARS: Final = 24  # 120 bits
_ANY_CHAR: Final = (_ALPHABET * 8).encode()  # of a byte drawn by chance: five of its bits, as good as any five
_ID: Final = re.compile(rf"[a-z]{{2,5}}_[{_ALPHABET}]{{{_TIME_CHARS + _RANDOM_CHARS}}}")


def _base32(number: int, chars: int) -> str:
    """chars: an even number; two are looked up at once."""
    return "".join([_PAIRS[(number >> shift) & 1023] for shift in range(5 * chars - 10, -1, -10)])


@lru_cache(maxsize=16)
def _moment(ms: int) -> str:
    """What is made in the same millisecond shares it."""
    return _base32(ms, _TIME_CHARS)


def _number(text: str) -> int:
    value = 0
    for char in text:
        value = (value << 5) | _ALPHABET.index(char)
    return value


def _new(prefix: str, now_ms: int | None = None) -> str:
    """Sorted by creation time in plain byte order, so that a list of ids is a list in time."""
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    chance = secrets.token_bytes(_RANDOM_CHARS).translate(_ANY_CHAR).decode()
    return f"{prefix}_{_moment(now_ms)}{chance}"


def new_job_id(now_ms: int | None = None) -> JobId:
    """now_ms: what the job's `created_at` says, so that lists by time and by id agree; None: now."""
    return JobId(_new("job", now_ms))


def first_job_id(ms: int) -> str:
    """Every job created at `ms` (unix) or later has an id from here on, every earlier one an id below."""
    return f"job_{_base32(ms, _TIME_CHARS)}"


def new_event_id() -> EventId:
    return EventId(_new("evt"))


def new_delivery_id() -> DeliveryId:
    return DeliveryId(_new("dlv"))


def new_endpoint_id() -> EndpointId:
    return EndpointId(_new("whe"))


def new_key_id() -> KeyId:
    return KeyId(_new("key"))


def new_file_id() -> FileId:
    return FileId(_new("pf"))


def new_request_id() -> RequestId:
    return RequestId(_new("req"))


def is_id(prefix: str, text: str) -> bool:
    """Whether `text` has the shape of an id of this kind; says nothing of whether it exists."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None


def completion_id(secret: bytes, job_id: JobId, pass_number: int, index: int) -> CompletionId:
    """The id of one completion: where it lies, and 120 bits that only the holder of `secret` can make.

    pass_number: 0 is the teacher's pass, 0 <= pass_number < 2**15.  index: 0 <= index < 2**35.
    So a completion is found again by its id alone, without an index of a million entries."""
    where = _base32(pass_number << 35 | index, _TIME_CHARS)
    return CompletionId(f"cmp_{where}{_seal(secret, f'{job_id}/{where}')}")


def locate_completion(secret: bytes, job_id: JobId, text: str) -> tuple[int, int] | None:
    """(pass_number, index) of an id that `completion_id` made for this job, else None."""
    if not is_id("cmp", text):
        return None
    pass_number, index = _number(text[4:7]), _number(text[7:14])
    genuine = hmac.compare_digest(completion_id(secret, job_id, pass_number, index), text)
    return (pass_number, index) if genuine else None


def event_id(secret: bytes, job_id: JobId, sequence: int) -> EventId:
    """The id under which one event of a job is shown; like `completion_id`, it says where the event lies."""
    where = _base32(sequence, _TIME_CHARS)
    return EventId(f"evt_{where}{_seal(secret, f'{job_id}/event/{where}')}")


def locate_event(secret: bytes, job_id: JobId, text: str) -> int | None:
    """The sequence of an id that `event_id` made for this job, else None."""
    if not is_id("evt", text):
        return None
    sequence = _number(text[4 : 4 + _TIME_CHARS])
    return sequence if hmac.compare_digest(event_id(secret, job_id, sequence), text) else None


def _seal(secret: bytes, what: str) -> str:
    mac = hmac.new(secret, what.encode(), hashlib.sha256).digest()
    return _base32(int.from_bytes(mac[:15]), _RANDOM_CHARS)

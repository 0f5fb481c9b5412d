"""The secrets of a local stack: made once, kept beside its data, readable by their owner alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TENANT = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class KeyFiles:
    secret: Path
    admin: Path

    @property
    def admin_key(self) -> str:
        return self.admin.read_text(encoding="utf-8").strip()


def ensure(data_dir: Path) -> KeyFiles:
    """The key files of this data directory, made now where missing; a restart finds the same keys and so its jobs."""
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = KeyFiles(secret=data_dir / "secret_key", admin=data_dir / "admin_key")
    _create_once(files.secret, lambda: secrets.token_urlsafe(48))
    _create_once(files.admin, new_api_key)
    return files


def new_api_key() -> str:
    """`dk_` and 40 base32 characters, which are 200 random bits."""
    return "dk_" + base64.b32encode(secrets.token_bytes(25)).decode().lower()


def signing_secret(secret: bytes, tenant: str) -> str:
    """The `whsec_…` that a tenant verifies webhooks with, derived as the service derives it."""
    key = hmac.new(secret, b"webhook:" + tenant.encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(key).decode()


def _create_once(path: Path, make: Callable[[], str]) -> None:
    """Written whole under another name first and linked: no crash leaves half a key, no rival's key is overwritten."""
    if path.exists():
        return
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # 0600 from the first moment
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(make() + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    except FileExistsError:
        pass  # another start was first, and its key is the one
    finally:
        Path(draft).unlink()

"""The sandbox's memory: JSON documents by kind and id, and file contents; on disk when it has a directory.

Documents live in dictionaries.  A changed one is written to SQLite by `flush`, which runs before an answer leaves, so
that whatever a client has been told outlives kill -9 of this process."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import msgspec

Json = dict[str, Any]


class Store:
    def __init__(self, data_dir: Path | None) -> None:
        self._tables: dict[str, dict[str, Json]] = {}
        self._contents: dict[str, bytes] = {}
        self._changed: dict[tuple[str, str], Json | None] = {}
        self._directory: Path | None = None
        self._database: sqlite3.Connection | None = None
        if data_dir is not None:
            self._directory = data_dir / "contents"
            self._directory.mkdir(parents=True, exist_ok=True)
            self._database = self._open(data_dir / "sandbox.sqlite3")

    def _open(self, path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None)
        # A second sandbox over the same directory must fail at once, not corrupt what the first one knows.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        # A killed process loses nothing that the operating system has; only a power cut would need more.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("CREATE TABLE IF NOT EXISTS documents (kind TEXT, id TEXT, body BLOB, PRIMARY KEY (kind, id))")
        for kind, key, body in database.execute("SELECT kind, id, body FROM documents ORDER BY rowid"):
            self.table(kind)[key] = msgspec.json.decode(body)
        return database

    def table(self, kind: str) -> dict[str, Json]:
        """All documents of one kind by id, oldest first.  Change them through `put` and `drop` alone."""
        return self._tables.setdefault(kind, {})

    def get(self, kind: str, key: str) -> Json | None:
        return self._tables.get(kind, {}).get(key)

    def put(self, kind: str, key: str, document: Json) -> None:
        self.table(kind)[key] = document
        if self._database is not None:
            self._changed[kind, key] = document

    def drop(self, kind: str, key: str) -> None:
        self.table(kind).pop(key, None)
        if self._database is not None:
            self._changed[kind, key] = None

    def put_content(self, key: str, content: bytes) -> None:
        if self._directory is None:
            self._contents[key] = content
        else:
            (self._directory / key).write_bytes(content)

    def content(self, key: str) -> bytes | None:
        if self._directory is None:
            return self._contents.get(key)
        path = self._directory / key
        return path.read_bytes() if path.exists() else None

    def drop_content(self, key: str) -> None:
        if self._directory is None:
            self._contents.pop(key, None)
        else:
            (self._directory / key).unlink(missing_ok=True)

    def flush(self) -> None:
        """Write what changed since the last call, in one transaction."""
        if self._database is None or not self._changed:
            return
        changed, self._changed = self._changed, {}
        written = [(kind, key, msgspec.json.encode(body)) for (kind, key), body in changed.items() if body is not None]
        dropped = [place for place, body in changed.items() if body is None]
        self._database.execute("BEGIN")
        self._database.executemany("DELETE FROM documents WHERE kind = ? AND id = ?", dropped)
        self._database.executemany(
            "INSERT INTO documents VALUES (?, ?, ?) ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body", written
        )
        self._database.execute("COMMIT")

    def clear(self) -> None:
        for kind, table in self._tables.items():
            for key in list(table):
                self.drop(kind, key)
        self._contents.clear()
        if self._directory is not None:
            for path in self._directory.iterdir():
                path.unlink()
        self.flush()

    def close(self) -> None:
        self.flush()
        if self._database is not None:
            self._database.close()

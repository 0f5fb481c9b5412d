from __future__ import annotations

import re
import stat
from pathlib import Path

from cli import keys
from shared.webhooks import signing_secret


def test_secrets_are_made_once_and_for_their_owner_alone(tmp_path: Path) -> None:
    first = keys.ensure(tmp_path / "data")
    contents = first.secret.read_bytes(), first.admin.read_bytes()
    again = keys.ensure(tmp_path / "data")
    assert (again.secret.read_bytes(), again.admin.read_bytes()) == contents
    for path in (first.secret, first.admin):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"secret_key", "admin_key"}


def test_an_admin_key_looks_like_one_and_no_two_are_alike(tmp_path: Path) -> None:
    one, other = keys.ensure(tmp_path / "one").admin_key, keys.ensure(tmp_path / "other").admin_key
    assert re.fullmatch(r"dk_[a-z2-7]{40}", one)
    assert one != other


def test_the_signing_secret_is_the_one_the_service_signs_with() -> None:
    assert keys.signing_secret(b"s" * 48, "local") == signing_secret(b"s" * 48, "local")

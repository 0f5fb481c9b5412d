"""A store behind TLS, as hosted ones are: both of its clients look at its certificate."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from kombu.exceptions import OperationalError

from cli import embedded
from shared.errors import StoreError
from shared.queue import celery_app
from shared.settings import Settings
from shared.store import Store

pytestmark = pytest.mark.anyio
RELAY = Path(__file__).parents[1] / "tls_relay.py"


@pytest.fixture
def address(valkey: embedded.Embedded, certificate: Path) -> Iterator[str]:
    command = [sys.executable, str(RELAY), str(certificate), urlsplit(valkey.url).path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as relay:
        assert relay.stdout is not None
        yield f"rediss://127.0.0.1:{int(relay.stdout.readline())}/0"
        relay.kill()


def settings_at(address: str) -> Settings:
    return Settings(redis_url=address, secret_key="s" * 40)  # type: ignore[arg-type]


async def rung(settings: Settings) -> None:
    """A message for workers."""
    app = celery_app(settings.broker_url)
    try:
        await asyncio.to_thread(app.send_task, "advance_job", args=("job_1",))
    finally:
        await asyncio.to_thread(app.close)


async def test_jobs_and_messages_go_through_when_the_certificate_is_known(address: str, certificate: Path):
    settings = settings_at(f"{address}?ssl_ca_certs={certificate}")
    store = Store.at(settings.redis_url, patient=False)
    await store.ping()
    await store.close()
    await rung(settings)


async def test_no_password_and_no_message_goes_to_a_server_whose_certificate_is_not(address: str):
    settings = settings_at(address)
    store = Store.at(settings.redis_url, patient=False)
    with pytest.raises(StoreError):
        await store.ping()
    await store.close()
    with pytest.raises(OperationalError, match="CERTIFICATE_VERIFY_FAILED"):
        await rung(settings)

"""Webhooks out, checked with the SDK that customers use."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sandbox_kit import some_pairs, train, until

SECRET = "whsec_" + "c2VjcmV0IG9mIHRoZSBzYW5kYm94"


class Receiver(ThreadingHTTPServer):
    """Answers with the given statuses, the last one for ever, and keeps what it got."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = [200]
        self.got: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        statuses = self.server.statuses
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_end_of_a_job_is_announced_and_signed(client, sandbox, receiver):
    sandbox.admin("webhooks", {"url": receiver.url, "secret": SECRET})
    job = train(client, some_pairs())
    until(lambda: receiver.got, len)
    headers, body = receiver.got[0]
    event = client.webhooks.unwrap(body, headers, secret=SECRET)
    assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", job.id)
    assert headers["user-agent"].startswith("OpenAI/1.0")


def test_a_delivery_is_tried_again_under_the_same_id_until_it_is_taken(client, sandbox, receiver):
    receiver.statuses = [500, 302, 200]
    sandbox.admin("webhooks", {"url": receiver.url, "secret": SECRET, "first_retry_seconds": 0.05})
    train(client, some_pairs(3))
    until(lambda: receiver.got, lambda got: len(got) == 3)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    (delivery,) = until(
        lambda: sandbox.admin("webhooks")["deliveries"], lambda deliveries: all(row["done"] for row in deliveries)
    )
    assert delivery["attempts"] == [500, 302, 200]
    assert delivery["event"]["type"] == "fine_tuning.job.failed"


def test_deliveries_can_come_twice_and_out_of_order(client, sandbox, receiver):
    sandbox.admin("webhooks", {"url": receiver.url, "secret": SECRET, "duplicates": 1})
    train(client, some_pairs(3))
    until(lambda: receiver.got, lambda got: len(got) == 2)
    assert receiver.got[0][1] == receiver.got[1][1]
    sandbox.reset()
    receiver.got.clear()
    sandbox.admin("webhooks", {"url": receiver.url, "secret": SECRET, "reorder": True})
    first, second = train(client, some_pairs(3)), train(client, some_pairs(3))
    until(lambda: receiver.got, lambda got: len(got) == 2)
    ids = [client.webhooks.unwrap(body, headers, secret=SECRET).data.id for headers, body in receiver.got]
    assert ids == [second.id, first.id]

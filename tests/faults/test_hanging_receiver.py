"""Receivers that never answer hold nothing else up."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from system import System


class Hanging:
    """Takes connections, reads nothing, answers nothing."""

    def __enter__(self) -> Hanging:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        while True:
            try:
                self.open.append(self._listener.accept()[0])
            except OSError:
                return

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        for connection in self.open:
            connection.close()


def test_twenty_deliveries_to_a_receiver_that_hangs_hold_no_job_up(tmp_path: Path) -> None:
    settings = {"WORKER_THREADS": "2", "WEBHOOK_TIMEOUT_SECONDS": "60"}
    with Hanging() as receiver, System(tmp_path, settings=settings) as system:
        made = system.client.post("/v1/webhook_endpoints", json={"url": receiver.url, "events": ["job.deleted"]})
        path = f"/v1/webhook_endpoints/{made.raise_for_status().json()['id']}"
        for _ in range(20):
            system.client.post(f"{path}/test").raise_for_status()
        system.start_worker()
        system.until(lambda: len(receiver.open) >= 4, "more hang than there are hands for jobs")

        job = system.finished(system.submit(prompts=30)["id"])

        assert job["status"] == "succeeded"
        log = system.client.get(f"{path}/deliveries?limit=100").json()["data"]
        assert [delivery["attempts"] for delivery in log] == [[]] * 20, "the job ended while all of them still hung"

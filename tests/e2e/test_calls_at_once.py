"""What a provider's table says of calls at once, `max_in_flight`, counted by the provider."""

from __future__ import annotations

from pathlib import Path

from system import System

WORKERS, EACH = 2, 4


def test_a_provider_never_has_more_calls_at_once_than_its_limit_and_the_workers_allow(tmp_path: Path) -> None:
    judge = {"type": "score_model", "provider": "sandbox", "model": "gpt-5.4"}
    settings = {"PROVIDERS__SANDBOX__MAX_IN_FLIGHT": str(EACH), "CHUNK_SIZE": "10"}
    with System(tmp_path, settings=settings, latency_seconds=0.1) as system:
        for _ in range(WORKERS):
            system.start_worker()
        jobs = [
            system.submit(prompts=60, evaluation={"graders": [{"type": "json_match"}, judge]}),
            system.submit(prompts=60, first=60),
        ]

        for job in jobs:
            ended = system.finished(job["id"])
            assert ended["status"] == "succeeded", ended["error"]

        assert EACH < system.sandbox.ledger()["in_flight"]["max"] <= WORKERS * EACH

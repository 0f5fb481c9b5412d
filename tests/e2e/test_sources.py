"""Jobs from what was generated before, by real processes."""

from __future__ import annotations

from pathlib import Path

from tests.system import TEACHER, System


def asked(system: System) -> int:
    """Completions that the teacher was paid for, at the provider."""
    billed: int = system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"]
    return billed


def test_a_job_from_a_job_buys_nothing_again(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        system.start_worker()
        first = system.finished(system.submit(prompts=80)["id"])
        assert first["status"] == "succeeded", first["error"]
        bought = asked(system)

        split = {"validation": 0.1, "holdout": 0.3, "seed": 11}
        second = system.finished(system.submit(source={"type": "job", "job_id": first["id"]}, split=split)["id"])

        assert second["status"] == "succeeded", second["error"]
        assert asked(system) == bought
        assert second["progress"]["reused"] == second["progress"]["completions_settled"] == 80
        assert float(second["cost"]["by_stage"]["generating_usd"]) == 0
        assert second["dataset"] != first["dataset"]

"""Jobs from what was generated before, by real processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from system import TEACHER, System, a_request, a_ticket


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """For jobs of prompts and metadata of their own, and no kill."""
    with System(tmp_path_factory.mktemp("sources")) as running:
        running.start_worker()
        yield running


def asked(system: System) -> int:
    """Completions that the teacher was paid for, at the provider."""
    billed: int = system.sandbox.ledger()["per_model"][TEACHER]["completions_billed"]
    return billed


def test_a_job_from_a_job_buys_nothing_again(system: System) -> None:
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


def test_a_job_from_stored_completions_generates_nothing_and_reads_each_once(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        teacher = OpenAI(base_url=system.sandbox.base_url, api_key="sk-sandbox", max_retries=0)
        instructions = {"role": "system", "content": a_request()["system_prompt"]}
        tool = {"type": "function", "function": {"name": "escalate", "parameters": {"type": "object"}}}

        def store(number: int, **more: Any) -> str:
            said = {"role": "user", "content": a_ticket(number)}
            metadata = {"team": "support"} | more.pop("metadata", {})
            return teacher.chat.completions.create(
                model=TEACHER, messages=[instructions, said], store=True, metadata=metadata, **more
            ).id

        with ThreadPoolExecutor(16) as pool:
            ids = list(pool.map(store, range(249)))
        with_tools = store(249, tools=[tool])
        store(250, metadata={"team": "sales"})
        store(251, metadata={"distillation_job": "job_of_somebody_else", "prompt": "0"})
        bought = asked(system)

        worker = system.start_worker()
        source = {"type": "stored_completions", "provider": "sandbox", "metadata": {"team": "support"}}
        job = system.submit(source=source, system_prompt=None)
        system.until(lambda: system.job(job["id"])["progress"]["prompts_total"] >= 100, "some are read")
        system.kill(worker)
        system.start_worker()
        ended = system.finished(job["id"])

        assert ended["status"] == "succeeded", ended["error"]
        assert asked(system) == bought
        assert ended["progress"]["prompts_total"] == ended["progress"]["completions_settled"] == 250
        path, shown, after = f"/v1/jobs/{job['id']}", list[dict[str, Any]](), {}
        while True:
            query = {"limit": 100, "role": "teacher", **after}
            page = system.client.get(f"{path}/completions", params=query).json()
            shown += page["data"]
            if not page["has_more"]:
                break
            after = {"after": page["last_id"]}
        assert sorted(one["prompt_key"] for one in shown) == sorted([*ids, with_tools])
        assert all(one["messages"][0] == instructions and one["output"]["content"] for one in shown)
        lines = [
            json.loads(line)
            for split in ("train", "validation", "holdout")
            for line in system.client.get(f"{path}/dataset", params={"split": split}).text.splitlines()
        ]
        assert [line["tools"] for line in lines if "tools" in line] in ([], [[tool]])
        events = system.client.get(f"{path}/events", params={"limit": 100}).json()["data"]
        [told] = [event for event in events if "left_out" in event["data"]]
        assert told["data"] == {"read": 250, "left_out": {"foreign": 1}}


def test_where_nothing_is_stored_the_job_says_so(system: System) -> None:
    source = {"type": "stored_completions", "provider": "sandbox", "metadata": {"team": "nobody"}}
    ended = system.finished(system.submit(source=source)["id"])
    assert (ended["status"], ended["error"]["code"]) == ("failed", "too_few_accepted")
    assert ended["error"]["param"] == "source.metadata"


def test_what_no_job_has_stored_is_for_the_operator_alone(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        teacher = OpenAI(base_url=system.sandbox.base_url, api_key="sk-sandbox", max_retries=0)
        said = [{"role": "user", "content": a_ticket(7)}]
        teacher.chat.completions.create(model=TEACHER, messages=said, store=True, metadata={"team": "support"})  # type: ignore[arg-type]
        teacher.close()
        scopes = ["jobs:write", "jobs:read", "data:read"]
        made = system.client.post("/v1/api_keys", json={"tenant": "acme", "scopes": scopes}).raise_for_status().json()
        system.client.headers["Authorization"] = f"Bearer {made['key']}"
        system.start_worker()

        source = {"type": "stored_completions", "provider": "sandbox", "metadata": {"team": "support"}}
        ended = system.finished(system.submit(source=source)["id"])

        assert (ended["status"], ended["error"]["code"]) == ("failed", "too_few_accepted")
        assert ended["progress"]["prompts_total"] == 0

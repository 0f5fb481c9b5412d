"""A job from an uploaded file, by real processes: from the last line of the file to the verdict."""

from __future__ import annotations

import json
from pathlib import Path

from system import System, a_request, a_ticket


def test_a_job_from_a_file_goes_to_its_verdict_though_the_file_is_deleted(tmp_path: Path) -> None:
    with System(tmp_path) as system:
        system.start_worker()
        system.start_worker()
        prompts = [{"key": f"t-{n}", "messages": [{"role": "user", "content": a_ticket(n)}]} for n in range(300)]
        lines = b"".join(json.dumps(prompt).encode() + b"\n" for prompt in prompts)
        answer = system.client.post("/v1/files", files={"file": ("tickets.jsonl", lines)})
        assert answer.status_code == 201, answer.text
        file = answer.json()
        assert (file["filename"], file["prompts"], file["bytes"]) == ("tickets.jsonl", 300, len(lines))

        job = system.submit(source={"type": "file", "file_id": file["id"]})
        assert system.client.delete(f"/v1/files/{file['id']}").status_code == 200
        ended = system.finished(job["id"])

        assert ended["status"] == "succeeded", ended["error"]
        assert ended["progress"]["completions_settled"] == 300
        results = system.client.get(f"/v1/jobs/{job['id']}/results").json()
        assert results["students"][0]["verdict"] == "better"

        path, instructions = f"/v1/jobs/{job['id']}", a_request()["system_prompt"]
        shown = system.client.get(f"{path}/completions", params={"limit": 100, "role": "teacher"}).json()["data"]
        assert [one["prompt_key"] for one in shown] == [f"t-{n}" for n in range(100)]
        assert all(one["messages"][0] == {"role": "system", "content": instructions} for one in shown)
        train = system.client.get(f"{path}/dataset", params={"split": "train"}).text.splitlines()
        assert len(train) == ended["dataset"]["train"] > 150
        assert all(json.loads(line)["messages"][0]["content"] == instructions for line in train)

        # The same prompts inline are the same questions: every answer is there already.
        again = system.submit(source={"type": "inline", "prompts": prompts})
        assert system.finished(again["id"])["progress"]["reused"] == 300

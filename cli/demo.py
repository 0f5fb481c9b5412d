"""`distill demo`: one whole distillation on this machine, from prompts to verdict, with nothing left behind."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from cli import render
from cli.client import Api, Endpoint
from cli.stack import Options, Stack

TEACHER = "gpt-6.1-sol"
STUDENT = "gpt-4.1-mini-2025-04-14"
INLINE_PROMPTS_MAX = 1000
POLL_SECONDS = 0.25  # progress that looks live, at four cheap reads a second
TERMINAL = frozenset({"succeeded", "failed", "cancelled"})

Json = dict[str, Any]


class DemoFailed(RuntimeError):
    """Nothing to show; the message says why and where to read on."""


def find_example(path: Path) -> Path:
    """As given, else beside the code or where the wheel puts it: the demo runs from any folder."""
    for folder in (Path(), Path(__file__).resolve().parent.parent, Path(sys.prefix, "share", "distillery")):
        if (folder / path).is_file():
            return folder / path
    raise DemoFailed(f"{path} is not here; name the files with --file and --system-prompt.")


def read_prompts(path: Path) -> list[Any]:
    """One prompt per line: a string, or an object with `messages`.  Raises `DemoFailed`, naming the line."""
    prompts: list[Any] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                prompt = json.loads(line)
            except ValueError as error:
                raise DemoFailed(f"{path}, line {number} is not JSON: {error}.") from error
            if not isinstance(prompt, str) and not (isinstance(prompt, dict) and "messages" in prompt):
                raise DemoFailed(f"{path}, line {number} is neither a string nor an object with `messages`.")
            prompts.append(prompt)
    if not 0 < len(prompts) <= INLINE_PROMPTS_MAX:
        raise DemoFailed(f"{path} holds {len(prompts)} prompts; the demo takes 1 to {INLINE_PROMPTS_MAX:,}.")
    return prompts


def job_request(prompts: list[Any], system_prompt: str) -> Json:
    return {
        "name": "demo",
        "teacher": {
            "provider": "sandbox",
            "model": TEACHER,
            "params": {"temperature": 0.01, "top_p": 0.9, "max_completion_tokens": 300},
        },
        "students": [{"provider": "sandbox", "model": STUDENT, "suffix": "triage", "seed": 7}],
        "system_prompt": system_prompt,
        "source": {"type": "inline", "prompts": prompts},
        "store": True,
        "metadata": {"distillation": "teams_dataset"},
        "evaluation": {"graders": [{"type": "json_match"}, {"type": "text_similarity"}]},
        "budget": {"max_cost_usd": "50.00", "on_limit": "fail"},
    }


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without this service's settings and without keys: a demo never spends money or touches another store."""
    return {name: value for name, value in environ.items() if not name.startswith(("DISTILL_", "OPENAI_", "SANDBOX_"))}


def run(console: Console, *, file: Path, system_prompt: Path, keep: bool, timeout_seconds: float = 900.0) -> None:
    """Raises `DemoFailed`, or what the stack and the API raise; whatever happens, nothing is left running."""
    prompts = read_prompts(find_example(file))
    request = job_request(prompts, find_example(system_prompt).read_text(encoding="utf-8").strip())
    data_dir = Path(tempfile.mkdtemp(prefix="distill-demo-")).resolve()
    stack = Stack(
        Options(data_dir, port=0, sandbox_port=0, sandbox=True),
        environ=clean_environment(os.environ),
        cwd=data_dir,  # an .env of the user's folder is none of the demo's business
        say=lambda line: console.print(line, style="yellow", markup=False, soft_wrap=True),
    )
    remove = not keep
    try:
        with console.status("Starting Valkey, the API, a worker and the sandbox (an OpenAI stand-in)"):
            address = stack.start()
        console.print(
            f"The stack runs: API at {address.api_url}, all data in {data_dir}", highlight=False, soft_wrap=True
        )
        endpoint = Endpoint(address.api_url, stack.admin_key)
        with Api(endpoint) as api:
            path = distill(api, request, console, data_dir=data_dir, timeout_seconds=timeout_seconds)
        if keep:
            console.print("\nOver HTTP, while the stack runs:")
            for line in curl_lines(endpoint, path):
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
            console.print(f"\nRunning until Ctrl-C, and its data stay in {data_dir}.", highlight=False, soft_wrap=True)
            threading.Event().wait()
        console.print("\n`distill demo --keep` leaves this stack running, and says how to look further over HTTP.")
    except Exception as error:  # whatever it was, the logs are kept and named
        remove = False  # the logs explain it
        raise DemoFailed(f"{error}\nThe logs are kept in {data_dir / 'logs'}.") from error
    finally:
        stack.stop()
        if remove:
            shutil.rmtree(data_dir, ignore_errors=True)


def distill(api: Api, request: Json, console: Console, *, data_dir: Path, timeout_seconds: float) -> str:
    """Submit, follow and show one job; its path.  Raises `DemoFailed` when it does not succeed."""
    began = time.monotonic()
    job = api.post("/v1/jobs", request, idempotency_key=str(uuid.uuid4()))
    prompts = len(request["source"]["prompts"])
    console.print(
        f"Submitted {job['id']}: {prompts} prompts, {TEACHER} teaches {STUDENT}", highlight=False, soft_wrap=True
    )
    job, elapsed = follow(api, job, console, timeout_seconds=timeout_seconds)
    took = time.monotonic() - began
    if job["status"] != "succeeded":
        raise DemoFailed(failure(job))
    path = f"/v1/jobs/{job['id']}"
    show_results(console, api.get(f"{path}/results"))
    console.print(f"\nTook {render.seconds(took)}: {render.timings(elapsed)}", highlight=False, soft_wrap=True)
    console.print(
        f"Spent {render.usd(job['cost']['spent_usd'])} of the sandbox's play money", highlight=False, soft_wrap=True
    )
    dataset = data_dir / "dataset.jsonl"
    api.download(f"{path}/dataset", dataset)
    content = dataset.read_bytes()
    lines, digest = len(content.splitlines()), hashlib.sha256(content).hexdigest()
    console.print(f"Dataset: {lines} lines, sha256 {digest}", highlight=False, soft_wrap=True)
    return path


def follow(api: Api, job: Json, console: Console, *, timeout_seconds: float) -> tuple[Json, dict[str, float]]:
    """The job once it is terminal, and how long each stage was seen, in seconds."""
    clock = StageClock()
    deadline = time.monotonic() + timeout_seconds
    said = ""
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while True:
            elapsed = clock.tick(job, time.monotonic())
            if console.is_terminal:
                live.update(render.progress_view(job, elapsed))
            elif (line := f"{job['status']} {job.get('stage') or ''}".strip()) != said:
                said = line
                console.print(render.where_it_stands(job), markup=False, highlight=False, soft_wrap=True)
            if job["status"] in TERMINAL:
                return job, elapsed
            if time.monotonic() > deadline:
                raise DemoFailed(
                    f"Not finished after {render.seconds(timeout_seconds)}: {render.where_it_stands(job)}."
                )
            time.sleep(POLL_SECONDS)  # one person watches one job: a stream would save nothing here
            job = api.get(f"/v1/jobs/{job['id']}")


class StageClock:
    """How long each stage takes, as seen by looking now and then."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._since = 0.0
        self._ended: dict[str, float] = {}

    def tick(self, job: Mapping[str, Any], now: float) -> dict[str, float]:
        """Seconds by stage so far.  A stage that was over between two looks counts as no time at all."""
        stage = job.get("stage") if job["status"] not in TERMINAL else None
        if stage != self._stage:
            if self._stage is not None:
                self._ended[self._stage] = self._ended.get(self._stage, 0.0) + now - self._since
            reached = render.STAGES.index(stage) if stage in render.STAGES else 0
            for missed in render.STAGES[:reached]:
                self._ended.setdefault(missed, 0.0)
            self._stage, self._since = stage, now
        present = {} if self._stage is None else {self._stage: self._ended.get(self._stage, 0.0) + now - self._since}
        return self._ended | present


def show_results(console: Console, results: Json) -> None:
    console.print()
    console.print(render.results_table(results))
    for student in results.get("students") or ():
        console.print(render.verdict_sentence(student, results.get("rows") or ()), highlight=False, soft_wrap=True)
    if results.get("samples"):
        console.print("\nFrom the holdout:")
        console.print(render.samples_view(results["samples"], console.width))


def failure(job: Json) -> str:
    """Why a job did not succeed, as one sentence."""
    error = job.get("error") or {}
    stage = f" while {error['stage']}" if error.get("stage") else ""
    return f"The job is {job['status']}{stage}: {error.get('message') or 'no reason was given'} [{error.get('code')}]"


def curl_lines(endpoint: Endpoint, path: str) -> list[str]:
    """Ready to paste: the key once, then status, completions, dataset and results."""
    login = '-H "Authorization: Bearer $DISTILL_API_KEY"'
    paths = (path, f"{path}/completions?limit=3", f"{path}/dataset?split=train", f"{path}/results")
    lines = [f"curl -s {login} {shlex.quote(endpoint.url + tail)}" for tail in paths]
    return [f"export DISTILL_API_KEY={shlex.quote(endpoint.api_key or '')}", *lines]

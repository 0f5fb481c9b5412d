"""What the sandbox's tests share: clients, questions, training files, and waiting."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from openai import OpenAI

from sandbox.testing import SandboxProcess

TRIAGE = "You triage support tickets into categories. Answer with compact JSON."


def client_of(sandbox: SandboxProcess, **options: Any) -> OpenAI:
    return OpenAI(**{"base_url": sandbox.base_url, "api_key": "sk-test", "max_retries": 0, "timeout": 20} | options)


def ask(client: OpenAI, text: str, *, model: str = "gpt-6.1-sol", system: str = TRIAGE, **params: Any) -> Any:
    messages: Any = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return client.chat.completions.create(model=model, messages=messages, **params)


def sft_file(pairs: Sequence[tuple[str, str]]) -> tuple[str, bytes]:
    return "train.jsonl", b"".join(
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]}).encode()
        + b"\n"
        for asked, said in pairs
    )


def some_pairs(count: int = 12) -> list[tuple[str, str]]:
    return [
        (f"Where is parcel {n}?", "shipping") if n % 2 else (f"Invoice {n} is wrong", "billing") for n in range(count)
    ]


def upload(client: OpenAI, pairs: Sequence[tuple[str, str]]) -> str:
    return client.files.create(file=sft_file(pairs), purpose="fine-tune").id


def train(client: OpenAI, pairs: Sequence[tuple[str, str]], *, model: str = "qwen3-8b", **params: Any) -> Any:
    """A fine-tuning job over these pairs, once it has ended."""
    job = client.fine_tuning.jobs.create(model=model, training_file=upload(client, pairs), **params)
    return ended(lambda: client.fine_tuning.jobs.retrieve(job.id))


def ended(look: Callable[[], Any], *, seconds: float = 10) -> Any:
    """What look returns, once its status is a last one."""
    return until(
        look, lambda it: it.status in {"succeeded", "failed", "cancelled", "completed", "expired"}, seconds=seconds
    )


def until(look: Callable[[], Any], good: Callable[[Any], bool], *, seconds: float = 10) -> Any:
    deadline = time.monotonic() + seconds
    while not good(seen := look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still {seen!r} after {seconds} s")
        time.sleep(0.02)
    return seen

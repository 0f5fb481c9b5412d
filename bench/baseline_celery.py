"""The third baseline: one Celery task per prompt, the synchronous SDK, the answer kept in Redis by the task.

`celery -A bench.baseline_celery worker -P threads`; addresses come in BENCH_BROKER, BENCH_URL and BENCH_REDIS."""

from __future__ import annotations

import os
import threading

import redis
from celery import Celery
from openai import OpenAI

app = Celery("bench", broker=os.environ["BENCH_BROKER"])
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=4,
    worker_enable_remote_control=False,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


_lock = threading.Lock()
_made: list[tuple[OpenAI, redis.Redis]] = []


def _clients() -> tuple[OpenAI, redis.Redis]:
    """One of each for all threads."""
    with _lock:
        if not _made:
            client = OpenAI(api_key="sk-bench", base_url=os.environ["BENCH_URL"], max_retries=0, timeout=120)
            _made.append((client, redis.Redis.from_url(os.environ["BENCH_REDIS"], max_connections=1_000)))
    return _made[0]


@app.task(name="complete")
def complete(number: int, messages: list) -> None:
    client, store = _clients()
    answer = client.chat.completions.create(model="bench-teacher", messages=messages, max_completion_tokens=400)
    store.hset("bench:answers", str(number), answer.model_dump_json())

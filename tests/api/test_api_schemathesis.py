"""openapi.json against the server, by schemathesis: whatever is sent, the answer is one that the contract names.

The server is a real process on a real store that holds one of everything, so that ids lead somewhere.  The cases are
the same in every run; for more of them: SCHEMATHESIS_EXAMPLES=500."""

from __future__ import annotations

import asyncio
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from api_kit import AUTHORIZED, REPO, Api, a_request, an_api_process, answer_all, begin, curate, some_settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from cli import embedded
from shared.lifecycle import JobStatus
from shared.store import Store
from shared.store.connection import connect
from shared.store.jobs import Change

SEED = 7
READY = "GET /readyz"
TOLD = "POST /v1/jobs/{job_id}/students/{number}/endpoint"  # of a student that is trained and not deployed
SCHEMA = schemathesis.openapi.from_path(
    REPO / "openapi.json",
    config=schemathesis.Config.from_dict(
        {
            "seed": SEED,
            "generation": {
                "max-examples": int(os.environ.get("SCHEMATHESIS_EXAMPLES", "10")),
                "deterministic": True,
                "with-security-parameters": False,  # test_api_matrix.py asks every route without a key
            },
            "operations": [  # no worker looks at what is due here, and that is what it says
                {"include-name": READY, "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "4xx", "503"]}}}
            ],
        }
    ),
)
#: Not asked here: what JSON Schema cannot say (cursors, prices, prompts that are too few) may be refused.
EXCLUDED = [checks.positive_data_acceptance]
#: Of a created job, members that schemathesis may choose: the others name providers and models that must exist.
FREE = {"name", "system_prompt", "store", "metadata", "split", "evaluation", "deadline_seconds", "retention_days"}

#: Answers 2xx to whom the provider's signature is known, so to none of these.
SIGNED = "POST /v1/provider_events/{provider}"

EVENTS = ["job.failed", "webhook_endpoint.disabled"]
Ids = dict[str, list[str]]


@schemathesis.serializer("application/jsonl", "application/x-ndjson")
def _a_line(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """A text as the JSON text that a line may be."""
    return value if isinstance(value, bytes) else msgspec.json.encode(value) + b"\n"


async def _one_of_everything(redis_url: str) -> tuple[Ids, Ids, Ids]:
    """Path parameter → ids of objects in every state that an answer depends on; of some to change; to delete."""
    client = connect(redis_url, patient=True)
    await client.flushdb()
    api = Api(some_settings(), Store(client), client)
    async with api.http as http:

        async def made(path: str, **sent: Any) -> str:
            return str((await http.post(path, **sent)).raise_for_status().json()["id"])

        finished = await begin(api, await api.create())
        await answer_all(api, finished)
        await curate(api, finished)
        ended = Change(status=JobStatus.SUCCEEDED, results={"object": "distillation.result", "rows": []})
        await api.store.jobs.change(finished, ended)

        async def a_running_job() -> str:
            return (await begin(api, await api.create())).id

        async def a_cancelled_job() -> str:
            job_id = str((await api.create())["id"])
            (await http.post(f"/v1/jobs/{job_id}/cancel")).raise_for_status()
            return job_id

        async def a_file() -> str:
            return await made("/v1/files", content=b'"Hello"', headers={"Content-Type": "application/jsonl"})

        async def an_endpoint() -> str:
            return await made("/v1/webhook_endpoints", json={"url": "https://hooks.example.com/x", "events": EVENTS})

        async def a_key() -> str:
            return await made("/v1/api_keys", json={"tenant": "acme", "scopes": ["jobs:read"]})

        deleted = await a_cancelled_job()
        (await http.delete(f"/v1/jobs/{deleted}")).raise_for_status()
        queued = str((await api.create())["id"])
        listed = (await http.get(f"/v1/jobs/{finished.id}/completions")).json()
        endpoint = await an_endpoint()
        ids = {
            "job_id": [finished.id, await a_running_job(), await a_cancelled_job(), deleted, queued],
            "completion_id": [completion["id"] for completion in listed["data"][:3]],
            "file_id": [await a_file()],
            "endpoint_id": [endpoint],
            "delivery_id": [await made(f"/v1/webhook_endpoints/{endpoint}/test")],
            "key_id": [await a_key()],
            "code": ["not_found", "validation_failed"],
            "provider": ["openai"],
            "number": ["0"],
        }
        changing = {
            "job_id": [finished.id, await a_running_job(), await a_cancelled_job()],
            "endpoint_id": [await an_endpoint()],
        }
        doomed = {
            "job_id": [await a_cancelled_job() for _ in range(4)] + [queued],
            "file_id": [await a_file() for _ in range(4)],
            "endpoint_id": [await an_endpoint() for _ in range(4)],
            "key_id": [await a_key() for _ in range(4)],
        }
    await client.aclose()
    return ids, changing, doomed


class Server:
    """The process and what is in it.  draw: the same in every run."""

    def __init__(self, url: str, ids: Ids, changing: Ids, doomed: Ids) -> None:
        self.url, self.ids, self.changing, self.doomed = url, ids, changing, doomed
        self.session = requests.Session()
        self.session.headers.update(AUTHORIZED)
        self.draw = random.Random(SEED)
        self.statuses: dict[str, set[int]] = {}
        self.meant_well: Counter[str] = Counter()

    def lead_somewhere(self, case: schemathesis.Case) -> None:
        """Real ids in three of four paths, and most new jobs with a teacher that exists.

        Until an operation has led somewhere, cases that are meant well ask it about one object after the other."""
        meant_well = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
        nowhere_yet = not any(status < 300 for status in self.statuses.get(case.operation.label, ()))
        self.meant_well[case.operation.label] += meant_well
        if self.draw.random() < 0.75 or (meant_well and nowhere_yet):
            operation = case.operation
            changes = operation.method == "patch" or operation.path.endswith("/cancel")
            real = self.doomed if operation.method == "delete" else self.changing if changes else self.ids
            for name in re.findall(r"{(\w+)}", case.path):
                if meant_well and nowhere_yet:
                    turn = self.meant_well[operation.label] - 1
                    case.path_parameters[name] = real[name][turn % len(real[name])]
                elif meant_well or name != "number":  # which may be what is wrong with the case
                    case.path_parameters[name] = self.draw.choice(real[name])
        if meant_well and case.operation.label == "POST /v1/jobs" and self.draw.random() < 0.75:
            free = {name: value for name, value in case.body.items() if name in FREE} if case.body else {}
            case.body = a_request(**free)
            case.headers.pop("Idempotency-Key", None)
        if case.operation.label.endswith("/events") and self.draw.random() < 0.25:
            case.headers["Accept"] = "text/event-stream"
            case.path_parameters["job_id"] = self.draw.choice(self.ids["job_id"][:1] + self.ids["job_id"][2:4])


@pytest.fixture(scope="module")
def server(valkey: embedded.Embedded) -> Iterator[Server]:
    ids, changing, doomed = asyncio.run(_one_of_everything(valkey.url))
    with an_api_process(valkey.url, ACTIVE_JOBS_MAX="0", LOG_LEVEL="error") as (_, url):
        found = Server(url, ids, changing, doomed)
        yield found
        found.session.close()


@SCHEMA.parametrize()
def test_every_answer_is_one_that_the_contract_names(server: Server, case: schemathesis.Case):
    server.lead_somewhere(case)
    answer = case.call(base_url=server.url, session=server.session, timeout=10)
    server.statuses.setdefault(case.operation.label, set()).add(answer.status_code)
    case.validate_response(answer, excluded_checks=EXCLUDED)


def test_the_cases_led_somewhere(server: Server):
    """Without real ids and bodies that pass, all of the above would be an exercise in 404 and 422."""
    if len(server.statuses) < 30:
        pytest.skip("asks about a run of the whole file")
    never = {label for label, seen in server.statuses.items() if not any(status < 300 for status in seen)}
    assert never <= {SIGNED, READY, TOLD}

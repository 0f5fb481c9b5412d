"""openapi.json, as committed: what other services build upon."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from api.app import written_contract
from api.problem_table import PROBLEMS

COMMITTED = Path(__file__).parents[2] / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(written_contract())
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def test_the_committed_contract_is_the_one_that_is_served():
    assert COMMITTED.read_text(encoding="utf-8") == written_contract(), "run: python -m api.app > openapi.json"


def test_every_reference_leads_somewhere():
    referred = {part.split('"')[0] for part in json.dumps(DOCUMENT).split("#/components/schemas/")[1:]}
    assert referred <= set(DOCUMENT["components"]["schemas"])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_described_with_its_errors(name: str):
    operation = OPERATIONS[name]
    assert operation.get("description") or operation["summary"]
    wanted = {"500"} | ({"401", "403", "422", "429", "503"} if operation["security"] else set())
    wanted |= {"404"} if "{" in name else set()
    wanted |= {"400", "413", "415"} if "requestBody" in operation else set()
    assert wanted <= set(operation["responses"])
    for status, answer in operation["responses"].items():
        if int(status) >= 400:
            assert answer["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
            for code in answer["description"].split(", "):
                assert PROBLEMS[code].status == int(status)


def test_what_is_answered_always_has_all_its_keys():
    schemas = DOCUMENT["components"]["schemas"]
    for name in ("JobOut", "EventOut", "CompletionOut", "ApiKeyOut", "Page_JobOut_", "Problem"):
        assert set(schemas[name]["required"]) == set(schemas[name]["properties"])

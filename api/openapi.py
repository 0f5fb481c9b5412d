"""openapi.json beyond what the framework derives: request bodies, and the scope that each operation asks for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from api.deps import REQUEST_MODELS, Requirement
from api.problems import SCHEMA, documented

_ALWAYS: Final = (500,)
_GUARDED: Final = (401, 403, 422, 429, 503)  # of every route that asks for a key


def document(app: FastAPI, routers: Sequence[APIRouter]) -> dict[str, Any]:
    """The whole contract, written once per process."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    found = FastAPI.openapi(app)
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name, model in REQUEST_MODELS.items():
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[name] = schema
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    schemas["Problem"] = SCHEMA
    components["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer", "description": "dk_…"}}
    for route in routes(routers):
        for method in route.methods or ():
            operation = found["paths"].get(route.path_format, {}).get(method.lower())
            if operation is not None:
                scopes = required_scopes(route)
                operation["security"] = [{"api_key": scopes}] if scopes else []
                operation["responses"].pop("422", None)  # the framework's own shape, which we never send
                for status, problem in documented(*(_GUARDED if scopes else ()), *_ALWAYS).items():
                    operation["responses"].setdefault(str(status), problem)
                operation["responses"] = dict(sorted(operation["responses"].items()))
    return found


def routes(routers: Sequence[APIRouter]) -> list[APIRoute]:
    return [route for router in routers for route in router.routes if isinstance(route, APIRoute)]


def required_scopes(route: APIRoute) -> list[str]:
    return sorted({call.scope for call in _calls(route.dependant) if isinstance(call, Requirement)})


def _calls(dependant: Dependant) -> Iterator[Any]:
    yield dependant.call
    for inner in dependant.dependencies:
        yield from _calls(inner)

"""GET /models: what can be called, since when, and until which day."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox.catalog import CATALOG, Model
from sandbox.errors import ApiError, model_not_found
from sandbox.store import Json
from sandbox.web import answer, world_of


def public(model: Model) -> Json:
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "shutdown_date": model.shutdown_date.isoformat() if model.shutdown_date else None,
    }


async def list_all(request: Request) -> Response:
    """Retired models stay listed for a while, with their day; checkpoints never are."""
    world = world_of(request)
    trained = [name for name, row in world.store.table("model").items() if row["listed"]]
    students = [model for name in trained if (model := world.any_model(name)) is not None]
    return answer({"object": "list", "data": [public(model) for model in [*CATALOG.values(), *students]]})


async def retrieve(request: Request) -> Response:
    name = request.path_params["model"]
    if name in CATALOG:
        return answer(public(CATALOG[name]))
    return answer(public(world_of(request).find_model(name)))


async def delete(request: Request) -> Response:
    """Only one's own: a fine-tuned model, with its checkpoints."""
    world, name = world_of(request), request.path_params["model"]
    if name in CATALOG:
        raise ApiError(403, "You have insufficient permissions to delete this model.")
    if world.store.get("model", name) is None:
        raise model_not_found(name)
    for key in [key for key in world.store.table("model") if key == name or key.startswith(f"{name}:ckpt-step-")]:
        world.forget_model(key)
    return answer({"id": name, "object": "model", "deleted": True})

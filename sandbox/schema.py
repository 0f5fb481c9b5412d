"""The plainest value that satisfies a JSON schema."""

from __future__ import annotations

from typing import Any

from sandbox.speech import draw


def filled(schema: Any, seed: str, *, root: Any = None, depth: int = 0) -> Any:
    """Same schema and seed, same value.  Knows what strict mode of the provider allows, and no more."""
    root = schema if root is None else root
    if not isinstance(schema, dict) or depth > 12:
        return None
    if "$ref" in schema:
        return filled(_resolved(root, schema["$ref"]), seed, root=root, depth=depth + 1)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][draw(len(schema["enum"]), seed)]
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return filled(schema[name][0], seed, root=root, depth=depth + 1)
    kind = schema.get("type", "object")
    if isinstance(kind, list):
        kind = next((k for k in kind if k != "null"), "null")
    return _value(kind, schema, seed, root, depth)


def _value(kind: str, schema: dict[str, Any], seed: str, root: Any, depth: int) -> Any:
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: filled(part, f"{seed}/{name}", root=root, depth=depth + 1) for name, part in properties.items()}
    if kind == "array":
        count = max(1, schema.get("minItems", 1))
        return [filled(schema.get("items", {}), f"{seed}/{n}", root=root, depth=depth + 1) for n in range(count)]
    if kind == "string":
        return "text".ljust(schema.get("minLength", 0), ".")
    if kind in {"integer", "number"}:
        low = schema.get("minimum", 0)
        return low if kind == "integer" else float(low)
    return False if kind == "boolean" else None


def _resolved(root: Any, reference: str) -> Any:
    place = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            place = place.get(step, {}) if isinstance(place, dict) else {}
    return place

"""Which JSON Schemas are cheap enough to check answers with: the validator takes as long as a schema asks it to.

A schema of 2 KB whose references double at every level needs hours to compile or to check one answer, and nothing can
interrupt it.  So references are counted as if they were written out, and what grows too large is refused unread."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import unquote

WEIGHT_MAX: Final = 10_000  # subschemas, every reference written out
DEPTH_MAX: Final = 100  # of subschemas and references in each other
RECURSIONS_MAX: Final = 1  # references back into a subschema that is being written out; two can double at every level

_DEFINITIONS: Final = frozenset({"$defs", "definitions"})  # they count where they are referred to
_DATA: Final = frozenset({"enum", "const", "default", "examples"})
_NAMED: Final = frozenset({"properties", "patternProperties", "dependentSchemas"})  # names → subschemas
_REFUSED: Final = frozenset({"$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$anchor"})


class _TooMuch(Exception):
    """The schema is not one we check answers with."""


def is_tame(schema: Any) -> bool:
    """Whether compiling the schema and checking an answer with it takes time in proportion to their sizes."""
    try:
        _Scale(schema).weigh(schema, 0)
    except _TooMuch:
        return False
    return True


class _Scale:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._known: dict[int, tuple[int, int]] = {}
        self._open: set[int] = set()

    def weigh(self, node: Any, depth: int) -> tuple[int, int]:
        """(weight, recursions) of a subschema with its references written out."""
        if depth > DEPTH_MAX:
            raise _TooMuch
        if not isinstance(node, dict | list):
            return 0, 0
        place = id(node)
        if place in self._known:
            return self._known[place]
        if place in self._open:
            return 1, 1
        self._open.add(place)
        weight, recursions = 1, 0
        for part in self._parts(node):
            more_weight, more_recursions = self.weigh(part, depth + 1)
            weight, recursions = weight + more_weight, recursions + more_recursions
            if weight > WEIGHT_MAX or recursions > RECURSIONS_MAX:
                raise _TooMuch
        self._open.discard(place)
        self._known[place] = weight, recursions
        return weight, recursions

    def _parts(self, node: dict[str, Any] | list[Any]) -> list[Any]:
        if isinstance(node, list):
            return node
        parts: list[Any] = []
        for name, value in node.items():
            if name in _REFUSED or (name == "$id" and node is not self._root):
                raise _TooMuch
            if name == "$ref":
                parts.append(self._target(value))
            elif name in _NAMED and isinstance(value, dict):
                parts += value.values()
            elif name not in _DEFINITIONS and name not in _DATA:
                parts.append(value)
        return parts

    def _target(self, reference: Any) -> Any:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _TooMuch
        node = self._root
        for step in unquote(reference[1:]).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, dict) and name in node:
                node = node[name]
            elif isinstance(node, list) and name.isdecimal() and int(name) < len(node):
                node = node[int(name)]
            else:
                raise _TooMuch
        return node

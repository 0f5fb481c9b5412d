"""Validation errors of the framework as faults of ours: a pointer, a stable code, words without values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from shared.errors import Fault, ValidationFailed, sentence
from shared.prompts import token, unknown_field
from shared.rules import invalid

_FAULTS_MAX: Final = 20
_NAME_MAX_CHARS: Final = 64

#: pydantic's error types → our code, and what the value must be.  `{…}` is filled from the rule, never from the value.
_DETAILS: Final[Mapping[str, tuple[str, str]]] = {
    "missing": ("required", "is required"),
    "string_type": ("wrong_type", "must be a text"),
    "int_type": ("wrong_type", "must be a whole number"),
    "int_parsing": ("wrong_type", "must be a whole number"),
    "int_from_float": ("wrong_type", "must be a whole number"),
    "int_parsing_size": ("out_of_range", "is out of range"),
    "float_type": ("wrong_type", "must be a number"),
    "bool_type": ("wrong_type", "must be true or false"),
    "bool_parsing": ("wrong_type", "must be true or false"),
    "list_type": ("wrong_type", "must be a list"),
    "dict_type": ("wrong_type", "must be an object"),
    "model_type": ("wrong_type", "must be an object"),
    "model_attributes_type": ("wrong_type", "must be an object"),
    "literal_error": ("invalid_value", "must be {expected}"),
    "enum": ("invalid_value", "must be {expected}"),
    "union_tag_invalid": ("invalid_value", "must be {expected_tags}"),
    "union_tag_not_found": ("required", "is required"),
    "string_too_short": ("wrong_length", "must have at least {min_length} characters"),
    "string_too_long": ("wrong_length", "must have at most {max_length} characters"),
    "too_short": ("wrong_length", "must have at least {min_length} items"),
    "too_long": ("wrong_length", "must have at most {max_length} items"),
    "string_pattern_mismatch": ("invalid_value", "must match {pattern}"),
    "greater_than": ("out_of_range", "must be more than {gt}"),
    "greater_than_equal": ("out_of_range", "must be at least {ge}"),
    "less_than": ("out_of_range", "must be less than {lt}"),
    "less_than_equal": ("out_of_range", "must be at most {le}"),
    "finite_number": ("invalid_value", "must be a finite number"),
}


_OF_TAGS: Final = frozenset({"union_tag_invalid", "union_tag_not_found"})


def faults_of(model: type[BaseModel], value: Any, error: ValidationError) -> list[Fault]:
    """At most 20 faults, one per place, in the order of the model's fields."""
    faults: dict[str, Fault] = {}
    for found in error.errors(include_url=False, include_input=False):
        location = found["loc"]
        place = pointer(value, location)
        if found["type"] in _OF_TAGS:
            place += "/type"  # what every union of ours is told apart by
        if place in faults:
            continue
        if found["type"] == "extra_forbidden":
            faults[place] = Fault(place, "unknown_field", unknown_field(str(location[-1]), _fields_at(model, location)))
        else:
            code, detail = _described(found["type"], found.get("ctx", {}), found["msg"])
            faults[place] = Fault(place, code, detail)
        if len(faults) >= _FAULTS_MAX:
            break
    return list(faults.values())


def pointer(value: Any, location: Sequence[str | int]) -> str:
    """RFC 6901, into the body.  Parts of a location that name no place in it (tags of unions) are left out."""
    tokens: list[str] = []
    for depth, part in enumerate(location):
        in_object = isinstance(value, dict) and part in value
        in_list = isinstance(value, list) and isinstance(part, int) and 0 <= part < len(value)
        if in_object or in_list:
            value = value[part]
        elif not (isinstance(value, dict) and depth == len(location) - 1):
            continue
        tokens.append(token(str(part)))
    return "".join("/" + part for part in tokens)


def query_fault(name: str, code: str, detail: str) -> ValidationFailed:
    """A fault outside the body, so without a pointer."""
    return ValidationFailed(f"{detail}.", param=name[:_NAME_MAX_CHARS], faults=[Fault("", code, detail)])


def request_error(error: RequestValidationError) -> ValidationFailed:
    """The framework's own refusal of a query parameter, header or path."""
    faults, first = [], None
    for found in error.errors()[:_FAULTS_MAX]:
        name = str(found["loc"][-1]) if len(found["loc"]) > 1 else str(found["loc"][0])
        first = first or name
        code, detail = _described(found["type"], found.get("ctx", {}), "")
        faults.append(Fault("", code, f"{name} {detail}"))
    return ValidationFailed(sentence(faults[0].detail), param=first, faults=faults) if faults else invalid(faults)


def _described(kind: str, context: Mapping[str, Any], message: str) -> tuple[str, str]:
    """message: pydantic's; shown only for errors we raised ourselves, whose words we know."""
    if kind in _DETAILS:
        code, template = _DETAILS[kind]
        return code, template.format_map({name: str(value) for name, value in context.items()})
    if kind.startswith("rule."):
        return kind.removeprefix("rule."), message
    return "invalid_value", "is not valid"


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The known fields of the object that an unknown one was found in.  Of a union, the member that `type` chose."""
    current: type[BaseModel] = model
    members: list[type[BaseModel]] = []
    for part in location[:-1]:
        if isinstance(part, str) and part in current.model_fields:
            members = list(_models_in(current.model_fields[part].annotation))
            current = next(iter(members), current)
        else:
            current = next((member for member in members if _is_tagged(member, part)), current)
    return list(current.model_fields)


def _is_tagged(member: type[BaseModel], tag: str | int) -> bool:
    kind = member.model_fields.get("type")
    return kind is not None and tag in get_args(kind.annotation)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)

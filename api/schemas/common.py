"""What all requests, answers and lists share."""

from __future__ import annotations

from typing import Any, Final, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

_MEMBERS_MAX: Final = 64  # of one object; a million unknown fields must not become a million errors


class Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_members(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > _MEMBERS_MAX:
            raise broken("wrong_length", f"must have at most {_MEMBERS_MAX} fields")
        return value

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself: pydantic would copy a default for each request that lacks it, and what is frozen need not be."""
        return self


def broken(code: str, detail: str) -> PydanticCustomError:
    """detail: a predicate without values.  Braces would be taken for placeholders."""
    return PydanticCustomError("rule." + code, detail.replace("{", "{{").replace("}", "}}"))


class Response(BaseModel):
    model_config = ConfigDict(frozen=True)


def seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


class Deleted(Response):
    id: str
    object: str
    deleted: Literal[True]


Item = TypeVar("Item")


class Page(Response, Generic[Item]):
    """OpenAI's list shape; its SDK can page it."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


def page_of(data: list[Item], *, has_more: bool) -> Page[Item]:
    ids = [str(getattr(item, "id", "")) for item in data]
    return Page(
        object="list", data=data, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None, has_more=has_more
    )

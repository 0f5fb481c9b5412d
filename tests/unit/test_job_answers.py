"""What a job is answered with, whatever it looks like: as the documented model says, in its order."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from api.schemas.jobs import JobOut, job_json
from shared.models import Job, usd

_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2)
)


def _values_of(kind: inspect.Type) -> st.SearchStrategy[Any]:
    match kind:
        case inspect.AnyType():
            return _JSON
        case inspect.NoneType():
            return st.none()
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            return st.integers(-(10**18), 10**18)
        case inspect.FloatType():
            return st.floats(allow_nan=False, allow_infinity=False)
        case inspect.StrType():
            return st.text(max_size=5)
        case inspect.EnumType():
            return st.sampled_from([*kind.cls])
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.UnionType():
            return st.one_of(*map(_values_of, kind.types))
        case inspect.ListType():
            return st.lists(_values_of(kind.item_type), max_size=2)
        case inspect.DictType():
            return st.dictionaries(_values_of(kind.key_type), _values_of(kind.value_type), max_size=2)
        case inspect.StructType():
            return st.builds(kind.cls, **{field.name: _values_of(field.type) for field in kind.fields})
    raise NotImplementedError(kind)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(_values_of(inspect.type_info(Job)))
def test_a_job_is_written_as_its_model_would_write_it(job: Job) -> None:
    by_model = JobOut.of(job).model_dump_json()
    assert _members(job_json(job)) == _members(by_model)
    assert msgspec.json.decode(job_json(job)).keys() == JobOut.model_fields.keys()


def _members(text: str | bytes) -> str:
    """In their order, with 1, 1.0 and true apart; 1e+22 and 1e22 are the same."""
    return repr(json.loads(text, object_pairs_hook=list))


@pytest.mark.parametrize(
    ("nano", "shown"),
    [(0, "0"), (1, "0.000000001"), (2_100_000, "0.0021"), (10**10, "10"), (-1_500_000_000, "-1.5"), (-(10**9), "-1")],
)
def test_money_is_shown_as_a_decimal_without_trailing_zeros(nano: int, shown: str) -> None:
    assert usd(nano) == shown

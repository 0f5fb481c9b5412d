"""Small numbers by fingerprint, in few bytes."""

from __future__ import annotations

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from shared.fingerprints import Fingerprints

FEW = st.integers(0, 7).map(lambda number: number << 60)  # all of them want the same slot
KEYS = st.integers(0, 2**64 - 1) | FEW


@given(st.lists(st.tuples(KEYS, st.integers(1, 255))), st.lists(KEYS))
def test_what_was_put_is_found_and_nothing_else(put: list[tuple[int, int]], asked: list[int]):
    kept, wanted = Fingerprints(), dict[int, int]()
    for key, value in put:
        kept[key] = wanted[key] = value
    for key in [*wanted, *asked]:
        assert kept[key] == wanted.get(key, 0)
    assert len(kept) == len(wanted)


def test_a_hundred_thousand_are_found_again_in_less_than_thirty_bytes_each():
    rng = random.Random(7)
    keys = [rng.getrandbits(64) for _ in range(100_000)]
    tracemalloc.start()
    kept = Fingerprints()
    for key in keys:
        kept[key] = key % 5 + 1
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size < 30 * len(keys)
    assert all(kept[key] == key % 5 + 1 for key in keys)

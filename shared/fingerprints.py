"""What is remembered of a million prompts, in as few bytes as hold it."""

from __future__ import annotations

from array import array
from typing import Final

_SHELVES: Final = 256  # so that growing moves a few thousand entries at once, and no event loop waits for a million
_SLOTS_MIN: Final = 8
_SHELF_BITS: Final = 8


class Fingerprints:
    """A small number for each fingerprint, in 14 to 27 bytes where a dict of integers takes about 100.

    Fingerprints are hashes already, 64 bits each, so their own bits say where they lie: open addressing with linear
    probing (Knuth, The Art of Computer Programming, volume 3, 6.4), at most two thirds full."""

    def __init__(self) -> None:
        self._shelves = [_Shelf() for _ in range(_SHELVES)]

    def __getitem__(self, fingerprint: int) -> int:
        """0 when there is none."""
        return self._shelves[fingerprint % _SHELVES].get(fingerprint)

    def __setitem__(self, fingerprint: int, value: int) -> None:
        """value: 1 to 255."""
        self._shelves[fingerprint % _SHELVES].put(fingerprint, value)

    def __len__(self) -> int:
        return sum(shelf.used for shelf in self._shelves)


class _Shelf:
    """Slots with a value of 0 are free."""

    __slots__ = ("_keys", "_mask", "_values", "used")

    def __init__(self) -> None:
        self.used = 0
        self._clear(_SLOTS_MIN)

    def _clear(self, slots: int) -> None:
        """slots: a power of two."""
        self._mask = slots - 1
        self._keys = array("Q", bytes(8 * slots))
        self._values = bytearray(slots)

    def get(self, key: int) -> int:
        return self._values[self._slot(key)]

    def put(self, key: int, value: int) -> None:
        slot = self._slot(key)
        if not self._values[slot]:
            if 3 * (self.used + 1) > 2 * len(self._values):
                self._grow()
                slot = self._slot(key)
            self._keys[slot] = key
            self.used += 1
        self._values[slot] = value

    def _slot(self, key: int) -> int:
        """Where the key lies, or would."""
        keys, values, mask = self._keys, self._values, self._mask
        slot = key >> _SHELF_BITS & mask
        while values[slot] and keys[slot] != key:
            slot = slot + 1 & mask
        return slot

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._clear(2 * len(values))
        for key, value in zip(keys, values, strict=True):
            if value:
                slot = self._slot(key)
                self._keys[slot] = key
                self._values[slot] = value

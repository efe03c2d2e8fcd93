"""Arrays in pieces, of which one at a time is in memory."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

import numpy as np

from ftbc_onnx.preprocessing import Array

Arrays: TypeAlias = Mapping[str, Array]  # by key, or by input name
Load: TypeAlias = Callable[[], Arrays]
HASH_SAMPLES = 64  # read at a time by a digest
KEPT = 1 << 28  # bytes of an iterable that stay in memory; the rest goes to a temporary file


@dataclass(frozen=True)
class Shard:
    """A piece of the data: per input the key of its array and (shape, dtype) of a sample; `load` gets the arrays."""

    where: str
    count: int
    keys: Mapping[str, str]
    forms: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
    labels: Array | None
    load: Load


class Spool:
    """Arrays that come once and are read again: the first `KEPT` bytes in memory, the rest in a temporary file."""

    def __init__(self) -> None:
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def keep(self, arrays: Arrays) -> Load:
        """Copies arrays; what it returns gets them again."""
        self._bytes += sum(array.nbytes for array in arrays.values())
        if self._bytes <= KEPT:
            copies = {key: array.copy() for key, array in arrays.items()}
            return lambda: copies
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="ftbc-onnx-")  # noqa: SIM115 - open as long as the data are
        file, places = self._file, {}
        for key, array in arrays.items():
            places[key] = (file.seek(0, os.SEEK_END), array.dtype, array.shape)
            file.write(np.ascontiguousarray(array).tobytes())

        def load() -> Arrays:
            found = {}
            for key, (start, dtype, shape) in places.items():
                file.seek(start)
                size = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
                found[key] = np.frombuffer(file.read(size), dtype).reshape(shape)
            return found

        return load


class Shards:
    """Shards end to end; only the one that was read last is kept in memory, and nothing of a memory-mapped one."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = tuple(shards)
        self._forms = shards[0].forms
        self._starts = np.cumsum([0, *(shard.count for shard in shards)])
        self._last: tuple[int, Arrays] | None = None

    def __len__(self) -> int:
        return int(self._starts[-1])

    def where(self, index: int) -> str:
        """Sample `index` in words."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        return f"{self._shards[number].where}, sample {index - self._starts[number]}"

    def _arrays(self, number: int) -> Arrays:
        last = self._last
        if last is None or last[0] != number:
            self._last = last = None  # lets go of one shard before the next is loaded
            shard = self._shards[number]
            found = shard.load()
            self._last = last = (number, {name: found[key] for name, key in shard.keys.items()})
        return last[1]

    def read(self, indices: Array) -> dict[str, Array]:
        """The samples `indices`, [n, ...] per input, copied."""
        out = {name: np.empty((len(indices), *shape), dtype) for name, (shape, dtype) in self._forms.items()}
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            for name, target in out.items():  # no local name for the arrays: it would keep them alive
                target[rows] = self._arrays(int(number))[name][indices[rows] - self._starts[number]]
        if self._last is not None and any(isinstance(array, np.memmap) for array in self._last[1].values()):
            self._last = None  # pages that were read count as memory for as long as they are mapped
        return out

    def fingerprint(self, indices: Array) -> str:
        """sha256 over names, dtypes, shapes and the bytes of the samples `indices`, a piece at a time."""
        total = hashlib.sha256(repr(sorted(self._forms.items())).encode())
        for start in range(0, len(indices), HASH_SAMPLES):
            for _, array in sorted(self.read(indices[start : start + HASH_SAMPLES]).items()):
                total.update(array.tobytes())
        return total.hexdigest()

    def held(self, indices: Array) -> Shards:
        """The same, but for `indices` in memory, where they are in several shards and no more than `KEPT` bytes.

        For orders that jump between shards: each would be loaded for a few of its samples, over and over.
        """
        numbers = np.unique(indices)
        sample = sum(dtype.itemsize * int(np.prod(shape, dtype=np.int64)) for shape, dtype in self._forms.values())
        few = len(self._shards) > 1 and len(numbers) * sample <= KEPT
        return Held(self._shards, numbers) if few else self


class Held(Shards):
    """Shards of which the samples `numbers`, sorted, are read once, shard by shard; no others can be read."""

    def __init__(self, shards: Sequence[Shard], numbers: Array) -> None:
        super().__init__(shards)
        self._numbers = numbers
        self._rows: dict[str, Array] | None = None

    def read(self, indices: Array) -> dict[str, Array]:
        """The samples `indices`, [n, ...] per input, copied."""
        if self._rows is None:
            self._rows = super().read(self._numbers)
            self._last = None
        places = np.searchsorted(self._numbers, indices)
        return {name: rows[places] for name, rows in self._rows.items()}

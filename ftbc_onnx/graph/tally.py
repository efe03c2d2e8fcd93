"""Numbers per element that are only ever added up.

To write a tensor costs three times what it costs to read one, and counting is all about sums. So a number per element
is kept as a weighted sum of tensors that are there, and what is written are sums over axes of those:

    n = sum over j of a_j * g_j,        sum(n) = sum over j of a_j * sum(g_j)

The g_j are small whole numbers, which float32 adds exactly up to 2^24.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import onnx

from ftbc_onnx.graph.builder import GraphBuilder

_FEW = 4
_JUMPS = ((1.0, 1), (1.0, 3), (-1.0, 4))
"""Where popcount changes up to `_FEW`, and by how much."""


@dataclass(frozen=True)
class Tally:
    """n, as pairs (a_j, name of g_j); all g_j have the shape of n."""

    terms: tuple[tuple[float, str], ...]

    @classmethod
    def of(cls, tensor: str) -> Tally:
        """The numbers of a tensor."""
        return cls(((1.0, tensor),))

    def plus(self, other: Tally) -> Tally:
        """n + m."""
        return Tally((*self.terms, *other.terms))


@dataclass
class Tallies:
    """Writes tallies, and sums over them, into a graph; no sum is written twice."""

    builder: GraphBuilder
    _reached: dict[tuple[str, int], str] = field(default_factory=dict)
    _made: dict[tuple[str, str], str] = field(default_factory=dict)

    def reached(self, k: str, least: int) -> str:
        """1.0 where whole numbers are `least` or more, else 0.0: clip(k + 1 - least, 0, 1), one operator."""
        if (k, least) not in self._reached:
            self._reached[k, least] = self.builder.op("HardSigmoid", k, alpha=1.0, beta=float(1 - least))
        return self._reached[k, least]

    def popcount(self, k: str, most: int) -> Tally:
        """Ones in the binary form of whole numbers from 0 to `most`.

        popcount(k) = k - 2h + popcount(h),  h = floor(k/2)         down to 4 and less, where it is a sum of steps:
        popcount(k) = [k >= 1] + [k >= 3] - [k >= 4]
        """
        if most == 1:
            return Tally.of(k)
        if most > _FEW:
            half = self.builder.op("Floor", self.builder.op("Mul", k, self.builder.constant(0.5)))
            return Tally(((1.0, k), (-2.0, half))).plus(self.popcount(half, most // 2))
        return Tally(tuple((jump, self.reached(k, least)) for jump, least in _JUMPS if least <= most))

    def written(self, tally: Tally) -> str:
        """The numbers themselves."""
        parts = [name if a == 1 else self.builder.op("Mul", name, self.builder.constant(a)) for a, name in tally.terms]
        return parts[0] if len(parts) == 1 else self.builder.op("Sum", *parts)

    def over_channels(self, tally: Tally) -> str:
        """Sums over axis 1, which is kept: [B, 1, ...]."""
        return self._each("channels", tally, lambda g: self.builder.op("ReduceSum", g, self.builder.integers(1)))

    def mean(self, tally: Tally) -> str:
        """Mean over everything, [1]."""
        return self._each("mean", tally, lambda g: self.builder.mean(g, None))

    def total(self, tally: Tally) -> str:
        """Sum over everything, [1] double: rows in float32, then in double."""
        rows = self._each("rows", tally, self._rows)
        wide = self.builder.op("Cast", rows, to=onnx.TensorProto.DOUBLE)
        return self.builder.op("ReduceSum", wide, self.builder.integers(0), keepdims=1)

    def _rows(self, g: str) -> str:
        flat = self.builder.op("Flatten", g, axis=1)
        return self.builder.op("ReduceSum", flat, self.builder.integers(1), keepdims=0)

    def _each(self, what: str, tally: Tally, reduce: Callable[[str], str]) -> str:
        """The tally of what is made of each g_j, written."""
        for _, name in tally.terms:
            if (what, name) not in self._made:
                self._made[what, name] = reduce(name)
        return self.written(Tally(tuple((a, self._made[what, name]) for a, name in tally.terms)))

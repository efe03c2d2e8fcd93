"""Whether data are prepared as others were, by the numbers that a network gets.

Of every floating input the mean m and the standard deviation s over all numbers of some samples are compared with those
of the other data, m' and s':

    ratio = max(s/s', s'/s),   shift = |m - m'| / max(s, s')

Measured on seven preparations of the images of CIFAR-10, MNIST, ImageNet and the digits (a script of the day): 300
sets of 16 samples have a ratio of 1.25 and a shift of 0.42 at most, sets of one class 1.20 and 0.38, single samples 4.6
and 1.9. Data that lack their scale, their mean or their standardisation, or are inverted, have a ratio of 1.95 and more
or a shift of 1.0 and more.

What a first layer makes of them says less: on pixels of 0 to 1 instead of -1 to 1 a MobileNet's first activation is
0.92 times as large.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftbc_onnx.data import DataSource, spread

LOOKED_AT = 32
"""Samples that are looked at, evenly over the data."""

ENOUGH = 16
"""Samples from which on the smaller limits hold."""

RATIO, SHIFT = 1.6, 0.75
RATIO_OF_FEW, SHIFT_OF_FEW = 8.0, 3.0
"""How far apart data that are prepared alike may be."""

_AT_ONCE = 8  # samples in memory


@dataclass(frozen=True)
class Moments:
    """Of an input.

    Attributes:
        mean: over all numbers.
        std: their standard deviation.
        samples: how many were looked at.
    """

    mean: float
    std: float
    samples: int

    def like(self, other: Moments) -> bool:
        """Whether both may be of data that are prepared alike; of a constant (a mask, say) there is no ratio."""
        low, high = sorted((self.std, other.std))
        if high == 0:
            return self.mean == other.mean
        enough = min(self.samples, other.samples) >= ENOUGH
        most, far = (RATIO, SHIFT) if enough else (RATIO_OF_FEW, SHIFT_OF_FEW)
        return (low == 0 or high <= most * low) and abs(self.mean - other.mean) <= far * high


@dataclass(frozen=True)
class Unlike:
    """An input that gets other numbers than it got in the conversion."""

    name: str
    before: Moments
    now: Moments

    @property
    def sentence(self) -> str:
        """Both numbers, and what to look at; without a capital and a full stop."""
        return (
            f"input '{self.name}' is {self.now.mean:.3g} on average on these data, with a standard deviation of "
            f"{self.now.std:.3g}, and was {self.before.mean:.3g} with {self.before.std:.3g} in the conversion: the two "
            "are not prepared alike, or are of another kind. Look at the scale and the type of both (--scale, --mean, "
            "--std; whole numbers or floats) before anything else"
        )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Unlike:
        """Read back what `as_dict` wrote."""
        return cls(found["name"], Moments(**found["before"]), Moments(**found["now"]))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def moments(source: DataSource) -> dict[str, Moments]:
    """The moments of every floating input, by name, to six digits.

    Raises:
        DataError: a sample cannot be read.
    """
    sums: dict[str, np.ndarray] = {}
    source = spread(source, LOOKED_AT)
    for batch in source.batches(_AT_ONCE):
        for name, value in batch.feeds.items():
            if value.dtype.kind == "f":
                x = value.astype(np.float64)
                sums[name] = sums.get(name, np.zeros(3)) + np.array([x.size, x.sum(), np.square(x).sum()])
    found = {}
    for name, (count, total, squares) in sums.items():
        mean = total / max(count, 1)
        std = np.sqrt(max(squares / max(count, 1) - mean**2, 0.0))
        found[name] = Moments(float(f"{mean:.6g}"), float(f"{std:.6g}"), len(source))
    return found


def compare(before: Mapping[str, Moments], now: Mapping[str, Moments]) -> tuple[Unlike, ...]:
    """The inputs that are not alike, of those that both have."""
    both = (Unlike(name, before[name], now[name]) for name in before if name in now)
    return tuple(pair for pair in both if not pair.before.like(pair.now))

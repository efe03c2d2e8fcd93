"""Compressed biases: R vectors per channel instead of T.

The table of a site, b [T, C], is taken to be a sum of a few courses in time, each of its own strength per channel:

    b[t, c] = phi[0, t] * w[0, c] + phi[1, t] * w[1, c] + ... + phi[R-1, t] * w[R-1, c]

phi [R, T] and w [R, C] of least squared error are the first R parts of the singular value decomposition. They are
what an emitted model stores; it multiplies and adds them once, in this order, in float32, as `Factors.table` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RANK = 4
"""R, the vectors per channel."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A table of biases as a sum of products.

    Attributes:
        courses: phi, [R, T] float32.
        vectors: w, [R, C] float32.
    """

    courses: np.ndarray
    vectors: np.ndarray

    def table(self) -> np.ndarray:
        """The biases, [T, C] float32, added up from the first product on."""
        products = self.courses[:, :, None] * self.vectors[:, None, :]
        total = products[0]
        for product in products[1:]:
            total = total + product
        return np.asarray(total)

    def prefix(self, steps: int) -> Factors:
        """Those of the first time steps."""
        return Factors(self.courses[:, :steps], self.vectors)


def compress(biases: np.ndarray, rank: int = RANK) -> Factors:
    """The factors of least squared error of a table [T, C]; exact, but for rounding, if T or C is at most R."""
    left, values, right = np.linalg.svd(biases.astype(np.float64), full_matrices=False)
    kept = min(rank, len(values))
    scale = np.sqrt(values[:kept])
    return Factors((left[:, :kept] * scale).T.astype(np.float32), (right[:kept] * scale[:, None]).astype(np.float32))

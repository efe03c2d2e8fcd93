"""Shrinkage: biases that calibration data do not speak for are put to zero.

Every batch gives a bias of its own. Of k batches with n[i] samples each and N together,

    b = sum over i of n[i]/N * b[i]
    se = sqrt(sum over i of n[i]/N * (b[i] - b)^2 / (k - 1))          the standard error of b
    b <- b where |b| > m * se, else 0

m = 2 leaves out what is within two standard errors of no bias at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftbc_onnx.errors import ConfigError, DataError

FEWEST = 4
"""Batches that a standard error is taken of, at least."""

BATCHES = 8
"""Batches that calibration data are divided into for it."""


def shrink(tables: Sequence[np.ndarray], samples: Sequence[int], errors: float) -> tuple[np.ndarray, float]:
    """The mean of biases, with what is below `errors` standard errors put to zero.

    Args:
        tables: biases of one site from every batch, [T, C] each.
        samples: how many samples each batch had.
        errors: m, in standard errors.

    Returns:
        The biases [T, C], and the share of those different from 0 that were put to zero.

    Raises:
        DataError: there are fewer than `FEWEST` batches.
    """
    check_batches(len(tables))
    stacked = np.stack(tables).astype(np.float64)
    mean = np.average(stacked, axis=0, weights=samples)
    variance = np.average((stacked - mean) ** 2, axis=0, weights=samples) / (len(tables) - 1)
    kept = np.abs(mean) > errors * np.sqrt(variance)
    there = mean != 0
    dropped = float((there & ~kept).sum() / max(there.sum(), 1))
    return np.where(kept, mean, 0.0).astype(np.float32), dropped


def check_batches(batches: int) -> None:
    """Refuse a standard error of a few batches.

    Raises:
        DataError: there are fewer than `FEWEST`.
    """
    if batches < FEWEST:
        raise DataError(
            f"--shrink compares biases from {FEWEST} batches or more, and there are {batches}: give more calibration "
            "samples, or leave it out"
        )


def check_shrink(errors: float, rule: str) -> None:
    """Refuse what is no number of standard errors, or a rule whose batches build on each other.

    Raises:
        ConfigError: which.
    """
    number = isinstance(errors, (int, float)) and not isinstance(errors, bool)
    if not number or not 0 <= errors < float("inf"):
        raise ConfigError(f"shrink is {errors!r}: it must be a number of standard errors, at least 0")
    if errors and rule != "solve":
        raise ConfigError(f"shrink goes with rule 'solve', whose batches are independent, not with '{rule}'")

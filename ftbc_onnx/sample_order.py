"""Which samples are taken, and in which order."""

from __future__ import annotations

import numpy as np

from ftbc_onnx.preprocessing import Array

_GOLDEN = (5**0.5 - 1) / 2
_FEW = 32
"""With no more samples than this their order is left alone: most parts of a conversion look at all of them."""


def evenly(there: int, count: int) -> Array:
    """Numbers of `count` samples, every so many-th of those that are there."""
    return np.arange(count, dtype=np.int64) * there // count


def middles(there: int, count: int) -> Array:
    """The same, each from the middle of its part."""
    return np.floor((np.arange(count) + 0.5) * there / count).astype(np.int64)


def in_runs(labels: Array | None) -> bool:
    """Whether samples are sorted by class, or stand next to their like far more often than by chance."""
    if labels is None or len(labels) <= _FEW:
        return False
    if labels[0] != labels[-1] and bool((labels[1:] >= labels[:-1]).all()):
        return True
    _, counts = np.unique(labels, return_counts=True)
    by_chance = float(((counts / len(labels)) ** 2).sum())
    return float((labels[1:] == labels[:-1]).mean()) > (1 + by_chance) / 2


def mixed(count: int) -> Array:
    """An order in which the first samples, as many as one likes, and every so many-th, are spread over the whole."""
    places = np.arange(count) * _GOLDEN % 1
    return np.argsort(np.argsort(places))

"""Early exit: a sample stops at the first step at which its running output has a clear winner.

With o[t] the output after step t (a row of scores per sample, the mean over n[t] steps: t+1 without a delayed
readout), o1 and o2 its largest and second largest entry, the *relative margin* and the *lead* of a step are

    m[t] = (o1[t] - o2[t]) / mean over classes of |o[t]|         (0 where every score is 0)
    l[t] = n[t] * m[t]

and the sample stops at the first t with l[t] > M, else after T steps; its decision is the argmax there. The lead is
that of the sum over the steps: what counts is the evidence so far, as in a sequential test, so that a small margin is
enough late, but not early, when the mean is rough. Neither changes if all scores are multiplied by a number, so that
they mean the same for logits of any scale; they do change if a number is added to all of them (no measure that ignores
both could tell two classes apart).
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.window import Window


def relative_margin(scores: np.ndarray) -> np.ndarray:
    """How clearly the first class leads, [..., classes] -> [...]; 0 where scores are not finite, so nothing stops."""
    exact = scores.astype(np.float64)
    second, first = np.moveaxis(np.partition(exact, -2, axis=-1)[..., -2:], -1, 0)
    size = np.abs(exact).mean(axis=-1)
    usable = (size > 0) & np.isfinite(size)
    with np.errstate(invalid="ignore"):  # of infinite scores
        return np.asarray(np.divide(first - second, size, out=np.zeros_like(size), where=usable))


def is_clear(scores: np.ndarray, averaged: int | np.ndarray, margin: float) -> np.ndarray:
    """Whether l > M, [..., classes] -> [...]; `averaged` is n, the steps that the scores are a mean over."""
    return np.asarray(averaged * relative_margin(scores) > margin)


def steps_used(curve: np.ndarray, margin: float, window: Window) -> np.ndarray:
    """Steps after which each sample stops, from 1 to T: [T, B, classes] -> [B]; the window is that of the curve."""
    averaged = np.array([window.count(t) for t in range(len(curve))])  # n [T]
    clear = is_clear(curve, averaged[:, None], margin)
    return np.where(clear.any(axis=0), clear.argmax(axis=0) + 1, len(curve))


def decisions(curve: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The class that each sample has when it stops: [T, B, classes] and [B] steps -> [B]."""
    return np.asarray(curve[used - 1, np.arange(len(used))].argmax(axis=1))

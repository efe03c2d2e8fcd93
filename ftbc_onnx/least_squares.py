"""Ridge regression for layers: weights that make up for what reaches a layer being not what it was trained on.

A layer z = W x + c reads x, and should have given z + r. In rows (one per sample and place of the output), centred,

    D = argmin  mean |r - D x|^2  +  lambda |D|^2,      lambda = strength * mean square of the layer's inputs

W + D in place of W, and c + mean(r) - D mean(x) in place of c. Where there are fewer rows than inputs, the same is
found from the products of rows with each other. A convolution with groups has a problem per group, and one lambda.

Source: calibration of weights layer by layer, Li et al., ICML 2021, arXiv 2106.06984, as a ridge regression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

ROWS = 20_000
"""Rows of a regression, at most; of more places, as many are drawn."""

_NUMBERS = 1 << 26  # of the rows of a regression, at most


def mean_square(x: np.ndarray) -> float:
    """Mean square of [R, ...] about the means of its rows."""
    return float(np.mean(np.square(x - x.mean(0, dtype=np.float64).astype(np.float32)), dtype=np.float64))


def ridge(x: np.ndarray, r: np.ndarray, strength: float, size: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(D [K, C], what goes to the constants [C]).

    Args:
        x: what reaches the layer, [R, K].
        r: what is missing behind it, [R, C].
        strength: of the ridge, in units of `size`; positive.
        size: mean square of the inputs; None: of x.
    """
    rows, inputs = x.shape
    mean_x, mean_r = x.mean(0, dtype=np.float64), r.mean(0, dtype=np.float64)
    centred, wanted = x - mean_x.astype(np.float32), r - mean_r.astype(np.float32)
    size = mean_square(x) if size is None else size
    if size <= 0:
        return np.zeros((inputs, r.shape[1]), np.float32), mean_r.astype(np.float32)
    if rows >= inputs:
        gram = (centred.T @ centred).astype(np.float64) / rows
        gram[np.diag_indices(inputs)] += strength * size
        change = np.linalg.solve(gram, (centred.T @ wanted).astype(np.float64) / rows)
    else:
        gram = (centred @ centred.T).astype(np.float64)
        gram[np.diag_indices(rows)] += rows * strength * size
        change = centred.T.astype(np.float64) @ np.linalg.solve(gram, wanted.astype(np.float64))
    return change.astype(np.float32), (mean_r - mean_x @ change).astype(np.float32)


def refit_gemm(
    weights: np.ndarray, x: np.ndarray, r: np.ndarray, strength: float, *, transposed: bool
) -> tuple[np.ndarray, np.ndarray]:
    """New weights of a Gemm, and what is added to its bias.

    Args:
        weights: [K, C], or [C, K] if `transposed`.
        x: inputs, [B, K].
        r: what is missing behind it, [B, C].
        strength: see `ridge`.
        transposed: whether the weights are.
    """
    change, constant = ridge(x, r, strength)
    return weights + (change.T if transposed else change), constant


def refit_conv(
    weights: np.ndarray, x: np.ndarray, r: np.ndarray, strength: float, attributes: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """New weights of a Conv, and what is added to its bias.

    Args:
        weights: [C, K / groups, ...].
        x: inputs, [B, K, ...].
        r: what is missing behind it, [B, C, ...].
        strength: see `ridge`.
        attributes: of the node: strides, dilations, pads, auto_pad, group.
    """
    groups = int(attributes.get("group", 1))
    rows, places = patches(x, weights.shape[2:], r.shape[2:], attributes)
    missing = np.moveaxis(r, 1, -1)[places]  # [R, C]
    fitted, constants, size = [], [], mean_square(rows)
    shares = np.split(rows, groups, axis=1), np.split(missing, groups, axis=1), np.split(weights, groups)
    for seen, lost, own in zip(*shares, strict=True):
        change, constant = ridge(seen.reshape(len(seen), -1), lost, strength, size)
        fitted.append(own + change.T.reshape(own.shape))
        constants.append(constant)
    return np.concatenate(fitted), np.concatenate(constants)


def patches(
    x: np.ndarray,
    kernel: Sequence[int],
    places: Sequence[int],
    attributes: Mapping[str, Any],
    most: int = ROWS,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """What a Conv sees at some of its places, [R, K, ...], and which these are: index arrays (sample, *place).

    Args:
        x: inputs, [B, K, ...].
        kernel: size of the kernel, per axis.
        places: size of the output, per axis.
        attributes: of the node.
        most: rows, at most.
    """
    axes = len(kernel)
    strides = list(attributes.get("strides") or [1] * axes)
    dilations = list(attributes.get("dilations") or [1] * axes)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, after = _pads(x.shape[2:], places, spans, strides, attributes)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
    count = len(x) * int(np.prod(places))
    chosen = min(count, most, max(_NUMBERS // (x.shape[1] * int(np.prod(kernel))), 1))
    drawn = np.sort(np.random.default_rng(0).choice(count, chosen, replace=False))
    index = np.unravel_index(drawn, (len(x), *places))
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=tuple(range(2, 2 + axes)))
    # an index array, a slice, and index arrays: the drawn rows come first
    at = (index[0], slice(None), *(i * s for i, s in zip(index[1:], strides, strict=True)))
    return windows[(*at, *(slice(None, None, d) for d in dilations))], index


def _pads(
    sizes: Sequence[int],
    places: Sequence[int],
    spans: Sequence[int],
    strides: Sequence[int],
    attributes: Mapping[str, Any],
) -> tuple[list[int], list[int]]:
    """Zeros before and behind every axis."""
    kind = attributes.get("auto_pad", b"NOTSET")
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        whole = [
            max((n - 1) * s + span - size, 0) for n, s, span, size in zip(places, strides, spans, sizes, strict=True)
        ]
        less = [n // 2 for n in whole]
        more = [n - n // 2 for n in whole]
        return (less, more) if kind == "SAME_UPPER" else (more, less)
    pads = list(attributes.get("pads") or [0] * (2 * len(sizes))) if kind == "NOTSET" else [0] * (2 * len(sizes))
    return pads[: len(sizes)], pads[len(sizes) :]

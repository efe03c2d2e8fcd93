"""Find QCFS activations in a graph: chains of plain operators that quantise, clip and rescale.

    y = theta/L * clip(floor(x*L/theta + 1/2), 0, L)          (Bu et al., ICLR 2022, arXiv 2303.04347)

Exporters write it as Div, Clip, Mul, Add, Floor, Div, Mul with constants anywhere; it may be clipped before or after
the rounding. So no sequence of operators is looked for. From each Floor (or Round), walk up and down through
operators with one reader and constant operands, and keep the algebra of what was passed:

    z = p*x + q,  clipped to [lo, hi] before the rounding;   y = r*floor(z) + w,  floor(z) clipped to [lo', hi']

It is a QCFS if q = 1/2, w = 0, p*r = 1 and the levels left over are 0..L; then theta = r*L. (With Round, q = 0.)
Of several pairs of ends for which this holds, the one that starts furthest up is taken, and of these the widest:
x/theta before and theta after belong to it, while a factor on one side only (a BatchNormalization before it) breaks
p*r = 1 and stays outside. So does a theta that is neither one number nor one per channel: what is left inside then is
a QCFS with theta = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ftbc_onnx.graph.channels import channel_axis
from ftbc_onnx.graph.view import GraphView

Value = np.ndarray | np.float64

_CLOSE = 1e-4


@dataclass(frozen=True)
class QcfsMatch:
    """A chain found: its nodes in order, the tensors around it, theta (one value or C) and L."""

    nodes: tuple[onnx.NodeProto, ...]
    current: str
    output: str
    threshold: tuple[float, ...]
    levels: int


@dataclass(frozen=True)
class _Affine:
    """scale*x + shift, followed by a clip to [low, high]; numbers, or arrays that broadcast against x."""

    scale: Value
    shift: Value
    low: Value
    high: Value


_IDENTITY = _Affine(np.float64(1), np.float64(0), np.float64(-np.inf), np.float64(np.inf))


def find_qcfs(view: GraphView) -> list[QcfsMatch]:
    """Every QCFS chain of the graph, in the order of its roundings."""
    found: list[QcfsMatch] = []
    ends: set[str] = set()
    for node in view.nodes:
        if node.op_type in ("Floor", "Round"):
            match = _match(view, node, ends)
            if match is not None:
                found.append(match)
                ends.add(match.output)
    return found


def _match(view: GraphView, rounding: onnx.NodeProto, ends: set[str]) -> QcfsMatch | None:
    """The QCFS around a rounding, if it is one; it does not reach up into those that end at `ends`."""
    half = 0.5 if rounding.op_type == "Floor" else 0.0
    best: QcfsMatch | None = None
    for above, current, before in _walk_up(view, rounding.input[0], ends):
        found: QcfsMatch | None = None
        for below, output, after in _walk_down(view, rounding.output[0]):
            stated = _solve(before, after, half)
            if stated is not None and _one_or_per_channel(view, current, stated[0]):
                theta = tuple(float(np.float32(value)) for value in stated[0].flat)
                found = QcfsMatch((*above, rounding, *below), current, output, theta, stated[1])
        best = found or best
    return best


def _one_or_per_channel(view: GraphView, current: str, theta: np.ndarray) -> bool:
    """Whether theta, broadcast against the current, is one number or has one per entry of the channel axis."""
    if theta.size == 1:
        return True
    shape, axis = view.shape(current), channel_axis(view, current)
    if shape is None or axis is None or theta.ndim > len(shape):
        return False
    aligned = (1,) * (len(shape) - theta.ndim) + theta.shape
    return aligned == tuple(shape[axis] if i == axis else 1 for i in range(len(shape)))


def _solve(before: _Affine, after: _Affine, half: float) -> tuple[np.ndarray, int] | None:
    """(theta, L) if the two affine maps around a rounding make a QCFS."""
    r = np.asarray(after.scale, dtype=np.float64)
    if (
        np.any(r <= 0)
        or not np.allclose(after.shift, 0, atol=_CLOSE)
        or not np.allclose(before.shift, half, atol=_CLOSE)
    ):
        return None
    if not np.allclose(before.scale * r, 1, rtol=_CLOSE):
        return None
    # Bounds as numbers of levels: before the rounding they pass through it, after it they are divided by r.
    if not half and (_between(before.low).any() or _between(before.high).any()):
        return None  # Round goes to either side of k + 1/2, as the last bit decides
    low, high = (np.floor(bound + _CLOSE) if half else np.round(bound) for bound in (before.low, before.high))
    after_low, after_high = after.low / r, after.high / r
    if np.any((after_low > low) & ~_whole(after_low)) or np.any((after_high < high) & ~_whole(after_high)):
        return None  # the last value is no level
    low, high = np.maximum(low, np.round(after_low)), np.minimum(high, np.round(after_high))
    if not np.all(low == 0) or not np.all(np.isfinite(high)) or np.ptp(high) != 0 or np.max(high) < 1:
        return None
    levels = int(np.max(high))
    return np.asarray(r * levels), levels


def _whole(bound: Value) -> np.ndarray:
    finite = np.isfinite(bound)
    value = np.where(finite, bound, 0)
    return np.asarray(finite & (np.abs(value - np.round(value)) < _CLOSE))


def _between(bound: Value) -> np.ndarray:
    """Whether it is halfway between two whole numbers."""
    return _whole(bound + 0.5)


def _walk_up(view: GraphView, tensor: str, ends: set[str]) -> Iterator[tuple[list[onnx.NodeProto], str, _Affine]]:
    """From the rounding's input upwards: (nodes, tensor that enters, what they compute), each a step longer."""
    nodes: list[onnx.NodeProto] = []
    affine = _IDENTITY
    while True:
        yield nodes, tensor, affine
        node = view.producers.get(tensor)
        if node is None or tensor in ends or view.sole_consumer(tensor) is None:
            return
        step = _as_affine(view, node)
        if step is None:
            return
        data, own = step
        composed = _compose(own, affine)
        if composed is None:
            return
        nodes, tensor, affine = [node, *nodes], data, composed


def _walk_down(view: GraphView, tensor: str) -> Iterator[tuple[list[onnx.NodeProto], str, _Affine]]:
    """From the rounding's output downwards: (nodes, tensor that leaves, what they compute), each a step longer."""
    nodes: list[onnx.NodeProto] = []
    affine = _IDENTITY
    while True:
        yield nodes, tensor, affine
        node = view.sole_consumer(tensor)
        step = None if node is None else _as_affine(view, node)
        if node is None or step is None or step[0] != tensor:
            return
        composed = _compose(affine, step[1])
        if composed is None:
            return
        nodes, tensor, affine = [*nodes, node], node.output[0], composed


def _compose(first: _Affine, then: _Affine) -> _Affine | None:
    """`then` after `first`: bounds of `first` are carried through `then`'s product and sum (positive scales only)."""
    if np.any(np.asarray(then.scale) <= 0):
        return None
    low = np.maximum(first.low * then.scale + then.shift, then.low)
    high = np.minimum(first.high * then.scale + then.shift, then.high)
    return _Affine(first.scale * then.scale, first.shift * then.scale + then.shift, low, high)


def _as_affine(view: GraphView, node: onnx.NodeProto) -> tuple[str, _Affine] | None:
    """(data input, map) of an elementwise operator with constant operands; None for anything else."""
    if node.op_type == "Relu":
        return node.input[0], replace(_IDENTITY, low=np.float64(0))
    if node.op_type == "Clip":
        return _as_clip(view, node)
    if node.op_type not in ("Add", "Sub", "Mul", "Div", "Max", "Min") or len(node.input) != 2:
        return None
    left, right = (_values(view, name, other) for name, other in zip(node.input, node.input[::-1], strict=True))
    if (left is None) == (right is None):
        return None
    if node.op_type in ("Sub", "Div") and right is None:
        return None
    data, value = (node.input[0], right) if right is not None else (node.input[1], left)
    assert value is not None
    if node.op_type == "Add":
        return data, replace(_IDENTITY, shift=value)
    if node.op_type == "Sub":
        return data, replace(_IDENTITY, shift=-value)
    if node.op_type == "Mul":
        return data, replace(_IDENTITY, scale=value)
    if node.op_type == "Max":
        return data, replace(_IDENTITY, low=value)
    if node.op_type == "Min":
        return data, replace(_IDENTITY, high=value)
    return None if np.any(value == 0) else (data, replace(_IDENTITY, scale=1 / value))


def _as_clip(view: GraphView, node: onnx.NodeProto) -> tuple[str, _Affine] | None:
    bounds = [np.float64(-np.inf), np.float64(np.inf)]
    for side, name in enumerate(node.input[1:3]):
        if name:
            value = view.constant(name)
            if value is None:
                return None
            bounds[side] = np.float64(value.reshape(-1)[0])
    return node.input[0], replace(_IDENTITY, low=bounds[0], high=bounds[1])


def _values(view: GraphView, name: str, other: str) -> np.ndarray | None:
    """A constant as one number, or as an array with one axis longer than 1 that adds none to `other`; else None."""
    value, shape = view.constant(name), view.shape(other)
    if value is None or value.dtype.kind not in "fiu" or sum(length > 1 for length in value.shape) > 1:
        return None
    if value.ndim > (1 if shape is None else len(shape)):
        return None
    exact = value.astype(np.float64)
    return exact.reshape(()) if exact.size == 1 else exact

"""Shortcuts without weights that change the size, as ResNets for CIFAR have them, read as what they are: a Conv.

    y = Pad(Slice(x)):   every s-th row and column of x, with channels of zeros before and behind,

is a Conv of size 1 with stride s whose weights are 1 where an output channel takes an input channel, else 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from ftbc_onnx.graph.view import GraphView, attributes

_FAR = 2**31 - 2
"""An end from here on means the last element (exporters write several such numbers)."""


@dataclass(frozen=True)
class Shortcut:
    """A shortcut of this kind.

    Attributes:
        source: x, [B, C, H, W].
        weights: of the Conv, [C', C, 1, 1] float32.
        strides: of the Conv.
    """

    source: str
    weights: np.ndarray
    strides: tuple[int, int]


def find_shortcut(view: GraphView, tensor: str) -> Shortcut | None:
    """The shortcut that makes a tensor and that nothing else reads; None: it is made by something else."""
    strides, channels = [1, 1], [0, 0]
    found = False
    while (node := view.producers.get(tensor)) is not None and node.op_type in ("Slice", "Pad"):
        if view.sole_consumer(tensor) is None:
            return None
        if node.op_type == "Slice":
            steps = _strides(view, node)
            if steps is None:
                return None
            strides = [a * b for a, b in zip(strides, steps, strict=True)]
        else:
            more = _channels(view, node)
            if more is None or strides != [1, 1]:  # zeros that would be skipped, too: not worth telling apart
                return None
            channels = [a + b for a, b in zip(channels, more, strict=True)]
        found, tensor = True, node.input[0]
    shape = view.shape(tensor)
    if not found or shape is None or len(shape) != 4 or not isinstance(shape[1], int):
        return None
    count = shape[1]
    weights = np.zeros((channels[0] + count + channels[1], count, 1, 1), np.float32)
    weights[channels[0] + np.arange(count), np.arange(count)] = 1
    return Shortcut(tensor, weights, (strides[0], strides[1]))


def _strides(view: GraphView, node: onnx.NodeProto) -> list[int] | None:
    """How a Slice steps along rows and columns, if it takes all of them from the first on."""
    given = [view.constant(name) for name in node.input[1:]]
    if len(given) != 4 or any(value is None for value in given):
        return None
    starts, ends, axes, steps = (np.asarray(value).reshape(-1).tolist() for value in given)
    shape, found = view.shape(node.input[0]), [1, 1]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = shape[axis] if shape is not None else None
        if start != 0 or step < 1 or not (end >= _FAR or (isinstance(length, int) and end >= length)):
            return None
        if axis in (2, 3, -2, -1):
            found[axis % 2] = step
        elif step != 1:
            return None
    return found


def _channels(view: GraphView, node: onnx.NodeProto) -> list[int] | None:
    """How many channels of zeros a Pad adds before and behind, if it does nothing else."""
    if attributes(node).get("mode", b"constant") != b"constant" or len(node.input) > 3:
        return None
    pads = view.constant(node.input[1])
    filled = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if pads is None or filled is None or pads.size != 8 or np.any(filled):
        return None
    before, behind = pads.reshape(2, 4).tolist()
    others = [*before[:1], *before[2:], *behind[:1], *behind[2:]]
    return None if any(others) or min(before[1], behind[1]) < 0 else [before[1], behind[1]]

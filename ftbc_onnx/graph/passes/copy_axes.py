"""Copy an axis in a Reshape that only finds it by division, or fixes it, so that shape inference keeps its name.

Before: y = Reshape(x, [-1, 8, 4]) with x of [N, 8, 2, 2]. After: y = Reshape(x, [0, 8, 4]), and y is [N, 8, 4].

So does a number where only that axis of x is free, as the batch that an exporter baked in: [2, 8, 4] becomes [0, 8, 4],
which is the same for N = 2, and for any other N the source fails.

The axis that is left over is the same axis of x if that is the only one of x that is not known, and all the others
have as many elements together as the numbers of the target. Without its name nothing behind it has a known batch, and
onnxruntime takes very long to open a network of many steps with such axes (32 steps of an MLP-Mixer: 3 s, not 0.1 s).
"""

from __future__ import annotations

from math import prod

import numpy as np
import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.surgery import constant_value, new_constant


def copy_axes(graph: gs.Graph) -> int:
    """Apply to every Reshape with a constant target; returns the number of targets changed."""
    count = 0
    for node in graph.nodes:
        value = constant_value(node.inputs[1]) if node.op == "Reshape" and len(node.inputs) > 1 else None
        if value is None or node.inputs[0].shape is None:
            continue
        target = _copied(
            list(node.inputs[0].shape), [int(v) for v in value.reshape(-1)], node.attrs.get("allowzero", 0)
        )
        if target is not None:
            if -1 not in value:  # shapes inferred behind a fixed axis are wrong now
                _forget_shapes(graph)
            node.inputs[1] = new_constant(graph, f"{node.outputs[0].name}/shape", np.array(target, dtype=np.int64))
            node.attrs.pop("allowzero", None)
            count += 1
    return count


def _forget_shapes(graph: gs.Graph) -> None:
    """Leave no shape but those of the interface and the constants: the next round infers them anew."""
    interface = {id(tensor) for tensor in [*graph.inputs, *graph.outputs]}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Variable) and id(tensor) not in interface:
            tensor.shape = None


def _copied(source: list[object], target: list[int], allowzero: object) -> list[int] | None:
    """The target with 0 for -1, or for a number where the source is free, or None where they may not be the same."""
    unknown = [axis for axis, dim in enumerate(source) if not isinstance(dim, int)]
    if len(unknown) != 1 or (allowzero and 0 in target):
        return None
    (free,) = unknown
    if free >= len(target) or target[free] == 0 or -1 in target[:free] + target[free + 1 :]:
        return None
    copied = [dim if dim != 0 else source[axis] for axis, dim in enumerate(target) if axis != free]
    rest = [dim for axis, dim in enumerate(source) if axis != free]
    lengths = [dim for dim in copied if isinstance(dim, int)]
    known = [dim for dim in rest if isinstance(dim, int)]
    if len(lengths) < len(copied) or 0 in lengths or prod(lengths) != prod(known):
        return None
    return [0 if axis == free else dim for axis, dim in enumerate(target)]

"""What is carried through a Loop over time, filled up to its full shape before the first turn.

A state starts as numbers that broadcast, [1, C, 1, 1] say, and has its tensor's shape after the first turn. onnxruntime
takes that, and so does the standard; OpenVINO computes wrong numbers, and refuses a body whose ranks are not declared.
So where the shape is known up to axes that an input of the graph has too (the batch),

    start = Expand(start, [N, C, H, W]),      N = Shape(input)[axis]

once before the loop, and its rank is declared in the body. Where it is not known both are left as they were, so that
such a runtime refuses the graph rather than run it wrongly. The numbers are the same.
"""

from __future__ import annotations

from ftbc_onnx.graph.builder import Carried, GraphBuilder
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import Shape


def is_shared(start: tuple[int, ...] | None, shape: Shape) -> bool:
    """Whether a state that starts so is one number for all neurons of that shape, and stays it."""
    return start == (1,) and len(shape) > 1


class FullStart:
    """Says what a carried value is before the first turn, and the axes that it has in every turn."""

    def __init__(self, builder: GraphBuilder, network: Network) -> None:
        """Write around a loop of this network."""
        self._builder = builder
        self._axes: dict[int | str | None, tuple[str, int]] = {
            name: (value.name, axis)
            for value in network.view.inputs
            for axis, name in enumerate(network.view.shape(value.name) or ())
            if isinstance(name, str)
        }
        self._lengths: dict[str, str] = {}
        self._shapes: dict[Shape, str] = {}

    def __call__(self, carried: Carried) -> tuple[str, int | None]:
        """Its start, and its rank where that is the same from the first turn on, else None."""
        shape, start = carried.shape, self._builder.shape_of(carried.start)
        if shape is None or not all(isinstance(axis, int) or axis in self._axes for axis in shape):
            return carried.start, None
        if is_shared(start, shape):
            return carried.start, 1
        if start == shape:
            return carried.start, len(start)
        full = self._builder.op("Expand", carried.start, self._target(shape), out=f"{carried.inside}/full")
        return full, len(shape)

    def _target(self, shape: Shape) -> str:
        """The name of a shape, int64 [rank]."""
        if shape not in self._shapes:
            parts = [self._builder.integers(a) if isinstance(a, int) else self._length(str(a)) for a in shape]
            self._shapes[shape] = self._builder.op("Concat", *parts, out="ftbc/time/shape", axis=0)
        return self._shapes[shape]

    def _length(self, name: str) -> str:
        """The length of an axis of an input, int64 [1]."""
        if name not in self._lengths:
            source, axis = self._axes[name]
            shape = self._builder.op("Shape", source, out=f"ftbc/{name}/shape")
            self._lengths[name] = self._builder.op(
                "Gather", shape, self._builder.integers(axis), out=f"ftbc/{name}", axis=0
            )
        return self._lengths[name]

"""Binary spikes that arrive at a tensor made of spikes: how many reach each of its elements.

With n(s) the binary spikes in an event (`ftbc_onnx.graph.events`), and x a tensor between neurons and a layer,

1. x = what moves elements (Reshape, Slice, Concat, ...):     n(x) = the same of n
2. x = a + b, a - b, the sum or mean of several:              n(x) = n(a) + n(b)      each is sent on its own
3. x = c * a, a / c with constants c:                         n(x) = n(a) where c is not 0
4. x = a mean or sum over a window or over axes:              n(x) = the sum of n over the window
5. anything else:                                             n(x) = 1 where what is sent is not 0

So a layer behind a sum or a pooling counts as if its weights stood before it. Constants that are added send nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.events import emit_nonzero
from ftbc_onnx.graph.tally import Tallies, Tally
from ftbc_onnx.graph.view import GraphView, attributes

_MOVES = frozenset(
    "DepthToSpace Expand Flatten Gather Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze".split()
)
_SAME = frozenset("BatchNormalization Cast Identity Neg".split())
_SUMS = frozenset("Add Concat Mean Sub Sum".split())
_MEANS = frozenset("GlobalAveragePool ReduceMean ReduceSum".split())


@dataclass
class Arrivals:
    """Writes n(x) into a graph.

    Attributes:
        tallies: writes.
        view: the emitted model.
        spiking: the tensors that are made of spikes only.
        fired: what neurons sent, by name -> n of it, when it is called.
        otherwise: 1 where what is sent at a tensor is not 0.
    """

    tallies: Tallies
    view: GraphView
    spiking: frozenset[str]
    fired: Mapping[str, Callable[[], Tally]]
    otherwise: Callable[[str], str]
    made: dict[str, str] = field(default_factory=dict)

    @property
    def builder(self) -> GraphBuilder:
        """Of the graph."""
        return self.tallies.builder

    def tally(self, x: str) -> Tally:
        """n(x)."""
        return self.fired[x]() if x in self.fired and x not in self.made else Tally.of(self.at(x))

    def at(self, x: str) -> str:
        """Name of n(x), of the shape of x."""
        if x not in self.made:
            self.made[x] = self.tallies.written(self.fired[x]()) if x in self.fired else self._of(x)
        return self.made[x]

    def _of(self, x: str) -> str:
        node = self.view.producers.get(x)
        if node is None or x not in self.spiking:
            return self.otherwise(x)
        if node.op_type in _SUMS:
            return self._sum(node)
        if node.op_type in ("Mul", "Div"):
            a, c = node.input if node.input[0] in self.spiking else reversed(node.input)
            return self.builder.op("Mul", self.at(a), emit_nonzero(self.builder, c))
        if node.input[0] not in self.spiking:
            return self.otherwise(x)
        if node.op_type in _SAME:
            return self.at(node.input[0])
        if node.op_type in _MOVES or (node.op_type == "Pad" and _constant(node)):
            return self._copy(node)[x]
        if node.op_type in _MEANS:
            return self._over_axes(node, x)
        if node.op_type == "AveragePool" and not attributes(node).get("ceil_mode", 0):
            return self._over_windows(node)
        return self.otherwise(x)

    def _copy(self, node: onnx.NodeProto) -> dict[str, str]:
        """The node on n instead of what is read; a Pad fills up with 0."""
        rename = {node.input[0]: self.at(node.input[0])}
        if node.op_type == "Pad" and len(node.input) > 2:
            rename[node.input[2]] = ""
        made = self.builder.copy(node, rename, "/arriving")
        self.made.update(made)
        return made

    def _sum(self, node: onnx.NodeProto) -> str:
        builder = self.builder
        parts = [self.at(a) if a in self.spiking else self._none(a) for a in node.input]
        return builder.like(node, *parts) if node.op_type == "Concat" else builder.op("Sum", *parts)

    def _none(self, a: str) -> str:
        """Zeros of the shape of a constant."""
        wide = self.builder.op("Cast", a, to=onnx.TensorProto.FLOAT)
        return self.builder.op("Mul", wide, self.builder.constant(0.0))

    def _over_axes(self, node: onnx.NodeProto, x: str) -> str:
        inside = self.at(node.input[0])
        made = self._copy(node)[x]
        if node.op_type == "ReduceSum":
            return made
        builder = self.builder
        size = builder.op("Div", *(builder.op("Size", name) for name in (inside, made)))
        self.made[x] = builder.op("Mul", made, builder.op("Cast", size, to=onnx.TensorProto.FLOAT))
        return self.made[x]

    def _over_windows(self, node: onnx.NodeProto) -> str:
        builder = self.builder
        (kernel,) = (list(a.ints) for a in node.attribute if a.name == "kernel_shape")
        whole = onnx.NodeProto()
        whole.CopyFrom(node)
        del whole.attribute[:]
        whole.attribute.extend(a for a in node.attribute if a.name != "count_include_pad")
        whole.attribute.append(onnx.helper.make_attribute("count_include_pad", 1))
        mean = builder.like(whole, self.at(node.input[0]))
        return builder.op("Mul", mean, builder.constant(float(np.prod(kernel))))


def _constant(pad: onnx.NodeProto) -> bool:
    """Whether a Pad fills up with one number."""
    return attributes(pad).get("mode", b"constant") in (b"constant", "constant")

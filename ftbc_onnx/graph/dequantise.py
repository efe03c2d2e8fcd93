"""A quantised network (QDQ format) computed in float32: what is rounded to 8 bits between layers is rounded by spikes.

    d = DequantizeLinear(QuantizeLinear(x, s, z), s, z) = s * clip(round(x/s), low, high)    low..high: -z and on

Quantisers leave out a rectifier where z makes low zero, and any Clip: the pair is the activation then. It becomes

* Clip(x, 0, s*high) where it bounds x from below at 0, or stands alone behind a Relu, which then has this ceiling (a
  MaxPool or what moves numbers may be between);
* QCFS with L = high levels and theta = s*high, if low is 0 and there are 15 levels or fewer: they matter;
* Clip(x, s*low, s*high) with both signs, if there are 16 levels or fewer, or if it alone stands between two layers;
* nothing elsewhere: x is not negative there anyway, or what follows is an activation.

Weights and biases are constants by then: normalisation has multiplied them by their scales.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx

from ftbc_onnx.graph.classes import WEIGHTED
from ftbc_onnx.graph.draft import Draft
from ftbc_onnx.graph.view import GraphView

DOMAINS = ("", "com.microsoft")
"""Of QuantizeLinear and DequantizeLinear: onnxruntime has its own, for 16 bits before opset 21."""

_RANGES = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 65535),
    onnx.TensorProto.INT16: (-32768, 32767),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT4: (-8, 7),
}
_FEW = 15  # levels, up to which a network is trained for them

_NOT_NEGATIVE = frozenset("Abs Exp HardSigmoid ReduceL1 ReduceL2 ReduceSumSquare Sigmoid Softmax Softplus Sqrt".split())
_FIRST_INPUT = frozenset(
    """AveragePool Dropout Expand Flatten Gather GlobalAveragePool GlobalMaxPool Identity MaxPool ReduceMax ReduceMean
    ReduceMin ReduceSum Reshape Slice Split Squeeze Tile Transpose Unsqueeze""".split()
)
_LETS_THROUGH = frozenset("Flatten Identity MaxPool Reshape Slice Squeeze Transpose Unsqueeze".split())
"""Operators behind which a function that never falls is the same as before them, number by number."""
_EVERY_INPUT = frozenset("Add Concat Div Max Mean Min Mul Pow Sum".split())
"""Operators whose output is not negative where their first input, or every input, is not."""


@dataclass(frozen=True)
class _Pair:
    """QuantizeLinears of one tensor with the same numbers, and the DequantizeLinears that read them.

    Attributes:
        source: x.
        nodes: all of them, with a Clip between for fewer bits than a type has.
        made: outputs of the DequantizeLinears.
        scale: s.
        low: in units of s.
        high: in units of s.
    """

    source: str
    nodes: tuple[onnx.NodeProto, ...]
    made: tuple[str, ...]
    scale: np.float32
    low: int
    high: int


def dequantise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of a normalised model without pairs of QuantizeLinear and DequantizeLinear, and at how many places."""
    view = GraphView(model)
    pairs: dict[tuple[object, ...], _Pair] = {}
    for node in view.nodes:
        pair = _pair_of(view, node)
        if pair is not None:
            key = (pair.source, pair.scale, pair.low, pair.high)
            same = pairs.get(key, replace(pair, nodes=(), made=()))
            pairs[key] = replace(same, nodes=(*same.nodes, *pair.nodes), made=(*same.made, *pair.made))
    if not pairs:
        return model, 0
    rewriter = _Rewriter(view, list(pairs.values()))
    first = {pair.nodes[0].name: pair for pair in pairs.values()}
    gone = {node.name for pair in pairs.values() for node in pair.nodes}
    for node in view.nodes:
        if node.name in first:
            rewriter.replace(first[node.name])
        elif node.name in rewriter.bounded:
            rewriter.bound(node)
        elif node.name not in gone:
            rewriter.draft.nodes.append(node)
    return rewriter.draft.model(model), len(pairs)


def _pair_of(view: GraphView, node: onnx.NodeProto) -> _Pair | None:
    """The pair that a QuantizeLinear with one scale makes with all that read it, or None."""
    numbers = _numbers(view, node) if node.op_type == "QuantizeLinear" and node.domain in DOMAINS else None
    if numbers is None or view.elem_type(node.input[0]) not in (0, onnx.TensorProto.FLOAT):
        return None
    scale, zero, kind = numbers
    (low, high), quantised, nodes = _RANGES[kind], node.output[0], [node]
    clip = view.sole_consumer(quantised)
    if clip is not None and clip.op_type == "Clip":
        low, high, quantised = _clipped(view, clip, low, high)
        nodes.append(clip)
    readers = view.consumers.get(quantised, [])
    if not readers or quantised in view.output_names or high <= low:
        return None
    for reader in readers:
        plain = reader.op_type == "DequantizeLinear" and reader.domain in DOMAINS
        if not plain or _numbers(view, reader) != numbers:
            return None
    made = tuple(reader.output[0] for reader in readers)
    return _Pair(node.input[0], (*nodes, *readers), made, scale, low - zero, high - zero)


def _clipped(view: GraphView, clip: onnx.NodeProto, low: int, high: int) -> tuple[int, int, str]:
    """What a Clip of quantised numbers leaves of their range, and its output; an empty range if it is not known."""
    bounds = [low, high]
    for number, name in enumerate(clip.input[1:3]):
        value = view.constant(name) if name else np.array(bounds[number])
        if value is None or value.size != 1:
            return high, low, clip.output[0]
        bounds[number] = (max, min)[number](bounds[number], int(value.item()))
    return bounds[0], bounds[1], clip.output[0]


def _numbers(view: GraphView, node: onnx.NodeProto) -> tuple[np.float32, int, int] | None:
    """Scale, zero point and type of a node with one of each, or None."""
    scale = view.constant(node.input[1])
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or not scale.item() > 0:
        return None
    if len(node.input) < 3 or not node.input[2]:
        kind = view.elem_type(node.output[0] if node.op_type == "QuantizeLinear" else node.input[0])
        return (np.float32(scale.item()), 0, kind) if kind in _RANGES else None
    zero, kind = view.constant(node.input[2]), view.elem_type(node.input[2])
    if zero is None or zero.size != 1 or kind not in _RANGES:
        return None
    return np.float32(scale.item()), int(zero.item()), kind


def _not_negative(view: GraphView, pairs: Iterable[_Pair]) -> set[str]:
    """Tensors of which it is certain, and the graph's inputs: a quantiser has seen nothing below low in them."""
    found = {name for name in view.initializers if _least(view, name) >= 0} | {value.name for value in view.inputs}
    makers = {name: pair for pair in pairs for name in pair.made}
    for node in view.nodes:
        pair = makers.get(node.output[0])
        if pair is not None:
            if pair.low >= 0 or pair.source in found:
                found.add(node.output[0])
        elif _rectifies(view, node) or _is_even_power(view, node) or _keeps(node, found):
            found.update(name for name in node.output if name)
    return found


def _keeps(node: onnx.NodeProto, found: Collection[str]) -> bool:
    if node.op_type in _NOT_NEGATIVE:
        return True
    if node.op_type in _FIRST_INPUT:
        return node.input[0] in found
    if node.op_type == "Pad":
        return all(name in found for name in (node.input[0], *filter(None, node.input[2:3])))
    return node.op_type in _EVERY_INPUT and all(name in found for name in node.input)


def _is_even_power(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node is a square, or a product of a tensor with itself."""
    if node.op_type == "Mul":
        return bool(node.input[0] == node.input[1])
    exponent = view.constant(node.input[1]) if node.op_type == "Pow" else None
    return exponent is not None and bool(np.all(exponent % 2 == 0))


def _rectifies(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node bounds what it reads from below at 0, or higher."""
    if node.op_type in ("Clip", "Max"):
        bounds = node.input[1:2] if node.op_type == "Clip" else node.input
        return any(name and _least(view, name) >= 0 for name in bounds)
    return bool(node.op_type == "Relu")


def _least(view: GraphView, name: str) -> float:
    """Least number of a constant; minus infinity for what is none."""
    value = view.constant(name)
    return -np.inf if value is None or not value.size or value.dtype.kind not in "fiu" else float(value.min())


class _Rewriter:
    """Writes what stands for pairs.

    Attributes:
        draft: of the graph without them.
        bounded: pairs by the name of the rectifier that takes them in, through what is between.
    """

    def __init__(self, view: GraphView, pairs: Sequence[_Pair]) -> None:
        self.draft = Draft(view)
        self._view = view
        self._not_negative = _not_negative(view, pairs)
        self.bounded = self._by_rectifier(pairs)
        self._taken_in = {pair.nodes[0].name for pair in self.bounded.values()}

    def replace(self, pair: _Pair) -> None:
        """Write what makes what a pair makes."""
        first, *others = pair.made
        if pair.nodes[0].name in self._taken_in:
            self.draft.add("Identity", [pair.source], first)
        else:
            self._activation(pair, pair.source, first, self._rectifier_before(pair))
        for name in others:
            self.draft.add("Identity", [first], name)

    def bound(self, node: onnx.NodeProto) -> None:
        """Write a rectifier, with what the pair behind it makes of its output."""
        plain = onnx.NodeProto()
        plain.CopyFrom(node)
        plain.output[0] = self.draft.names.claim(f"{node.output[0]}/plain")
        self.draft.nodes.append(plain)
        self._activation(self.bounded[node.name], plain.output[0], node.output[0], plain)

    def _activation(self, pair: _Pair, source: str, made: str, rectifier: onnx.NodeProto | None) -> None:
        """Write what a pair makes of `source`; the last node has the name that the pair's first had."""
        maker = self._view.producers.get(pair.source)
        few = maker is not None and pair.high - pair.low <= _FEW
        bounds = pair.low == 0 and maker is not None and source not in self._not_negative
        if few and (pair.low == 0 or (rectifier is not None and pair.low < 0)):
            if rectifier is not None and rectifier.op_type == "Relu":
                source = rectifier.input[0]
            step, half, zero, top = (self._constant(made, value) for value in (float(pair.scale), 0.5, 0, pair.high))
            chain = [("Div", step), ("Add", half), ("Floor",), ("Clip", zero, top), ("Mul", step)]
        elif rectifier is not None or bounds:
            chain = [("Clip", self._constant(made, 0), self._constant(made, float(pair.high * pair.scale)))]
        elif pair.low > 0 or (pair.low < 0 and (few or self._between_layers(pair))):
            chain = [("Clip", *(self._constant(made, float(limit * pair.scale)) for limit in (pair.low, pair.high)))]
        else:
            chain = [("Identity",)]
        for number, (op, *constants) in enumerate(chain, 1):
            last = number == len(chain)
            tensor = made if last else self.draft.names.claim(f"{made}/{op}")
            source = self.draft.add(op, [source, *constants], tensor, pair.nodes[0].name if last else "")

    def _rectifier_before(self, pair: _Pair) -> onnx.NodeProto | None:
        """The rectifier that makes x, if nothing but the pair reads it."""
        maker = self._maker(pair)
        return maker if maker is not None and _rectifies(self._view, maker) else None

    def _maker(self, pair: _Pair) -> onnx.NodeProto | None:
        """The node that makes x, if nothing but the pair reads it."""
        readers = {node.name for node in self._view.consumers[pair.source]}
        alone = pair.source not in self._view.output_names and readers <= {node.name for node in pair.nodes}
        return self._view.producers.get(pair.source) if alone else None

    def _by_rectifier(self, pairs: Sequence[_Pair]) -> dict[str, _Pair]:
        """Pairs whose x comes from a rectifier, through operators that let them through, and goes nowhere else."""
        found = {}
        for pair in pairs:
            node, passed = self._maker(pair), False
            while node is not None and self._lets_through(node):
                node, passed = self._view.producers.get(node.input[0]), True
            if node is not None and passed and pair.low <= 0 and _rectifies(self._view, node):
                found[node.name] = pair
        return found

    def _lets_through(self, node: onnx.NodeProto) -> bool:
        """Whether a bound behind a node is as good before it, and meets nothing else there."""
        alone = self._view.sole_consumer(node.input[0]) is not None if node.input else False
        return node.op_type in _LETS_THROUGH and len(node.output) == 1 and alone

    def _between_layers(self, pair: _Pair) -> bool:
        """Whether a layer makes x, and layers alone read what comes of it: a Clip may have stood there."""
        maker = self._view.producers.get(pair.source)
        readers = [node for name in pair.made for node in self._view.consumers.get(name, [])]
        layers = {*WEIGHTED, "BatchNormalization"}
        made_by_layer = maker is not None and maker.op_type in layers
        return made_by_layer and bool(readers) and all(node.op_type in WEIGHTED for node in readers)

    def _constant(self, made: str, value: float) -> str:
        return self.draft.constant(np.array(value, np.float32), f"{made}/number")

"""A quantised network (QDQ format) computed in float32: what is rounded to 8 bits between layers is rounded by spikes.

    d = DequantizeLinear(QuantizeLinear(x, s, z), s, z) = s * clip(round(x/s), low, high)    low..high: -z and on

Quantisers leave out a rectifier where z makes low zero: the pair is the rectifier then. With r = s*high, a pair becomes

* Clip(x, 0, r) where it bounds x from below at 0, or stands alone behind a Relu, which then has this ceiling;
* QCFS with L = high levels and theta = r in these places, if there are 15 levels or fewer, so that they matter;
* nothing elsewhere: x is not negative there anyway, or has both signs, and rounding and range only make it worse.

Weights and biases are constants by then: normalisation has multiplied them by their scales.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ftbc_onnx.graph.view import GraphView

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
_EVERY_INPUT = frozenset("Add Concat Div Max Mean Min Mul Pow Sum".split())
"""Operators whose output is not negative where their first input, or every input, is not."""


@dataclass(frozen=True)
class _Pair:
    """A QuantizeLinear and the DequantizeLinears that read it: all that x can be is a multiple of `scale`.

    Attributes:
        node: the QuantizeLinear.
        readers: the DequantizeLinears.
        between: a Clip between them, for fewer bits than a type has.
        scale: s.
        low: in units of s.
        high: in units of s.
    """

    node: onnx.NodeProto
    readers: tuple[onnx.NodeProto, ...]
    between: tuple[onnx.NodeProto, ...]
    scale: np.float32
    low: int
    high: int


def dequantise(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of a normalised model without pairs of QuantizeLinear and DequantizeLinear, and how many there were."""
    view = GraphView(model)
    pairs = {pair.node.name: pair for node in view.nodes if (pair := _pair_of(view, node)) is not None}
    if not pairs:
        return model, 0
    work = onnx.ModelProto()
    work.CopyFrom(model)
    del work.graph.node[:]
    positive = _not_negative(view, pairs)
    gone = {node.name for pair in pairs.values() for node in (*pair.between, *pair.readers)}
    for node in view.nodes:
        if node.name in pairs:
            nodes, constants = _replacement(view, pairs[node.name], positive)
            work.graph.node.extend(nodes)
            work.graph.initializer.extend(constants)
        elif node.name not in gone:
            work.graph.node.append(node)
    return work, len(pairs)


def _pair_of(view: GraphView, node: onnx.NodeProto) -> _Pair | None:
    """The pair that a QuantizeLinear with one scale makes with all that read it, or None."""
    numbers = _numbers(view, node) if node.op_type == "QuantizeLinear" and not node.domain else None
    if numbers is None or view.elem_type(node.input[0]) not in (0, onnx.TensorProto.FLOAT):
        return None
    scale, zero, kind = numbers
    (low, high), quantised = _RANGES[kind], node.output[0]
    clip = view.sole_consumer(quantised)
    if clip is not None and clip.op_type == "Clip":
        low, high, quantised = _clipped(view, clip, low, high)
    readers = view.consumers.get(quantised, [])
    if not readers or quantised in view.output_names or high <= low:
        return None
    if any(r.op_type != "DequantizeLinear" or r.domain or _numbers(view, r) != numbers for r in readers):
        return None
    between = () if clip is None or clip.op_type != "Clip" else (clip,)
    return _Pair(node, tuple(readers), between, scale, low - zero, high - zero)


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


def _not_negative(view: GraphView, pairs: Mapping[str, _Pair]) -> set[str]:
    """Tensors of which it is certain."""
    found = {name for name in view.initializers if _least(view, name) >= 0}
    for node in view.nodes:
        if node.name in pairs:
            if pairs[node.name].low == 0 or node.input[0] in found:
                found.update(reader.output[0] for reader in pairs[node.name].readers)
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
    """Whether a node bounds its first input from below at 0, or higher."""
    if node.op_type == "Clip":
        return any(name and _least(view, name) >= 0 for name in node.input[1:2])
    return bool(node.op_type == "Relu")


def _least(view: GraphView, name: str) -> float:
    """Least number of a constant; minus infinity for what is none."""
    value = view.constant(name)
    return -np.inf if value is None or not value.size or value.dtype.kind not in "fiu" else float(value.min())


def _replacement(
    view: GraphView, pair: _Pair, positive: Collection[str]
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """What stands for a pair."""
    source = pair.node.input[0]
    maker = view.producers.get(source)
    rectified = maker is not None and _rectifies(view, maker) and view.sole_consumer(source) is pair.node
    first, *others = (reader.output[0] for reader in pair.readers)
    same = [helper.make_node("Identity", [first], [name], name=f"{name}/same") for name in others]
    if not (rectified or (pair.low == 0 and maker is not None and source not in positive)):
        return [helper.make_node("Identity", [source], [first], name=f"{first}/same"), *same], []
    names = {name: f"{pair.node.name}/{name}" for name in ("zero", "top", "step", "half")}
    values = {"zero": 0, "top": pair.high * pair.scale, "step": pair.scale, "half": 0.5}
    chain: list[tuple[str, ...]]
    if pair.high > _FEW:
        chain = [("Clip", "zero", "top")]
    else:
        values["top"] = pair.high
        chain = [("Div", "step"), ("Add", "half"), ("Floor",), ("Clip", "zero", "top"), ("Mul", "step")]
        if rectified and maker is not None and maker.op_type == "Relu":
            source = maker.input[0]
    nodes, tensor = [], source
    for number, (op, *constants) in enumerate(chain, 1):
        made = first if number == len(chain) else f"{first}/{op}"
        nodes.append(helper.make_node(op, [tensor, *(names[name] for name in constants)], [made], name=f"{made}/{op}"))
        tensor = made
    used = dict.fromkeys(name for _, *constants in chain for name in constants)
    return [*nodes, *same], [numpy_helper.from_array(np.array(values[name], np.float32), names[name]) for name in used]

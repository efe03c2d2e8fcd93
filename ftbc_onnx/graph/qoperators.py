"""Quantised operators (QOperator format) as plain ones between DequantizeLinear and QuantizeLinear (QDQ format).

    y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)
      = QuantizeLinear(Conv(DequantizeLinear(x, xs, xz), DequantizeLinear(w, ws, wz), xs*ws*b), ys, yz)

Those of the default domain and of onnxruntime's. What moves or picks 8-bit numbers between them (a MaxPool, a Reshape)
moves real numbers afterwards. `ftbc_onnx.graph.dequantise` then takes the pairs out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ftbc_onnx.graph.view import GraphView, attributes


@dataclass(frozen=True)
class _Quantised:
    """An operator whose inputs are values, each with its scale and zero point behind it.

    Attributes:
        plain: the same operator on real numbers.
        values: positions of the values.
        made: position of the output's scale, with its zero point behind it.
        bias: position of a bias in units of the product of both scales, or None.
    """

    plain: str
    values: tuple[int, ...]
    made: int
    bias: int | None = None


_OPERATORS = {
    "QLinearConv": _Quantised("Conv", (0, 3), 6, 8),
    "QGemm": _Quantised("Gemm", (0, 3), 7, 6),
    "QLinearMatMul": _Quantised("MatMul", (0, 3), 6),
    "QLinearAdd": _Quantised("Add", (0, 3), 6),
    "QLinearMul": _Quantised("Mul", (0, 3), 6),
    "QLinearAveragePool": _Quantised("AveragePool", (0,), 3),
    "QLinearGlobalAveragePool": _Quantised("GlobalAveragePool", (0,), 3),
    "QLinearLeakyRelu": _Quantised("LeakyRelu", (0,), 3),
    "QLinearSigmoid": _Quantised("Sigmoid", (0,), 3),
    "QLinearSoftmax": _Quantised("Softmax", (0,), 3),
}
_MOVES = frozenset("Expand Flatten Gather Identity MaxPool Reshape Slice Squeeze Tile Transpose Unsqueeze".split())
_ONNXRUNTIME = "com.microsoft"
_OWN = {"channels_last": 0, "opset": None, "alpha": 1.0}
"""Attributes that plain operators do not have, and the values that they may be left out with (None: any)."""


def plain_operators(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of a normalised model with quantised operators written in the QDQ format, and how many there were.

    The model itself where there are none. One that cannot be written so stays.
    """
    writer = _Writer(GraphView(model))
    for node in writer.view.nodes:
        writer.visit(node)
    if not writer.count:
        return model, 0
    work = onnx.ModelProto()
    work.CopyFrom(model)
    del work.graph.node[:], work.graph.value_info[:]
    work.graph.node.extend(writer.nodes)
    work.graph.initializer.extend(writer.constants)
    return work, writer.count


class _Writer:
    """One walk through the graph in topological order.

    Attributes:
        nodes: of the new graph.
        constants: new ones.
        count: operators that were written anew.
    """

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.count = 0
        self._units: dict[str, list[str]] = {}  # names of scale and zero point of quantised tensors
        self._scalars: dict[str, str] = {}

    def visit(self, node: onnx.NodeProto) -> None:
        """Write a node, or what stands for it."""
        kind = _OPERATORS.get(node.op_type)
        if node.op_type == "QLinearConcat":
            kind = _Quantised("Concat", tuple(range(2, len(node.input), 3)), 0)
        if kind is not None and self._is_plain(node, kind):
            self._write(node, kind)
        elif node.op_type in _MOVES and not node.domain and node.input[0] in self._units:
            self._move(node, self._units[node.input[0]])
        else:
            if node.op_type == "QuantizeLinear":
                self._units[node.output[0]] = list(node.input[1:3])
            self._keep(node)

    def _keep(self, node: onnx.NodeProto) -> None:
        """The node itself; a pair of onnxruntime's domain (for 16 bits before opset 21) in the default one."""
        self.nodes.append(node)
        if node.domain == _ONNXRUNTIME and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            self.nodes[-1] = onnx.NodeProto()
            self.nodes[-1].CopyFrom(node)
            self.nodes[-1].domain = ""
            self.count += 1

    def _is_plain(self, node: onnx.NodeProto, kind: _Quantised) -> bool:
        """Whether the plain operator means the same."""
        given = attributes(node)
        own = {name: value for name, value in _OWN.items() if kind.plain != "LeakyRelu" or name != "alpha"}
        constant = all(self.view.constant(node.input[value + 1]) is not None for value in kind.values)
        return constant and all(given.get(name, value) == value for name, value in own.items() if value is not None)

    def _write(self, node: onnx.NodeProto, kind: _Quantised) -> None:
        name = node.output[0]
        inputs = [self._real(node, value, f"{name}/{number}") for number, value in enumerate(kind.values)]
        if kind.bias is not None and len(node.input) > kind.bias and node.input[kind.bias]:
            scales = [self._constant(node.input[value + 1]) for value in kind.values]
            units = numpy_helper.from_array(np.asarray(scales[0] * scales[1], np.float32).reshape(-1), f"{name}/unit")
            self.constants.append(units)
            self._add("Cast", [node.input[kind.bias]], f"{name}/bias/counted", to=onnx.TensorProto.FLOAT)
            inputs.append(self._add("Mul", [f"{name}/bias/counted", units.name], f"{name}/bias"))
        kept = {key: value for key, value in attributes(node).items() if key not in _OWN or kind.plain == "LeakyRelu"}
        units_made = list(node.input[kind.made : kind.made + 2])
        if units_made and units_made[0]:
            self._add("QuantizeLinear", [self._add(kind.plain, inputs, f"{name}/real", **kept), *units_made], name)
            self._units[name] = units_made
        else:  # a QGemm that gives real numbers
            self._add(kind.plain, inputs, name, **kept)
        self.count += 1

    def _real(self, node: onnx.NodeProto, value: int, name: str) -> str:
        """A value in real numbers; a scale for each channel goes along the output channels of weights."""
        tensor, *units = node.input[value : value + 3]
        if self._constant(units[0]).size > 1:
            last = len(self.view.shape(tensor) or ()) - 1
            by_rows = node.op_type == "QLinearConv" or bool(attributes(node).get("transB", 0))
            return self._add("DequantizeLinear", [tensor, *units], name, axis=0 if by_rows else last)
        return self._add("DequantizeLinear", [tensor, *(self._scalar(unit) for unit in units)], name)

    def _move(self, node: onnx.NodeProto, units: list[str]) -> None:
        name = node.output[0]
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.input[0] = self._add("DequantizeLinear", [node.input[0], *units], f"{name}/real/before")
        moved.output[0] = f"{name}/real"
        self.nodes.append(moved)
        self._add("QuantizeLinear", [moved.output[0], *units], name)
        self._units[name] = units

    def _add(self, op: str, inputs: list[str], made: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, inputs, [made], name=f"{made}/{op}", **attributes))
        return made

    def _constant(self, name: str) -> np.ndarray:
        value = self.view.constant(name)
        assert value is not None  # `_is_plain`
        return value

    def _scalar(self, name: str) -> str:
        """A scale or zero point of one number, without axes."""
        value = self.view.constant(name) if name else None
        if value is None or value.ndim == 0:
            return name
        if name not in self._scalars:
            self._scalars[name] = f"{name}/scalar"
            self.constants.append(numpy_helper.from_array(value.reshape(()), self._scalars[name]))
        return self._scalars[name]

"""Quantised operators (QOperator format) as plain ones between DequantizeLinear and QuantizeLinear (QDQ format).

    y = QLinearConv(x, xs, xz, w, ws, wz, ys, yz, b)
      = QuantizeLinear(Conv(DequantizeLinear(x, xs, xz), DequantizeLinear(w, ws, wz), xs*ws*b), ys, yz)

Those of the default domain and of onnxruntime's. What moves or picks 8-bit numbers between them (a MaxPool, a Reshape)
moves real numbers afterwards. `ftbc_onnx.graph.dequantise` then takes the pairs out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ftbc_onnx.graph.dequantise import DOMAINS
from ftbc_onnx.graph.draft import Draft
from ftbc_onnx.graph.view import GraphView, attributes

_Units = tuple[np.ndarray, np.ndarray | None]
"""Scale and zero point: one number, or one for each channel."""


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
_OWN = frozenset(("channels_last", "opset"))
"""Attributes that plain operators do not have."""

_WIDE_OPSET = 21
_NARROW = (onnx.TensorProto.UINT8, onnx.TensorProto.INT8, onnx.TensorProto.INT32)
"""The first opset with pairs of 16 bits, and the types that they had before."""


def plain_operators(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """A copy of a normalised model with quantised operators written in the QDQ format, and how many there were.

    The model itself where there are none. One that cannot be written so stays.
    """
    writer = _Writer(GraphView(model))
    for node in writer.view.nodes:
        writer.visit(node)
    if not writer.count:
        return model, 0
    work = writer.draft.model(model)
    del work.graph.value_info[:]
    return work, writer.count


class _Writer:
    """One walk through the graph in topological order.

    Attributes:
        view: of the old graph.
        draft: of the new one.
        count: operators that were written anew.
    """

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.draft = Draft(view)
        self.count = 0
        self._units: dict[str, tuple[str, str]] = {}  # names of scale and zero point of quantised tensors

    def visit(self, node: onnx.NodeProto) -> None:
        """Write a node, or what stands for it."""
        kind = _OPERATORS.get(node.op_type)
        if node.op_type == "QLinearConcat":
            kind = _Quantised("Concat", tuple(range(2, len(node.input), 3)), 0)
        units = self._plain_units(node, kind) if kind is not None and node.domain in DOMAINS else None
        if kind is not None and units is not None:
            self._write(node, kind, units)
        elif node.op_type in _MOVES and not node.domain and node.input[0] in self._units:
            self._move(node, self._units[node.input[0]])
        else:
            if node.op_type == "QuantizeLinear":
                self._remember(node.output[0], node.input[1:3])
            self._keep(node)

    def _remember(self, tensor: str, units: Sequence[str]) -> None:
        """That a tensor is in these units, if they are one constant scale and one constant zero point."""
        values = [self.view.constant(name) for name in units if name]
        if len(values) == len(units) == 2 and all(value is not None and value.size == 1 for value in values):
            self._units[tensor] = (units[0], units[1])

    def _keep(self, node: onnx.NodeProto) -> None:
        """The node itself; a pair of onnxruntime's domain in the default one, if that has its type."""
        self.draft.nodes.append(node)
        if node.domain in DOMAINS[1:] and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            kind = self.view.elem_type(node.input[2]) if len(node.input) > 2 else onnx.TensorProto.UINT8
            if self.view.opset >= _WIDE_OPSET or kind in _NARROW:
                plain = self.draft.nodes[-1] = onnx.NodeProto()
                plain.CopyFrom(node)
                plain.domain = ""
                self.count += 1

    def _plain_units(self, node: onnx.NodeProto, kind: _Quantised) -> list[_Units] | None:
        """Scale and zero point of every value, if all are known and the plain operator means the same."""
        given = attributes(node)
        if given.get("channels_last", 0) or (kind.plain == "Gemm" and given.get("alpha", 1.0) != 1.0):
            return None
        if kind.plain == "Softmax" and int(str(given.get("opset", 13))) < 13:  # which made two axes of all
            return None
        units = []
        for value in kind.values:
            found = self._constants(node, value)
            if found is None or (found[0].ndim > 0 and node.input[value] not in self.view.initializers):
                return None
            units.append(found)
        return units or None

    def _constants(self, node: onnx.NodeProto, value: int) -> _Units | None:
        """Scale and zero point of a value, without axes or for each channel; None if they are something else."""
        scale = self.view.constant(node.input[value + 1])
        name = node.input[value + 2] if len(node.input) > value + 2 else ""
        zero = self.view.constant(name) if name else None
        if scale is None or (name and zero is None):
            return None
        if scale.size == 1 and (zero is None or zero.size == 1):
            return scale.reshape(()), None if zero is None else zero.reshape(())
        shape = (max(scale.size, 1 if zero is None else zero.size),)
        if any(part is not None and part.size > 1 and part.shape != shape for part in (scale, zero)):
            return None
        wide, center = (None if p is None else np.broadcast_to(p.reshape(-1), shape).copy() for p in (scale, zero))
        assert wide is not None
        return wide, center

    def _write(self, node: onnx.NodeProto, kind: _Quantised, units: Sequence[_Units]) -> None:
        name = node.output[0]
        values = zip(kind.values, units, strict=True)
        inputs = [self._real(node, value, each, f"{name}/{number}") for number, (value, each) in enumerate(values)]
        if kind.bias is not None and len(node.input) > kind.bias and node.input[kind.bias]:
            unit = self.draft.constant(np.asarray(units[0][0] * units[1][0], np.float32).reshape(-1), f"{name}/unit")
            counted = self._add("Cast", [node.input[kind.bias]], f"{name}/counted", to=onnx.TensorProto.FLOAT)
            inputs.append(self._add("Mul", [counted, unit], f"{name}/bias"))
        kept: dict[str, Any] = {key: value for key, value in attributes(node).items() if key not in _OWN}
        made = list(node.input[kind.made : kind.made + 2])
        if made and made[0]:
            real = self._add(kind.plain, inputs, f"{name}/real", **kept)
            self.draft.add("QuantizeLinear", [real, *made], name, node.name)
            self._remember(name, made)
        else:  # a QGemm that gives real numbers
            self.draft.add(kind.plain, inputs, name, node.name, **kept)
        self.count += 1

    def _real(self, node: onnx.NodeProto, value: int, found: _Units, name: str) -> str:
        """A value in real numbers; a scale for each channel goes along the output channels of weights."""
        units = [self.draft.constant(part, f"{name}/unit") for part in found if part is not None]
        if found[0].ndim == 0:
            return self._add("DequantizeLinear", [node.input[value], *units], name)
        last = len(self.view.shape(node.input[value]) or ()) - 1
        by_rows = node.op_type == "QLinearConv" or bool(attributes(node).get("transB", 0))
        return self._add("DequantizeLinear", [node.input[value], *units], name, axis=0 if by_rows else last)

    def _move(self, node: onnx.NodeProto, units: tuple[str, str]) -> None:
        name = node.output[0]
        moved = onnx.NodeProto()
        moved.CopyFrom(node)
        moved.input[0] = self._add("DequantizeLinear", [node.input[0], *units], f"{name}/before")
        moved.output[0] = self.draft.names.claim(f"{name}/real")
        self.draft.nodes.append(moved)
        self.draft.add("QuantizeLinear", [moved.output[0], *units], name)
        self._units[name] = units
        self.count += 1

    def _add(self, op: str, inputs: list[str], wanted: str, **attributes: Any) -> str:
        return self.draft.add(op, inputs, self.draft.names.claim(wanted), **attributes)

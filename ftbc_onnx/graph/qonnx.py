"""QONNX in standard operators: how Brevitas, QKeras and FINN write networks of any number of bits.

    Quant(x, s, z, bits)         = s * (r(clip(x/s + z, low, high)) - z)       low..high: an integer of so many bits
    BipolarQuant(x, s)           = s where x >= 0, and -s elsewhere            so a signed Quant of 1 bit with x/s + z
    Trunc(x, s, z, in, out)      = s * (r(round(x/s + z) / 2^(in - out)) - z)
    Trunc(x, s, z, in, s', out)  = s' * (r(clip(round(x/s + z) / k, low, high)) - z/k)        k = 2^round(log2(s'/s))

where r rounds as `rounding_mode` says. A Quant of an activation to 8 bits or fewer becomes a pair of QuantizeLinear and
DequantizeLinear, for `ftbc_onnx.graph.dequantise` to read (it rounds before z is added: where z is odd, a value halfway
between two levels goes to the other); everything else becomes arithmetic.

Source: Pappalardo et al., "QONNX: representing arbitrary-precision quantized neural networks", 2022, arXiv 2206.07527,
and the definitions of these operators in that project.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from ftbc_onnx.graph.draft import Draft
from ftbc_onnx.graph.normalise import FLOOR, change_opset, default_opset
from ftbc_onnx.graph.view import GraphView, all_nodes, attributes

DOMAINS = ("qonnx.custom_op.general", "finn.custom_op.general", "onnx.brevitas")
"""What the operators' domain is called, and has been."""


_INPUTS = {"Quant": (4,), "IntQuant": (4,), "BipolarQuant": (2,), "Trunc": (5, 6)}
"""How many inputs each operator has."""


class _Rounding(NamedTuple):
    """Round x + shift by an operator, or |x| + shift with the sign of x."""

    op: str
    shift: float = 0.0
    by_size: bool = False


_ROUNDINGS = {
    "ROUND": _Rounding("Round"),
    "HALF_EVEN": _Rounding("Round"),
    "CEIL": _Rounding("Ceil"),
    "FLOOR": _Rounding("Floor"),
    "UP": _Rounding("Ceil", by_size=True),
    "DOWN": _Rounding("Floor", by_size=True),
    "HALF_UP": _Rounding("Floor", 0.5, by_size=True),
    "HALF_DOWN": _Rounding("Ceil", -0.5, by_size=True),
}


def standard_operators(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model without QONNX's operators, of opset 13 or newer; the model itself where there are none.

    One that cannot be written so (its number of bits is computed, its rounding is unknown) stays.

    Raises:
        ModelError: the opset is older, and cannot be raised.
    """
    own = {(function.domain, function.name) for function in model.functions}

    def is_foreign(node: onnx.NodeProto) -> bool:
        return node.domain in DOMAINS and (node.domain, node.op_type) not in own

    if not any(is_foreign(node) for node in model.graph.node):
        return model
    if default_opset(model) < FLOOR:
        model = change_opset(model, FLOOR, f"export the model with opset {FLOOR} or newer")
    writer = _Writer(GraphView(model))
    for node in model.graph.node:
        if not is_foreign(node) or not writer.write(node):
            writer.draft.nodes.append(node)
    work = writer.draft.model(model)
    used = all_nodes([*work.graph.node, *(node for function in model.functions for node in function.node)])
    left = {node.domain for node in used}
    del work.opset_import[:]
    work.opset_import.extend(e for e in model.opset_import if e.domain not in DOMAINS or e.domain in left)
    return work


class _Writer:
    """Writes standard operators.

    Attributes:
        draft: of the new graph.
    """

    def __init__(self, view: GraphView) -> None:
        self.draft = Draft(view)
        self._view = view
        self._made = self._name = ""
        self._dtype = np.dtype(np.float32)

    def write(self, node: onnx.NodeProto) -> bool:
        """Write what a node computes, if it is an operator of QONNX that can be written."""
        if len(node.input) not in _INPUTS.get(node.op_type, ()) or not node.output:
            return False
        self._made, self._name = node.output[0], node.name
        scale = self._view.constant(node.input[1])
        self._dtype = np.dtype(np.float32) if scale is None or scale.dtype.kind != "f" else scale.dtype
        if node.op_type == "BipolarQuant":
            self._add("Mul", self._signs(node.input[0]), node.input[1], last=True)
            return True
        given = attributes(node)
        mode = given.get("rounding_mode", b"FLOOR" if node.op_type == "Trunc" else b"ROUND")
        rounding = _ROUNDINGS.get(mode.decode().upper()) if isinstance(mode, bytes) else None
        if rounding is None:
            return False
        write = self._trunc if node.op_type == "Trunc" else self._quant
        return write(node, rounding, bool(given.get("signed", 1)), bool(given.get("narrow", 0)))

    def _quant(self, node: onnx.NodeProto, rounding: _Rounding, signed: bool, narrow: bool) -> bool:
        x, scale, zero, width = node.input
        bits = self._number(width)
        if bits is None:
            return False
        low, high = _range(bits, signed, narrow)
        if signed and bits == 1:
            counted = self._signs(self._in_units(x, scale, zero))
        elif rounding.op == "Round" and self._pair(node, low, high):
            return True
        else:
            counted = self._round(self._clip(self._in_units(x, scale, zero), low, high), rounding)
        self._add("Mul", self._add("Sub", counted, zero), scale, last=True)
        return True

    def _pair(self, node: onnx.NodeProto, low: float, high: float) -> bool:
        """Write QuantizeLinear and DequantizeLinear, with a Clip between them for less than their type holds."""
        scale, zero = self._number(node.input[1]), self._number(node.input[2])
        constant = self._view.constant(node.input[0]) is not None or self._dtype != np.float32
        kind = np.int8 if low < 0 else np.uint8
        held = np.iinfo(kind)
        if constant or scale is None or zero is None or not scale > 0:
            return False
        if not all(value.is_integer() and held.min <= value <= held.max for value in (low, high, zero)):
            return False
        units = self._constant(scale), self._constant(zero, kind)
        counted = self._add("QuantizeLinear", node.input[0], *units, name=self._name)
        if (low, high) != (held.min, held.max):
            counted = self._add("Clip", counted, self._constant(low, kind), self._constant(high, kind))
        self._add("DequantizeLinear", counted, *units, last=True, name=f"{self._made}/DequantizeLinear")
        return True

    def _trunc(self, node: onnx.NodeProto, rounding: _Rounding, signed: bool, narrow: bool) -> bool:
        x, scale, zero, before, *made, after = node.input
        bits = self._number(after)
        if bits is None:
            return False
        if made:
            before_scale, made_scale = self._view.constant(scale), self._view.constant(made[0])
            if before_scale is None or made_scale is None:
                return False
            factor = np.exp2(np.round(np.log2(made_scale / before_scale)))
        else:  # the first version of the operator
            dropped = self._number(before)
            if dropped is None:
                return False
            factor = np.exp2(dropped - bits)
        unit = self._constant(factor)
        counted = self._add("Div", self._round(self._in_units(x, scale, zero), _ROUNDINGS["ROUND"]), unit)
        if made:
            counted = self._clip(counted, *_range(bits, signed, narrow))
            zero = self._add("Div", zero, unit)
        shifted = self._add("Sub", self._round(counted, rounding), zero)
        self._add("Mul", shifted, made[0] if made else scale, last=True)
        return True

    def _in_units(self, x: str, scale: str, zero: str) -> str:
        return self._add("Add", self._add("Div", x, scale), zero)

    def _signs(self, x: str) -> str:
        """1 where x >= 0, and -1 elsewhere."""
        negative = self._add("Less", x, self._constant(0))
        return self._add("Where", negative, self._constant(-1), self._constant(1))

    def _clip(self, x: str, low: float, high: float) -> str:
        return self._add("Clip", x, self._constant(low), self._constant(high))

    def _round(self, x: str, rounding: _Rounding) -> str:
        size = self._add("Abs", x) if rounding.by_size else x
        if rounding.shift:
            size = self._add("Add", size, self._constant(rounding.shift))
        rounded = self._add(rounding.op, size)
        return self._add("Mul", self._add("Sign", x), rounded) if rounding.by_size else rounded

    def _number(self, name: str) -> float | None:
        """A constant of one number, or None."""
        value = self._view.constant(name)
        return float(value.item()) if value is not None and value.size == 1 else None

    def _add(self, op: str, *inputs: str, last: bool = False, name: str = "") -> str:
        """A node, and the name of what it makes; the last one has the names that the node it stands for had."""
        made = self._made if last else self.draft.names.claim(f"{self._made}/{op}")
        return self.draft.add(op, list(inputs), made, name or (self._name if last else ""))

    def _constant(self, value: np.ndarray | float, kind: type[np.generic] | None = None) -> str:
        """A new constant, of the type that the numbers of the node have if no other is given."""
        return self.draft.constant(np.asarray(value, kind or self._dtype), f"{self._made}/number")


def _range(bits: float, signed: bool, narrow: bool) -> tuple[float, float]:
    """The least and the largest integer of so many bits; a narrow range has one less."""
    if signed:
        return float(narrow) - 2 ** (bits - 1), 2 ** (bits - 1) - 1
    return 0.0, 2**bits - 1 - narrow

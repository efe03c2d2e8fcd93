"""The class of every node that is not an activation, decided in one table.

A tensor is *temporal* if it depends on spikes. A node is

* *static* if nothing it reads is temporal, or if it reads no more than the shape of what is: computed once;
* *linear* if it is an affine map of its temporal inputs: applied at every step, since the mean of the outputs is then
  the output of the mean;
* *rate-exact* otherwise: applied to the running mean of its inputs, f(cum[t]/(t+1)), so that after every step the mean
  of its outputs equals f of the mean of its inputs;
* *site* if it is an activation that becomes neurons.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import onnx

from ftbc_onnx.graph.view import GraphView, attributes


class NodeClass(str, Enum):
    """What becomes of a node."""

    STATIC = "static"
    LINEAR = "linear"
    RATE_EXACT = "rate-exact"
    SITE = "site"


@dataclass(frozen=True)
class Linear:
    """When an operator is affine in its temporal inputs.

    Attributes:
        inputs: positions that may be temporal; None: every one.
        one: positions of which at most one may be temporal (the factors of a product).
    """

    inputs: tuple[int, ...] | None = None
    one: tuple[int, ...] = ()


_FIRST = Linear(inputs=(0,))
_ANY = Linear()

_AFFINE_IN_FIRST = """
    AveragePool BatchNormalization Cast CenterCropPad Col2Im Conv ConvTranspose CumSum DepthToSpace Div Dropout Expand
    Flatten Gather GatherElements GatherND GlobalAveragePool GridSample Pad ReduceMean ReduceSum Reshape Resize
    ReverseSequence Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Upsample
"""

LINEAR: dict[str, Linear] = {
    **dict.fromkeys(("Add", "Concat", "Identity", "Mean", "Neg", "Sub", "Sum"), _ANY),
    **dict.fromkeys(_AFFINE_IN_FIRST.split(), _FIRST),
    "Gemm": Linear(one=(0, 1)),
    "MatMul": Linear(one=(0, 1)),
    "Mul": Linear(one=(0, 1)),
    "Where": Linear(inputs=(1, 2)),
}

SHAPE_ONLY = {"Shape", "Size"}
"""Operators that read no more than the shape of their input."""

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
"""Linear operators with weights: what they read should be spikes."""

_ACTIVATIONS = """
    Celu Clip Elu Erf Gelu HardSigmoid HardSwish LeakyRelu Max Min Mish PRelu Selu Shrink Sigmoid Softplus Softsign
    Swish Tanh ThresholdedRelu
"""
ACTIVATIONS = frozenset(_ACTIVATIONS.split())
"""Activations that are no rectifiers (Clip, Max and Min where they are none): spikes start behind them, too."""

_MAXIMA = "MaxPool GlobalMaxPool ReduceMax ReduceMin Max Min Relu Clip Abs"
MAXIMA = frozenset(_MAXIMA.split())
"""Rate-exact operators whose result is read as it is: of what they read they pick, and make nothing new."""

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}


def classify(view: GraphView, node: onnx.NodeProto, temporal: set[str]) -> NodeClass:
    """The class of a node that is no site, given the temporal tensors before it."""
    positions = [i for i, name in enumerate(node.input) if name in temporal]
    if not positions or node.op_type in SHAPE_ONLY:
        return NodeClass.STATIC
    rule = LINEAR.get(node.op_type)
    floats = all(view.is_float(node.input[i]) for i in positions) and all(
        view.is_float(name) for name in node.output if name
    )
    if rule is None or not floats or not _keeps_linear(node) or is_last_cast(view, node):
        return NodeClass.RATE_EXACT
    allowed = rule.inputs is None or set(positions) <= set(rule.inputs)
    single = sum(i in rule.one for i in positions) <= 1
    return NodeClass.LINEAR if allowed and single else NodeClass.RATE_EXACT


def is_last_cast(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node only makes an output of less precision: steps are summed before it, not in float16."""
    if node.op_type != "Cast" or node.output[0] not in view.output_names or node.output[0] in view.consumers:
        return False
    kinds = [view.elem_type(name) for name in (node.input[0], node.output[0])]
    if not all(kinds) or not (view.is_float(node.input[0]) and view.is_float(node.output[0])):
        return False
    before, after = (onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize for kind in kinds)
    return bool(before > after)


def _keeps_linear(node: onnx.NodeProto) -> bool:
    """Attributes that take an operator out of the linear ones."""
    values = attributes(node)
    return not (node.op_type == "Dropout" and len(node.output) > 1 and bool(node.output[1])) and not values.get(
        "training_mode", 0
    )

"""A node of the normalised ANN as a layer without time: weights, a pool, a sum; what other formats have words for.

| Layer | Nodes |
| --- | --- |
| `Weighted` | Conv (2-D), Gemm, MatMul with constant weights |
| `Pool` | AveragePool, GlobalAveragePool, ReduceMean over the image |
| `Flat` | Flatten, Reshape or Squeeze of [N, C, H, W] to [N, C*H*W] |
| `Sum` | Add or Sum of tensors |
| `Shifted` | Add of a tensor and a constant per channel; Identity and its like (shift 0) |

Tensors are [N, C] or [N, C, H, W] of known sizes. Everything else is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ftbc_onnx.graph.view import GraphView, attributes

Pair = tuple[int, int]


class Unsayable(Exception):  # noqa: N818 - it is caught and listed, no error of the program
    """A node is none of these layers; the message says why."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """y = W x + b; W is [O, I] or, with windows, [O, I/groups, kh, kw]; b is [O]."""

    source: str
    weight: np.ndarray
    bias: np.ndarray
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class Pool:
    """The mean of every window; padding counts as zeros."""

    source: str
    kernel: Pair
    stride: Pair
    padding: Pair
    flat: bool = False
    """Whether the axes of the image, of size 1, are dropped."""


@dataclass(frozen=True)
class Flat:
    """[N, C, H, W] as [N, C*H*W]."""

    source: str


@dataclass(frozen=True)
class Sum:
    """The sum of several tensors of one shape."""

    sources: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Shifted:
    """y = x + shift; shift is [C]."""

    source: str
    shift: np.ndarray


Layer = Weighted | Pool | Flat | Sum | Shifted


def sources_of(layer: Layer) -> tuple[str, ...]:
    """The tensors that a layer reads."""
    return layer.sources if isinstance(layer, Sum) else (layer.source,)


def sizes(view: GraphView, tensor: str) -> tuple[int, ...]:
    """Shape of a tensor without its batch: (C,) or (C, H, W).

    Raises:
        Unsayable: it is not known, not fixed, or has another number of axes.
    """
    shape = view.shape(tensor)
    if shape is None:
        raise Unsayable(f"the shape of '{tensor}' is not known")
    fixed = tuple(size for size in shape[1:] if isinstance(size, int))
    if len(shape) not in (2, 4):
        raise Unsayable(f"'{tensor}' has {len(shape)} axes: only [N, C] and [N, C, H, W] are written")
    if len(fixed) + 1 != len(shape):
        raise Unsayable(f"'{tensor}' has no fixed size ({', '.join(map(str, shape))}): export the ANN with one")
    return fixed


def layer_of(view: GraphView, node: onnx.NodeProto) -> Layer:
    """The layer that a node is.

    Raises:
        Unsayable: it is none, and why.
    """
    make = _LAYERS.get(node.op_type) if not node.domain else None
    if make is None:
        raise Unsayable("no layer of weights, mean pool, sum or flattening")
    layer = make(view, node)
    for name in sources_of(layer):
        sizes(view, name)
    return layer


def _constant(view: GraphView, node: onnx.NodeProto, position: int, what: str) -> np.ndarray:
    value = view.constant(node.input[position]) if len(node.input) > position else None
    if value is None:
        raise Unsayable(f"its {what} are not constant")
    return value


def _pads(values: dict[str, object], spatial: tuple[int, ...], kernel: Pair, stride: Pair, dilation: Pair) -> Pair:
    """Zeros on each side of H and W, which must be as many before as behind."""
    mode = values.get("auto_pad", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(spatial, kernel, stride, dilation, strict=True)
        ]
        before = [total // 2 for total in totals]
        behind = [total - half for total, half in zip(totals, before, strict=True)]
    elif mode == b"VALID":
        before = behind = [0, 0]
    else:
        pads = [int(p) for p in values.get("pads", (0, 0, 0, 0))]  # type: ignore[attr-defined]
        before, behind = pads[:2], pads[2:]
    if before != behind:
        raise Unsayable(f"its padding is not symmetric ({before} before, {behind} behind)")
    return before[0], before[1]


def _pair(values: dict[str, object], name: str) -> Pair:
    found: Sequence[int] = values.get(name, (1, 1))  # type: ignore[assignment]
    return int(found[0]), int(found[1])


def _conv(view: GraphView, node: onnx.NodeProto) -> Layer:
    weight = _constant(view, node, 1, "weights")
    if weight.ndim != 4:
        raise Unsayable(f"a convolution over {weight.ndim - 2} axes: only those over 2 are written")
    bias = _constant(view, node, 2, "biases") if len(node.input) > 2 and node.input[2] else np.zeros(len(weight))
    values = attributes(node)
    stride, dilation = _pair(values, "strides"), _pair(values, "dilations")
    kernel = (weight.shape[2], weight.shape[3])
    padding = _pads(values, sizes(view, node.input[0])[1:], kernel, stride, dilation)
    return Weighted(node.input[0], weight, bias, stride, padding, dilation, int(values.get("group", 1)))  # type: ignore[call-overload]


def _gemm(view: GraphView, node: onnx.NodeProto) -> Layer:
    values = attributes(node)
    if values.get("transA", 0):
        raise Unsayable("its input is transposed")
    weight = _constant(view, node, 1, "weights").astype(np.float64)
    weight = float(values.get("alpha", 1.0)) * (weight if values.get("transB", 0) else weight.T)  # type: ignore[arg-type]
    bias = np.zeros(len(weight))
    if len(node.input) > 2 and node.input[2]:
        added = _per_channel(_constant(view, node, 2, "biases"), 2, len(weight))
        bias = float(values.get("beta", 1.0)) * added  # type: ignore[arg-type]
    return Weighted(node.input[0], weight, bias)


def _matmul(view: GraphView, node: onnx.NodeProto) -> Layer:
    weight = _constant(view, node, 1, "weights")
    if weight.ndim != 2 or len(sizes(view, node.input[0])) != 1:
        raise Unsayable("a product of other than [N, C] and a matrix")
    return Weighted(node.input[0], weight.T, np.zeros(weight.shape[1]))


def _average_pool(view: GraphView, node: onnx.NodeProto) -> Layer:
    values = attributes(node)
    spatial = sizes(view, node.input[0])[1:]
    if len(spatial) != 2:
        raise Unsayable("a pool over other than [N, C, H, W]")
    kernel, stride = _pair(values, "kernel_shape"), _pair(values, "strides")
    if _pair(values, "dilations") != (1, 1):
        raise Unsayable("a pool with dilations")
    padding = _pads(values, spatial, kernel, stride, (1, 1))
    if any(padding) and not values.get("count_include_pad", 0):
        raise Unsayable("its mean leaves out the padding (count_include_pad = 0)")
    size = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(spatial, padding, kernel, stride, strict=True))
    if size != sizes(view, node.output[0])[1:]:
        raise Unsayable("its size is rounded up (ceil_mode)")
    return Pool(node.input[0], kernel, stride, padding)


def _whole_image(view: GraphView, node: onnx.NodeProto) -> Layer:
    values, size = attributes(node), sizes(view, node.input[0])
    if len(size) != 3:
        raise Unsayable("a mean over other than [N, C, H, W]")
    image = (size[1], size[2])
    if node.op_type == "ReduceMean":
        axes = values.get("axes")
        if axes is None:
            axes = _constant(view, node, 1, "axes").tolist()
        if sorted(int(axis) % 4 for axis in axes) != [2, 3]:  # type: ignore[attr-defined]
            raise Unsayable("a mean over other axes than H and W")
    flat = node.op_type == "ReduceMean" and not values.get("keepdims", 1)
    return Pool(node.input[0], image, image, (0, 0), flat)


def _reshape(view: GraphView, node: onnx.NodeProto) -> Layer:
    before, after = sizes(view, node.input[0]), sizes(view, node.output[0])
    if before == after:
        return Shifted(node.input[0], np.zeros(before[0]))
    if len(after) == 1 and int(np.prod(before)) == after[0]:
        return Flat(node.input[0])
    raise Unsayable(f"it changes the shape from {list(before)} to {list(after)}")


def _sum(view: GraphView, node: onnx.NodeProto) -> Layer:
    tensors = [name for name in node.input if view.constant(name) is None]
    after = sizes(view, node.output[0])
    if any(sizes(view, name) != after for name in tensors):
        raise Unsayable("a sum of tensors of different shapes")
    if len(tensors) == len(node.input):
        return Sum(tuple(tensors))
    if len(tensors) != 1:
        raise Unsayable("a sum of several tensors and constants")
    shift = np.zeros(after[0])
    for name in node.input:
        value = view.constant(name)
        if value is not None:
            shift = shift + _per_channel(value, len(after) + 1, after[0])
    return Shifted(tensors[0], shift)


def _same(view: GraphView, node: onnx.NodeProto) -> Layer:
    return Shifted(node.input[0], np.zeros(sizes(view, node.input[0])[0]))


def _per_channel(value: np.ndarray, rank: int, channels: int) -> np.ndarray:
    """A constant that broadcasts against a tensor of some rank as one number per channel, [C]."""
    padded = value.reshape((1,) * (rank - value.ndim) + value.shape) if value.ndim <= rank else value
    shape = tuple(size for axis, size in enumerate(padded.shape) if axis != 1)
    if padded.ndim != rank or any(size != 1 for size in shape) or padded.shape[1] not in (1, channels):
        raise Unsayable(f"a constant of shape {list(value.shape)} is not one number per channel")
    return np.broadcast_to(padded.reshape(-1), (channels,)).astype(np.float64)


_LAYERS = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _whole_image,
    "ReduceMean": _whole_image,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Add": _sum,
    "Sum": _sum,
    "Identity": _same,
    "Dropout": _same,
}

"""A node of the normalised ANN as a layer without time: weights, a pool, a sum; what other formats have words for.

| Layer | Nodes |
| --- | --- |
| `Weighted` | Conv (2-D), Gemm, MatMul with constant weights; Slice and Pad, whose weights are 0 and 1 |
| `Pool` | AveragePool, GlobalAveragePool, ReduceMean over the image |
| `Flat` | Flatten, Reshape or Squeeze of [N, C, H, W] to [N, C*H*W] |
| `Sum` | Add or Sum of tensors |
| `Joined` | Concat of channels, as a sum of layers with weights 0 and 1 |
| `Shifted` | Add of a tensor and a constant per channel; Identity and its like (shift 0) |

Padding that is not symmetric is made so, with zeros in the kernel. Before a, behind b, a < b:

    pad (a, b), kernel w      becomes      pad (b, b), kernel (0 b-a times, w)

and kernels are made square, by as many zeros on both sides as the padding grows by (nir 1.0.8 takes every kernel for a
square one when it looks at shapes).

Tensors are [N, C] or [N, C, H, W] of known sizes. Everything else is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ftbc_onnx.graph.slices import taken
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


@dataclass(frozen=True)
class Joined:
    """The sum of several layers, each of which makes some of the channels."""

    parts: tuple[Weighted, ...]


@dataclass(frozen=True, eq=False)
class Shifted:
    """y = x + shift; shift is [C]."""

    source: str
    shift: np.ndarray


Layer = Weighted | Pool | Flat | Sum | Joined | Shifted


def sources_of(layer: Layer) -> tuple[str, ...]:
    """The tensors that a layer reads."""
    if isinstance(layer, Joined):
        return tuple(part.source for part in layer.parts)
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


def _pads(
    values: dict[str, object], spatial: tuple[int, ...], kernel: Pair, stride: Pair, dilation: Pair
) -> tuple[list[int], list[int]]:
    """Zeros before and behind, for H and W."""
    mode = values.get("auto_pad", b"NOTSET")
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(spatial, kernel, stride, dilation, strict=True)
        ]
        before = [(total + (mode == b"SAME_LOWER")) // 2 for total in totals]
        behind = [total - half for total, half in zip(totals, before, strict=True)]
    elif mode == b"VALID":
        before = behind = [0, 0]
    else:
        pads = [int(p) for p in values.get("pads", (0, 0, 0, 0))]  # type: ignore[attr-defined]
        before, behind = pads[:2], pads[2:]
    return before, behind


def _regular(weight: np.ndarray, before: list[int], behind: list[int], dilation: Pair) -> tuple[np.ndarray, Pair]:
    """The same convolution with as much padding before as behind and a square kernel: kernel and padding.

    Both by zeros in the kernel, as in the module's docstring.
    """
    said = f"its padding ({before} before, {behind} behind)"
    if min(*before, *behind) < 0:
        raise Unsayable(f"{said} is negative")
    if any((b - a) % step for a, b, step in zip(before, behind, dilation, strict=True)):
        raise Unsayable(f"{said} is not symmetric, and its kernel dilated")
    front = [max(b - a, 0) // step for a, b, step in zip(before, behind, dilation, strict=True)]
    back = [max(a - b, 0) // step for a, b, step in zip(before, behind, dilation, strict=True)]
    padding = [max(a, b) for a, b in zip(before, behind, strict=True)]
    size = [weight.shape[2 + i] + front[i] + back[i] for i in range(2)]
    for i in range(2):
        missing = max(size) - size[i]
        if missing % 2:
            raise Unsayable(f"its kernel, {size[0]} x {size[1]} with {said}, cannot be made square")
        front[i], back[i] = front[i] + missing // 2, back[i] + missing // 2
        padding[i] += missing // 2 * dilation[i]
    return np.pad(weight, [(0, 0), (0, 0), *zip(front, back, strict=True)]), (padding[0], padding[1])


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
    before, behind = _pads(values, sizes(view, node.input[0])[1:], kernel, stride, dilation)
    weight, padding = _regular(weight, before, behind, dilation)
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
    before, behind = _pads(values, spatial, kernel, stride, (1, 1))
    if before != behind:
        raise Unsayable(f"its padding is not symmetric ({before} before, {behind} behind)")
    padding = (before[0], before[1])
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


def _slice(view: GraphView, node: onnx.NodeProto) -> Layer:
    """Channels are picked by weights of 1; of the image, every so many pixels from the first one on, by stride."""
    before, after = sizes(view, node.input[0]), sizes(view, node.output[0])
    starts, ends = (_constant(view, node, i, "bounds").tolist() for i in (1, 2))
    axes = _constant(view, node, 3, "axes").tolist() if len(node.input) > 3 and node.input[3] else range(len(starts))
    steps = _constant(view, node, 4, "steps").tolist() if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    picked = [range(size) for size in before]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if axis % (len(before) + 1) == 0:
            raise Unsayable("it takes some of the samples of a batch")
        position = axis % (len(before) + 1) - 1
        picked[position] = picked[position][taken(len(picked[position]), start, end, step)]
    weight = np.zeros((after[0], before[0], *(rows.start + 1 for rows in picked[1:])))
    for made, channel in enumerate(picked[0]):
        weight[(made, channel, *(-1 for _ in picked[1:]))] = 1
    if len(before) == 1:
        return Weighted(node.input[0], weight, np.zeros(after[0]))
    down, across = picked[1], picked[2]
    whole = tuple(range(rows.start, size, max(rows.step, 1)) for rows, size in zip(picked[1:], before[1:], strict=True))
    if (down, across) != whole:
        raise Unsayable("it cuts the image behind, or turns it around")
    weight, padding = _regular(weight, [0, 0], [0, 0], (1, 1))
    return Weighted(node.input[0], weight, np.zeros(after[0]), (down.step, across.step), padding)


def _pad(view: GraphView, node: onnx.NodeProto) -> Layer:
    """Channels of zeros by weights of 0, pixels by padding."""
    before, after = sizes(view, node.input[0]), sizes(view, node.output[0])
    value = view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    zero = len(node.input) < 3 or not node.input[2] or (value is not None and not value.any())
    if attributes(node).get("mode", b"constant") != b"constant" or not zero or any(node.input[3:]):
        raise Unsayable("it pads with other than zeros, or some axes only")
    pads = _constant(view, node, 1, "pads").tolist()
    low, high = pads[: len(before) + 1], pads[len(before) + 1 :]
    if low[0] or high[0] or low[1] < 0 or high[1] < 0:
        raise Unsayable("it pads the batch, or takes channels away")
    weight = np.eye(after[0], before[0], -low[1]).reshape(after[0], before[0], *(1 for _ in before[1:]))
    if len(before) == 1:
        return Weighted(node.input[0], weight, np.zeros(after[0]))
    weight, padding = _regular(weight, low[2:], high[2:], (1, 1))
    return Weighted(node.input[0], weight, np.zeros(after[0]), (1, 1), padding)


def _concat(view: GraphView, node: onnx.NodeProto) -> Layer:
    made = sizes(view, node.output[0])
    if attributes(node)["axis"] not in (1, -len(made)):
        raise Unsayable("it joins along another axis than the channels'")
    parts, first = [], 0
    for name in node.input:
        if view.constant(name) is not None:
            raise Unsayable("it joins a constant")
        channels = sizes(view, name)[0]
        weight = np.eye(made[0], channels, -first).reshape(made[0], channels, *(1 for _ in made[1:]))
        parts.append(Weighted(name, weight, np.zeros(made[0])))
        first += channels
    return Joined(tuple(parts))


def _same(view: GraphView, node: onnx.NodeProto) -> Layer:
    return Shifted(node.input[0], np.zeros(sizes(view, node.input[0])[0]))


def _cast(view: GraphView, node: onnx.NodeProto) -> Layer:
    if not (view.is_float(node.input[0]) and view.is_float(node.output[0])):
        raise Unsayable("it casts from or to what is no float")
    return _same(view, node)


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
    "Slice": _slice,
    "Pad": _pad,
    "Concat": _concat,
    "Identity": _same,
    "Dropout": _same,
    "Cast": _cast,
}

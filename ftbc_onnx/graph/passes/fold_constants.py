"""Compute what depends on constants only.

Before: y = f(c1, c2, ...) with every input constant, or Shape of a tensor whose axes are all known, or Gather or Slice
of the known part of a Shape. After: y is an initializer. ONNX's reference operators do the computing.

Left alone: random ops, control flow, and results that would make the file much larger than their inputs do (but for
weights that were quantised).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx.reference import ReferenceEvaluator

from ftbc_onnx.graph.passes.surgery import constant_value, producer, replace_uses
from ftbc_onnx.graph.slices import taken

_LEFT_ALONE = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Resize",  # the reference computes these otherwise than onnxruntime
    "LRN",
    "LpNormalization",
    "LpPool",
    "If",
    "Loop",
    "Scan",
}
_FIRST_REFERENCE = {"DequantizeLinear": 21, "QuantizeLinear": 21}
"""Operators whose reference begins with a later opset, which means the same by them as those before."""

_LARGE = 1 << 20  # bytes: a folded result larger than this must not be larger than its inputs


def fold_constants(graph: gs.Graph) -> int:
    """Replace constant outputs by initializers; returns the number of nodes folded."""
    graph.toposort()
    count = 0
    for node in list(graph.nodes):
        if node.domain not in (None, "", "ai.onnx") or node.op in _LEFT_ALONE or not node.outputs:
            continue
        values = _evaluate(graph, node)
        if values is None:
            continue
        outputs = list(node.outputs)
        if any(output is kept for output in outputs for kept in graph.outputs):
            continue
        node.outputs.clear()
        node.inputs.clear()
        for output, value in zip(outputs, values, strict=True):
            replace_uses(graph, output, gs.Constant(output.name, value))
        count += 1
    graph.cleanup(recurse_subgraphs=False)
    return count


def _evaluate(graph: gs.Graph, node: gs.Node) -> list[np.ndarray] | None:
    if node.op == "Constant":
        return _constant_node(node)
    known = _known_shape_part(node)
    if known is not None:
        return [known]
    named = [tensor for tensor in node.inputs if tensor.name]
    if not named or not all(isinstance(tensor, gs.Constant) for tensor in named):
        return None
    return None if node.op == "Slice" and _before_the_first(node) else _run(graph, node)


def _before_the_first(node: gs.Node) -> bool:
    """Whether a Slice goes backwards from before the first entry, which the reference takes for none."""
    data, starts, _, axes, steps = (*map(constant_value, node.inputs), None, None)[:5]
    if data is None or starts is None or steps is None:
        return False
    places = range(len(starts)) if axes is None else axes
    sizes = (data.shape[int(axis)] for axis in places)
    return any(step < 0 and start < -size for start, size, step in zip(starts, sizes, steps, strict=True))


def _constant_node(node: gs.Node) -> list[np.ndarray] | None:
    for key, dtype in (
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if key in node.attrs:
            return [np.array(node.attrs[key], dtype=dtype)]
    value = node.attrs.get("value")
    return [np.asarray(value.values)] if isinstance(value, gs.Constant) else None


def _known_shape_part(node: gs.Node) -> np.ndarray | None:
    """Value of Shape(x), or of Gather or Slice of Shape(x), where the axes it takes are known numbers."""
    if node.op == "Shape":
        dims = _shape_entries(node)
        return None if dims is None or not all(_number(d) for d in dims) else np.array(dims, dtype=np.int64)
    if node.op not in ("Gather", "Slice") or not node.inputs:
        return None
    maker = producer(node.inputs[0])
    dims = _shape_entries(maker) if maker is not None and maker.op == "Shape" else None
    others = [constant_value(tensor) for tensor in node.inputs[1:]]
    if dims is None or any(value is None for value, tensor in zip(others, node.inputs[1:], strict=True) if tensor.name):
        return None
    entries = np.array([d if _number(d) else -1 for d in dims], dtype=np.int64)
    if node.op == "Gather":
        part = np.asarray(entries[np.asarray(others[0]).astype(np.int64)])
    else:
        start, end, _, step = (None if value is None else int(value.flat[0]) for value in (*others, None, None)[:4])
        assert start is not None
        assert end is not None
        part = entries[taken(len(entries), start, end, 1 if step is None else step)]
    return None if np.any(part < 0) else part


def _shape_entries(node: gs.Node) -> list[object] | None:
    shape = node.inputs[0].shape
    if shape is None:
        return None
    return list(shape)[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]


def _number(dim: object) -> bool:
    return isinstance(dim, int | np.integer) and not isinstance(dim, bool)


def _run(graph: gs.Graph, node: gs.Node) -> list[np.ndarray] | None:
    inputs = [constant_value(tensor) for tensor in node.inputs if tensor.name]
    clone = gs.Node(node.op, name="folded", attrs=dict(node.attrs), inputs=list(node.inputs))
    clone.outputs = [gs.Variable(tensor.name, dtype=tensor.dtype) for tensor in node.outputs]
    opset = max(graph.opset, _FIRST_REFERENCE.get(node.op, 0))
    single = gs.Graph(nodes=[clone], outputs=list(clone.outputs), opset=opset)
    try:
        model = gs.export_onnx(single, do_type_check=False)
        model.ir_version = min(model.ir_version, onnx.IR_VERSION)
        values = [np.asarray(value) for value in ReferenceEvaluator(model).run(None, {})]
    except Exception:  # whatever the reference cannot compute stays in the graph
        return None
    finally:
        clone.inputs.clear()
    size, budget = sum(v.nbytes for v in values), sum(v.nbytes for v in inputs if v is not None)
    weights = node.op == "DequantizeLinear"  # layers want them as numbers, and 4 or 8 times as many bytes are fine
    return values if weights or size <= max(_LARGE, budget) else None

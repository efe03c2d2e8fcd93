"""Pool before rectifying, so that spikes are never pooled.

MaxPool of spikes is not MaxPool of rates, but a rectifier is monotone and acts on each element alone, so

1. MaxPool(f(x)) = f(MaxPool(x)), f a Relu, a Clip, or Max or Min with a single number;
2. MaxPool(Concat(f(a), g(b), ...)) = Concat(MaxPool(f(a)), MaxPool(g(b)), ...) for a Concat of channels (axis 1),
   to which case 1 then applies,

to the last bit, where the rectifier (and the Concat) are read by nothing else. MaxPool pads with what never wins, so
padding changes nothing. The same holds for GlobalMaxPool. A MaxPool whose indices are read is left alone.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from ftbc_onnx.graph.passes.merge_clips import bounds_of
from ftbc_onnx.graph.passes.surgery import producer, sole_consumer

MAX_POOLS = ("MaxPool", "GlobalMaxPool")


def pool_first(graph: gs.Graph) -> int:
    """Apply to every max pooling; returns the number of places changed."""
    count = 0
    for pool in [node for node in graph.nodes if node.op in MAX_POOLS and len(node.outputs) == 1]:
        maker = producer(pool.inputs[0])
        if maker is None or sole_consumer(graph, maker.outputs[0]) is not pool or _may_see_nothing(pool):
            continue
        if bounds_of(maker) is not None:
            _swap(maker, pool)
            count += 1
        elif maker.op == "Concat" and maker.attrs.get("axis") == 1 and _all_rectified(graph, maker):
            _pool_each(graph, maker, pool)
            count += 1
    graph.cleanup(recurse_subgraphs=False).toposort()
    return count


def _may_see_nothing(pool: gs.Node) -> bool:
    """Whether a window may lie between the values, in the padding: its maximum is none that a rectifier makes."""
    return any(side > 1 for side in pool.attrs.get("dilations", ())) and any(pool.attrs.get("pads", ()))


def _swap(rectifier: gs.Node, pool: gs.Node) -> None:
    """Case 1: f then pool becomes pool then f; both keep their names, and the last tensor its name."""
    position = 1 if isinstance(rectifier.inputs[0], gs.Constant) else 0
    data, between, last = rectifier.inputs[position], rectifier.outputs[0], pool.outputs[0]
    pooled = gs.Variable(f"{between.name}/pooled", dtype=between.dtype)
    pool.inputs[0] = data
    pool.outputs[0] = pooled
    rectifier.inputs[position] = pooled
    rectifier.outputs[0] = last


def _all_rectified(graph: gs.Graph, concat: gs.Node) -> bool:
    makers = [producer(tensor) for tensor in concat.inputs]
    return all(
        maker is not None and bounds_of(maker) is not None and sole_consumer(graph, maker.outputs[0]) is concat
        for maker in makers
    )


def _pool_each(graph: gs.Graph, concat: gs.Node, pool: gs.Node) -> None:
    """Case 2: one pool per branch."""
    last = pool.outputs[0]
    for position, tensor in enumerate(list(concat.inputs)):
        pooled = gs.Variable(f"{tensor.name}/pooled_{position}", dtype=tensor.dtype)
        name = f"{pool.name}/{position}"
        graph.nodes.append(gs.Node(pool.op, name=name, attrs=dict(pool.attrs), inputs=[tensor], outputs=[pooled]))
        concat.inputs[position] = pooled
    pool.inputs.clear()
    pool.outputs.clear()
    concat.outputs[0] = last

"""Builds an ONNX graph node by node: unique readable names, shared constants, differences between opsets.

Nodes of the source are copied as protobuf messages, so that every attribute and weight stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.classes import WEIGHTED
from ftbc_onnx.graph.names import Names
from ftbc_onnx.graph.view import Shape, all_nodes, node_inputs
from ftbc_onnx.graph.weights import add_initializers, tensor_bytes

_INSIDE = 1 << 29
"""Bytes of weights that the body of a Loop may hold."""


_LOOKED_UP = ("spikes", "events")
"""Names under which tensors are found in an emitted model: they are made even where nothing is computed."""


class GraphBuilder:
    """Collects nodes and initializers; also the `Sink` that neurons and rules write into."""

    def __init__(self, opset: int) -> None:
        """Start an empty graph for a version of the default domain."""
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._names = Names()
        self._promised: set[str] = set()
        self._avoided: set[str] = set()
        self._node_names = Names()
        self._neutral: dict[str, tuple[str, ...]] = {}
        self._scope = ""

    @classmethod
    def on(cls, model: onnx.ModelProto) -> GraphBuilder:
        """A builder of nodes to come behind those of `model` (see `extend`); the model's names are taken."""
        opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
        builder = cls(opset)
        graph = model.graph
        builder._names.update(value.name for value in [*graph.input, *graph.initializer])
        builder._names.update(name for node in graph.node for name in node.output)
        builder._node_names.update(node.name for node in graph.node)
        return builder

    # names

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Names made inside start with ``name/``."""
        outer, self._scope = self._scope, f"{name}/"
        try:
            yield
        finally:
            self._scope = outer

    def reserve(self, names: Iterable[str]) -> None:
        """Claim names that stay as they are in the source."""
        for name in names:
            if name in self._names:
                raise ModelError(f"the tensor name '{name}' is taken twice: rename it in the source model")
            self._names.add(name)

    def promise(self, names: Iterable[str]) -> None:
        """Claim names that `alias` gives later, but for those that are there already."""
        new = [name for name in names if name not in self._names]
        self._names.update(new)
        self._promised.update(new)

    def avoid(self, names: Iterable[str]) -> None:
        """Never make these names; they may be there more than once, in bodies of the source."""
        self._avoided.update(names)

    def unique(self, name: str) -> str:
        """`name`, or with a number behind it if it is taken; claims it."""
        return self._names.claim(name, self._avoided)

    def _node_name(self, name: str) -> str:
        return self._node_names.claim(name)

    # nodes

    def op(self, op_type: str, *inputs: str, out: str | None = None, **attrs: Any) -> str:
        """Append a node of the default domain with one output; returns the output's name."""
        if len(inputs) == 2 and op_type in self._neutral.get(inputs[1], ()):
            if out not in _LOOKED_UP:
                return inputs[0]
            op_type, inputs = "Identity", inputs[:1]
        return self.ops(op_type, inputs, [out or op_type.lower()], **attrs)[0]

    def skip(self, name: str, *op_types: str) -> None:
        """Write no node of these operators where `name` is the second operand: it is 1, or 0, and changes nothing."""
        self._neutral[name] = op_types

    def ops(self, op_type: str, inputs: Iterable[str], outs: Iterable[str], **attrs: Any) -> list[str]:
        """Append a node of the default domain with several outputs; returns their names."""
        names = [self.unique(self._scope + out) for out in outs]
        self._nodes.append(helper.make_node(op_type, list(inputs), names, name=self._node_name(names[0]), **attrs))
        return names

    def copy(self, node: onnx.NodeProto, rename: Mapping[str, str], suffix: str) -> dict[str, str]:
        """Append a copy of `node` with inputs renamed and outputs made new; returns old output -> new output."""
        clone = onnx.NodeProto()
        clone.CopyFrom(node)
        outputs = {name: self.unique(name + suffix) for name in node.output if name}
        for position, name in enumerate(node.input):
            clone.input[position] = rename.get(name, name)
        for position, name in enumerate(node.output):
            clone.output[position] = outputs.get(name, name)
        clone.name = self._node_name((node.name or node.op_type) + suffix)
        self._nodes.append(clone)
        return outputs

    def keep(self, node: onnx.NodeProto) -> None:
        """Append a source node as it is; its output names must be free."""
        self.reserve(name for name in node.output if name)
        self._node_names.add(node.name)
        self._nodes.append(node)

    def alias(self, x: str, name: str) -> None:
        """Make tensor `x` available under a name that is fixed from outside (a graph output)."""
        if name in self._promised:
            self._promised.discard(name)
        else:
            self.reserve([name])
        self._nodes.append(helper.make_node("Identity", [x], [name], name=self._node_name(f"{name}/identity")))

    def like(self, node: onnx.NodeProto, *inputs: str, without: Iterable[str] = ()) -> str:
        """Append a node with one output that has the operator and attributes of `node`, but for those named."""
        out = self.op(node.op_type, *inputs)
        self._nodes[-1].attribute.extend(a for a in node.attribute if a.name not in set(without))
        return out

    # constants

    def initializer(self, name: str, value: np.ndarray) -> str:
        """Add an initializer of exactly this name."""
        self.reserve([name])
        self._initializers[name] = numpy_helper.from_array(np.asarray(value, order="C"), name)
        return name

    def keep_initializer(self, tensor: onnx.TensorProto) -> None:
        """Add a source initializer as it is (external data references included)."""
        self.reserve([tensor.name])
        self._initializers[tensor.name] = tensor

    def constant(self, value: np.ndarray | float, name: str | None = None) -> str:
        """Name of an initializer holding `value` (float32 when a Python float); equal ones are shared."""
        array = np.asarray(value, dtype=np.float32) if isinstance(value, float) else np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            label = name or f"ftbc/{'_'.join(str(v) for v in array.reshape(-1)[:4])}"
            self._constants[key] = self.initializer(self.unique_free(label), array)
        return self._constants[key]

    def unique_free(self, name: str) -> str:
        """Like `unique`, but the name is left to be claimed by what is added under it."""
        found = self.unique(name)
        self._names.discard(found)
        return found

    def shape_of(self, name: str) -> tuple[int, ...] | None:
        """Shape of an initializer; None: it is something else."""
        return tuple(self._initializers[name].dims) if name in self._initializers else None

    def integers(self, *values: int) -> str:
        """Name of an initializer of shape [n], int64: axes, shapes, bounds."""
        return self.constant(np.array(values, dtype=np.int64))

    # operators whose form depends on the opset

    def mean(self, x: str, axes: tuple[int, ...] | None, out: str | None = None) -> str:
        """Mean over `axes`, kept with length 1; over everything, as shape [1], if None."""
        return self.reduce("ReduceMean", x, axes, out)

    def reduce(self, op_type: str, x: str, axes: tuple[int, ...] | None, out: str | None = None) -> str:
        """ReduceMean or ReduceMax (`axes` became an input at opset 18), shaped as `mean` says."""
        if axes is None:
            return self.reshape(self.op(op_type, x, keepdims=0), (1,), out=out)
        if self.opset >= 18:
            return self.op(op_type, x, self.constant(np.array(axes, dtype=np.int64)), out=out, keepdims=1)
        return self.op(op_type, x, out=out, axes=list(axes), keepdims=1)

    def split(self, x: str, parts: int, outs: Iterable[str]) -> list[str]:
        """Split along axis 0 into equal parts (`num_outputs` became necessary at opset 18)."""
        extra = {"num_outputs": parts} if self.opset >= 18 else {}
        return self.ops("Split", [x], outs, axis=0, **extra)

    def reshape(self, x: str, shape: tuple[int, ...], out: str | None = None) -> str:
        """Reshape to a constant shape."""
        return self.op("Reshape", x, self.constant(np.array(shape, dtype=np.int64)), out=out)

    def repeat(self, count: int, carried: Sequence[str], body: Callable[[Sequence[str]], Sequence[str]]) -> list[str]:
        """A Loop of `count` turns over float32 tensors; what `body` writes may read any tensor around it."""

        def write(turn: LoopBody) -> None:
            inside = [turn.carry(name, name) for name in carried]
            for name, after in zip(inside, body(inside), strict=True):
                turn.pass_on(name, after)

        return list(self.loop(count, write)[0].values())

    def loop(
        self,
        count: int | str,
        write: Callable[[LoopBody], None],
        name: str | None = None,
        begin: Callable[[Carried], tuple[str, int | None]] = lambda carried: (carried.start, None),
    ) -> tuple[dict[str, str], dict[str, str]]:
        """A Loop of `count` turns; what `write` writes may read any tensor around it.

        Args:
            count: how many, as a number or as the name of a tensor (int64, []).
            write: writes the body.
            name: of the Loop node, for those who look for it; None: any.
            begin: what a carried value is before the first turn, and its rank in every turn if it stays the same; what
                it writes stands before the loop.

        Returns:
            What was carried, after the last turn, and what was collected, one row per turn; both by the names inside.
        """
        outer, self._nodes = self._nodes, []
        go, goes_on, turn = (self.unique(f"{self._scope}ftbc/{part}") for part in ("go", "goes_on", "turn"))
        body = LoopBody(self, turn)
        write(body)
        self._nodes.append(helper.make_node("Identity", [go], [goes_on], name=self._node_name(goes_on)))
        results = [self._own(name) for name in [*(c.after for c in body.carried), *body.collected]]
        kinds = [*(c.kind for c in body.carried), *body.collected.values()]
        inner, self._nodes = self._nodes, outer
        starts, ranks = zip(*map(begin, body.carried), strict=True) if body.carried else ((), ())
        axes = [None if rank is None else [None] * rank for rank in ranks]
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            inner,
            f"{self._scope}body",
            [
                info(body.turn, onnx.TensorProto.INT64, []),
                info(go, onnx.TensorProto.BOOL, []),
                *(info(c.inside, c.kind, dims) for c, dims in zip(body.carried, axes, strict=True)),
            ],
            [
                info(goes_on, onnx.TensorProto.BOOL, []),
                *(info(name, kind, None) for name, kind in zip(results, kinds, strict=True)),
            ],
            self._weights_inside(inner),
        )
        turns = count if isinstance(count, str) else self.constant(np.array(count, np.int64))
        trips = [turns, self.constant(np.array(True))]
        names = [f"{c.inside}/last" for c in body.carried] + [f"{name}/rows" for name in body.collected]
        made = self.ops("Loop", [*trips, *starts], names, body=graph)
        if name is not None:
            self._node_names.add(name)
            self._nodes[-1].name = name
        kept = len(body.carried)
        last = {c.inside: name for c, name in zip(body.carried, made[:kept], strict=True)}
        return last, dict(zip(body.collected, made[kept:], strict=True))

    def _weights_inside(self, nodes: Iterable[onnx.NodeProto]) -> list[onnx.TensorProto]:
        """Copies of the weights that the nodes of a body read, for the body to hold, and the nodes reading those.

        onnxruntime lays out a Conv's weights for the processor only where they stand in the graph of the Conv: on a CPU
        a loop is a third faster with them inside. Above `_INSIDE` bytes they stay where a large file may keep them.
        """
        readers = [node for node in nodes if node.op_type in WEIGHTED]
        names = dict.fromkeys(name for node in readers for name in node.input[1:] if name in self._initializers)
        if sum(tensor_bytes(self._initializers[name]) for name in names) > _INSIDE:
            return []
        copies = {}
        for name in names:
            copy = onnx.TensorProto()
            copy.CopyFrom(self._initializers[name])
            copy.name = self.unique(f"{name}/inside")
            copies[name] = copy
        for node in readers:
            node.input[:] = [copies[name].name if name in copies else name for name in node.input]
        return list(copies.values())

    def _own(self, name: str) -> str:
        """A copy, which only one output of a body has: a tensor may be handed out twice, or not be made here."""
        return self.op("Identity", name, out="ftbc/out")

    # the result

    @property
    def initializers(self) -> list[onnx.TensorProto]:
        """What was added so far."""
        return list(self._initializers.values())

    def take_nodes(self) -> list[onnx.NodeProto]:
        """The nodes written so far, which are then the caller's to place."""
        taken, self._nodes = self._nodes, []
        return taken

    def to_model(
        self,
        name: str,
        inputs: Iterable[onnx.ValueInfoProto],
        outputs: Iterable[onnx.ValueInfoProto],
        opset_imports: Iterable[onnx.OperatorSetIdProto],
    ) -> onnx.ModelProto:
        """The finished model: only the initializers that are read, and the opset imports that are used."""
        used = {name for node in self._nodes for name in node_inputs(node)} | {value.name for value in outputs}
        domains = {node.domain or "" for node in all_nodes(self._nodes)} | {""}
        graph = helper.make_graph(
            self._nodes,
            name,
            list(inputs),
            list(outputs),
        )
        imports = [entry for entry in opset_imports if (entry.domain or "") in domains and entry.domain != "ai.onnx"]
        model = helper.make_model(graph, opset_imports=imports, producer_name="ftbc-onnx")
        model.ir_version = helper.find_min_ir_version_for(imports)
        add_initializers(model, (tensor for key, tensor in self._initializers.items() if key in used))
        return model

    def extend(self, model: onnx.ModelProto, outputs: Iterable[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """A copy of the model given to `on`, with what was built behind it and more outputs."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.node.extend(self._nodes)
        add_initializers(copy, self._initializers.values())
        copy.graph.output.extend(outputs)
        return copy


@dataclass
class Carried:
    """What a Loop hands from turn to turn.

    Attributes:
        start: its value before the first turn, which may have fewer axes or shorter ones.
        inside: in a turn.
        after: after a turn.
        kind: element type.
        shape: after the first turn, as `GraphView.shape` gives it; None: not known.
    """

    start: str
    inside: str
    after: str
    kind: int
    shape: Shape | None = None


@dataclass
class LoopBody:
    """What goes into a turn of a Loop and what comes out; the nodes are written into the builder.

    Attributes:
        turn: the number of the turn, from 0: int64, [].
    """

    builder: GraphBuilder
    turn: str
    carried: list[Carried] = field(default_factory=list)
    collected: dict[str, int] = field(default_factory=dict)

    def carry(self, name: str, start: str, kind: int = onnx.TensorProto.FLOAT, shape: Shape | None = None) -> str:
        """Declare a value that is handed on, and what it is before the first turn; returns its name in a turn."""
        inside = self.builder.unique(f"{name}/before")
        self.carried.append(Carried(start, inside, inside, kind, shape))
        return inside

    def pass_on(self, inside: str, after: str) -> None:
        """What `inside` is in the next turn."""
        next(c for c in self.carried if c.inside == inside).after = after

    def collect(self, name: str, kind: int = onnx.TensorProto.FLOAT) -> None:
        """Keep a tensor of every turn."""
        self.collected[name] = kind

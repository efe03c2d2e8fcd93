"""Normalise the ANN: the same function, written with as few and as plain nodes as can be.

1. local functions inlined, sparse initializers made dense, weights of less than 8 bits made numbers, nodes named,
   initializers taken out of the inputs, ``ai.onnx`` written as the empty domain
2. opset changed to the one that is wanted, or raised to 13 if it is older (`FLOOR`), and the IR version to what that
   takes
3. the passes of `ftbc_onnx.graph.passes`, round after round, with fresh shapes, until nothing changes
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper, inliner, numpy_helper, shape_inference, version_converter
from onnx_graphsurgeon.ir.tensor import LazyValues
from onnx_graphsurgeon.logger import G_LOGGER

from ftbc_onnx.config import OLDEST_OPSET
from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.packed import unpack
from ftbc_onnx.graph.passes import PASSES
from ftbc_onnx.graph.view import all_nodes
from ftbc_onnx.graph.weights import exceeds, is_heavy, skeleton

FLOOR = OLDEST_OPSET
"""The oldest opset that is emitted."""

_RESIZE_STATES_COORDINATES = 11
_HARDMAX_FLATTENS = 13
_ROUNDS = 20
_FREE_INITIALIZERS = 4  # the IR version from which an initializer need not be an input


@dataclass(frozen=True)
class Normalised:
    """The normalised ANN, and how often each pass changed something."""

    model: onnx.ModelProto
    changes: dict[str, int]


def normalise(model: onnx.ModelProto, opset: int | None = None) -> Normalised:
    """The same network with shapes inferred, constants folded, no-ops gone and BatchNormalization folded.

    Args:
        model: the ANN.
        opset: version of the default domain to write, from 13 on; None: the model's own, or 13 if that is older.

    Raises:
        ModelError: the opset cannot be changed, or a BatchNormalization is in training mode.
    """
    work = onnx.ModelProto()
    work.CopyFrom(model)
    changes: Counter[str] = Counter()
    if work.functions:
        changes["inline_functions"] = len(work.functions)
        work = inliner.inline_local_functions(work)
    changes["densify"] = _densify(work)
    changes["unpack"] = unpack(work)
    _spell_domain(work)
    hint = "use another --opset, or none" if opset else f"export the model with opset {FLOOR} or newer"
    version = default_opset(work)
    wanted = opset or max(version, FLOOR)
    changes["raise_opset" if wanted > version else "lower_opset"] = int(wanted != version)
    work = change_opset(work, wanted, hint)
    _name_nodes(work)
    _drop_initializer_inputs(work)
    _name_axes(work)
    for _ in range(_ROUNDS):
        before = sum(changes.values())
        with G_LOGGER.suppress(G_LOGGER.CRITICAL):
            work = _round(infer_shapes(work), changes)
        if sum(changes.values()) == before:
            break
    _name_nodes(work)
    return Normalised(infer_shapes(work), {name: count for name, count in changes.items() if count})


def _round(model: onnx.ModelProto, changes: Counter[str]) -> onnx.ModelProto:
    graph = gs.import_onnx(model)
    foreign = [(node, node.op) for node in graph.nodes if node.domain]
    for node, op in foreign:  # whatever its name is: no pass knows it
        node.op = f"{node.domain}.{op}"
    for apply in PASSES:
        changes[apply.__name__] += apply(graph)
    for node, op in foreign:
        node.op = op
    graph.cleanup(recurse_subgraphs=False).toposort()
    return _export(graph, model)


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every shape that ONNX can infer; the model itself where inference gives up.

    A model over 2 GB is completed in place: there need not be memory for another.
    """
    try:
        if exceeds(model):
            return _complete(model, shape_inference.infer_shapes(skeleton(model), data_prop=True))
        return shape_inference.infer_shapes(model, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError):
        return model


def _complete(model: onnx.ModelProto, inferred: onnx.ModelProto) -> onnx.ModelProto:
    """Give a model what was inferred from its skeleton."""
    for name in ("node", "value_info", "output"):
        model.graph.ClearField(name)
        getattr(model.graph, name).extend(getattr(inferred.graph, name))
    return model


def default_opset(model: onnx.ModelProto) -> int:
    """Version of the default domain that the model imports."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)


def change_opset(model: onnx.ModelProto, wanted: int, hint: str) -> onnx.ModelProto:
    """The model in another version of the default domain; the model itself if it has this one.

    Raises:
        ModelError: that cannot be done; `hint` says what to do.
    """
    version = default_opset(model)
    if version == wanted:
        return model
    if version < _HARDMAX_FLATTENS <= wanted:
        _refuse_flattening(model)
    try:
        changed = version_converter.convert_version(model, wanted)
        if wanted < version:  # the converter knows few ways down, and not all of them are right
            onnx.checker.check_model(changed)
    except Exception as error:  # the converter raises RuntimeError and its own kinds
        raise ModelError(f"opset {version} could not be changed to {wanted} ({str(error)[:200]}): {hint}") from error
    del changed.metadata_props[:]
    changed.metadata_props.extend(model.metadata_props)
    if version < _RESIZE_STATES_COORDINATES <= wanted:
        for node in all_nodes(changed.graph.node):
            if node.op_type == "Resize" and not node.domain:
                _state_coordinates(changed, node)
    return changed


def _state_coordinates(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """A Resize that was an Upsample, or a Resize of opset 10: what they did is no default later on, and the converter
    does not say it. Nearest ones took the pixel before, and where they made an axis smaller the pixel behind."""
    mode = next((helper.get_attribute_value(a) for a in node.attribute if a.name == "mode"), b"nearest")
    stated = {"coordinate_transformation_mode": "asymmetric"}
    if mode == b"nearest":
        scales = next((t for t in model.graph.initializer if len(node.input) > 2 and t.name == node.input[2]), None)
        smaller = scales is not None and bool((numpy_helper.to_array(scales) < 1).any())
        stated["nearest_mode"] = "ceil" if smaller else "floor"
    kept = [attribute for attribute in node.attribute if attribute.name not in stated]
    del node.attribute[:]
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in stated.items())])


def _refuse_flattening(model: onnx.ModelProto) -> None:
    """A Hardmax of old takes one largest number of all axes from its own on, which the converter does not see.

    Raises:
        ModelError: there is one whose axis is not the last.
    """
    named = infer_shapes(model) if any(node.op_type == "Hardmax" for node in all_nodes(model.graph.node)) else model
    values = [*named.graph.value_info, *named.graph.input, *named.graph.output]
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in values}
    for node in all_nodes(named.graph.node):
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if node.op_type == "Hardmax" and axis not in (-1, ranks.get(node.input[0], 0) - 1):
            raise ModelError(f"Hardmax '{node.name or node.output[0]}' flattens axes: export with opset 13 or newer")


def _densify(model: onnx.ModelProto) -> int:
    """Sparse initializers as plain ones; how many there were."""
    sparse = list(model.graph.sparse_initializer)
    for tensor in sparse:
        values, places = (numpy_helper.to_array(part) for part in (tensor.values, tensor.indices))
        dense = np.zeros(tuple(tensor.dims), values.dtype)
        index = np.unravel_index(places, dense.shape) if places.ndim == 1 else tuple(places.T)
        dense[index] = values
        model.graph.initializer.append(numpy_helper.from_array(dense, tensor.values.name))
    del model.graph.sparse_initializer[:]
    return len(sparse)


def _spell_domain(model: onnx.ModelProto) -> None:
    """The default domain has two spellings; only the empty one is left."""
    for entry in [*model.opset_import, *model.graph.node]:
        if entry.domain == "ai.onnx":
            entry.domain = ""


def node_names(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Every node by a name of its own, made of what it has: its name, or its first output."""
    named: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        base = node.name or next((name for name in node.output if name), node.op_type)
        name, count = base, 1
        while name in named:
            count += 1
            name = f"{base}_{count}"
        named[name] = node
    return named


def _name_nodes(model: onnx.ModelProto) -> None:
    for name, node in node_names(model).items():
        node.name = name


def _drop_initializer_inputs(model: onnx.ModelProto) -> None:
    """An initializer listed as a graph input (files of old) is a constant."""
    constants = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    oldest = helper.find_min_ir_version_for([helper.make_opsetid("", default_opset(model))], ignore_unknown=True)
    model.ir_version = max(model.ir_version, _FREE_INITIALIZERS, oldest)
    del model.graph.input[:]
    model.graph.input.extend(kept)


def _name_axes(model: onnx.ModelProto) -> None:
    """Give the free axes of the inputs that have no name one of their own.

    Without a name no two shapes of a batch are known to be the same, and onnxruntime takes long to open many steps.
    """
    dims = [value.type.tensor_type.shape.dim for value in [*model.graph.input, *model.graph.output]]
    taken = {dim.dim_param for each in dims for dim in each}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value") and not dim.dim_param:
                name = f"{value.name}_axis{axis}"
                while name in taken:
                    name += "_"
                taken.add(name)
                dim.dim_param = name


def _write_out(graph: gs.Graph) -> onnx.ModelProto:
    """graphsurgeon's export of a model over 2 GB: it fails on large tensors, so that these are put in afterwards."""
    held = {}
    for tensor in graph.tensors().values():
        if isinstance(tensor, gs.Constant) and type(tensor._values) in (LazyValues, np.ndarray):
            value = tensor._values
            full = value.tensor if isinstance(value, LazyValues) else numpy_helper.from_array(value, tensor.name)
            if is_heavy(full):
                held[tensor.name] = full
                tensor._values = LazyValues(onnx.TensorProto(data_type=full.data_type, dims=full.dims))
    model = gs.export_onnx(graph, do_type_check=False)
    for tensor in model.graph.initializer:
        if tensor.name in held:
            tensor.CopyFrom(held.pop(tensor.name))
    return model


def _export(graph: gs.Graph, source: onnx.ModelProto) -> onnx.ModelProto:
    """Back to ONNX with what graphsurgeon drops: metadata, doc strings, the interface's types, the IR version."""
    model = _write_out(graph) if exceeds(source) else gs.export_onnx(graph, do_type_check=False)
    model.ir_version = source.ir_version
    model.metadata_props.extend(source.metadata_props)
    model.doc_string = source.doc_string
    model.domain, model.model_version = source.domain, source.model_version
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    model.graph.name, model.graph.doc_string = source.graph.name, source.graph.doc_string
    del model.graph.input[:], model.graph.output[:]
    model.graph.input.extend(source.graph.input)
    model.graph.output.extend(source.graph.output)
    return model

"""Free the batch of a model whose file fixes it, so that it can be calibrated on larger batches.

A model exported with a batch of B (often 1) gives a calibration rule B samples at a time, too few for the statistics of
a layer without spatial axes. Where nothing but declared shapes and the targets of Reshapes hold B, it can be freed:

1. the inputs and outputs lose B on axis 0;
2. a Reshape from [B, ...] to [B, ...] copies axis 0 (target 0);
3. a Reshape that merges B with other axes, or splits it off, infers that axis (target -1), if it infers no other.

The emitted model keeps the batch that the user's file has. Whether the freed model computes the same is not decided
here: the caller runs both (`ftbc_onnx.pipeline`).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from ftbc_onnx.graph.normalise import infer_shapes
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import GraphView

_AXIS = "N"


def free_batch(network: Network) -> onnx.ModelProto | None:
    """The network with a free batch, or None if its batch is free already or its inputs disagree on it."""
    batch = network.static_batch
    shapes = [network.view.shape(value.name) for value in network.view.inputs]
    if batch is None or any(not shape or shape[0] != batch for shape in shapes):
        return None
    model = onnx.ModelProto()
    model.CopyFrom(network.view.model)
    del model.graph.value_info[:]
    for value in [*model.graph.input, *model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == batch:
            dims[0].dim_param = _AXIS
    for node in model.graph.node:
        if node.op_type == "Reshape":
            target = _freed_target(network.view, node, batch)
            if target is not None:
                name = f"{node.output[0]}/free_shape"
                model.graph.initializer.append(numpy_helper.from_array(target, name))
                node.input[1] = name
    return infer_shapes(model)


def baked_reshapes(view: GraphView) -> list[str]:
    """Names of the Reshapes whose constant target fixes an axis 0 that is free in what they read."""
    found = []
    for node in view.nodes:
        value = view.constant(node.input[1]) if node.op_type == "Reshape" else None
        source = view.shape(node.input[0])
        if value is not None and value.size and source and not isinstance(source[0], int) and value.reshape(-1)[0] > 0:
            found.append(node.name)
    return found


def _freed_target(view: GraphView, node: onnx.NodeProto, batch: int) -> np.ndarray | None:
    """The target of a Reshape without B, or None if it holds no B."""
    value, source = view.constant(node.input[1]), view.shape(node.input[0])
    if value is None or not source or value.size == 0 or value.reshape(-1)[0] <= 0:
        return None
    target = value.reshape(-1).astype(np.int64).copy()
    if source[0] == batch and target[0] == batch:
        target[0] = 0
    elif -1 not in target and source[0] != target[0] and isinstance(source[0], int) and source[0] % batch == 0:
        if target[0] % batch:
            return None
        target[0] = -1
    else:
        return None
    return target

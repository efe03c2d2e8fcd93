"""Weights beyond what one protobuf message can hold (2 GB): told from dimensions, left out of copies.

A message of 2 GB or more cannot be serialised; even asking for its size fails. So sizes come from the dimensions of
the initializers, and whatever must serialise a model (shape inference, a file) is given its *skeleton*.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

LIMIT = 2**31 - 1
"""Bytes of the largest protobuf message."""

FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
"""Types of floats that NumPy has."""
_SMALL = 1024  # elements: targets of Reshapes and the like, whose values shape inference reads


def exceeds(model: onnx.ModelProto, limit: int = LIMIT) -> bool:
    """Whether a model is too large for one message of `limit` bytes."""
    held = (t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL)
    if sum(tensor_bytes(t) for t in held) >= limit:
        return True
    try:
        return int(model.ByteSize()) >= limit
    except EncodeError:  # what is large is an attribute of a node
        return True


def is_heavy(tensor: onnx.TensorProto) -> bool:
    """Whether a skeleton is without the tensor's numbers."""
    return int(math.prod(tensor.dims)) > _SMALL


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model whose large initializers have names, types and shapes, but no numbers."""
    light = onnx.ModelProto()
    for source, target, left_out in ((model, light, "graph"), (model.graph, light.graph, "initializer")):
        for entry, value in source.ListFields():
            if entry.name == left_out:
                continue
            if hasattr(value, "extend"):
                getattr(target, entry.name).extend(value)
            elif hasattr(value, "CopyFrom"):
                getattr(target, entry.name).CopyFrom(value)
            else:
                setattr(target, entry.name, value)
    for tensor in model.graph.initializer:
        if is_heavy(tensor):
            light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        else:
            light.graph.initializer.add().CopyFrom(tensor)
    return light


def add_initializers(model: onnx.ModelProto, tensors: Iterable[onnx.TensorProto]) -> None:
    """Append initializers one by one; protobuf's own `extend` serialises what it is given, and fails at 2 GB."""
    for tensor in tensors:
        model.graph.initializer.add().CopyFrom(tensor)


def count_nan(tensor: onnx.TensorProto) -> int:
    """How many of a tensor's numbers are NaN."""
    if tensor.data_type not in FLOATS:
        return 0
    values = numpy_helper.to_array(tensor)
    # NaN is the least there is: no array of booleans for large weights that are right
    return int(np.isnan(values).sum()) if values.size and np.isnan(values.min()) else 0


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's numbers, wherever they are."""
    itemsize = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
    return int(math.prod(tensor.dims)) * int(itemsize)

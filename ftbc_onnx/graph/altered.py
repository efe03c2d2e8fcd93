"""Weights of an emitted file that are not those of its ANN: someone changed the file, or it was not made from it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.recorder import initializers
from ftbc_onnx.graph.sites import Network

_ROUNDING = 1e-5  # of the largest number: BatchNormalization is folded in floating point


def altered_weights(network: Network, emitted: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializers of the normalised ANN that the emitted model has under the same name with other numbers: its own.

    Raises:
        ModelError: one has another shape.
    """
    there = initializers(emitted)
    changed = {}
    for name, tensor in network.view.initializers.items():
        if name not in there:
            continue
        expected, found = (np.asarray(numpy_helper.to_array(t)) for t in (tensor, there[name]))
        if found.shape != expected.shape:
            raise ModelError(f"'{name}' is {found.shape} in the spiking network and {expected.shape} in the ANN")
        size = float(np.abs(expected).max(initial=0.0)) if expected.dtype.kind == "f" else 0.0
        if not np.allclose(found, expected, rtol=0, atol=_ROUNDING * size, equal_nan=True):
            changed[name] = found
    return changed

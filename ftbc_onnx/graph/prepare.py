"""From a model as it was read to the network that is converted, as the options say."""

from __future__ import annotations

import onnx

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.graph.half import halve
from ftbc_onnx.graph.normalise import Normalised, normalise
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.sites import Network, find_network


def prepare(model: onnx.ModelProto, config: ConvertConfig) -> tuple[Normalised, Network]:
    """The ANN normalised, and its nodes classed.

    Raises:
        ModelError: the opset cannot be changed, or a BatchNormalization is in training mode.
        ConfigError: the scope speaks of what the model does not have.
    """
    normalised = normalise(model, config.opset)
    if config.float16:
        narrow, count = halve(normalised.model)
        normalised = Normalised(narrow, {**normalised.changes, "float16": count})
    scope = Scope(config.include, config.exclude, config.until)
    return normalised, find_network(normalised.model, scope, config.smooth)

"""From a model as it was read to the network that is converted, as the options say."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import onnx

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.graph.dequantise import dequantise
from ftbc_onnx.graph.float32 import in_float32
from ftbc_onnx.graph.half import halve
from ftbc_onnx.graph.normalise import Normalised, node_names, normalise
from ftbc_onnx.graph.passes.pool_first import MAX_POOLS
from ftbc_onnx.graph.qoperators import plain_operators
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.sites import Network, find_network


def prepare(model: onnx.ModelProto, config: ConvertConfig) -> tuple[Normalised, Network]:
    """The ANN normalised, and its nodes classed.

    Raises:
        ModelError: the opset cannot be changed, or a BatchNormalization is in training mode.
        ConfigError: the scope speaks of what the model does not have.
    """
    plain = _plain(model, config)
    config = replace(config, until=_until(model, plain.model, config.until))
    normalised, network = _find(plain, config)
    others = _other_types(network)
    if others:
        single, counts = in_float32(model, others)
        plain = _plain(single, config)
        normalised, network = _find(Normalised(plain.model, {**counts, **plain.changes}), config)
    if config.float16:
        narrow, count = halve(normalised.model)
        normalised, network = _find(Normalised(narrow, {**normalised.changes, "float16": count}), config)
    return normalised, network


def _plain(model: onnx.ModelProto, config: ConvertConfig) -> Normalised:
    """Normalised, without quantised operators and pairs of QuantizeLinear and DequantizeLinear."""
    plain = normalise(model, config.opset)
    for rewrite in (plain_operators, dequantise):
        changed, count = rewrite(plain.model)
        if count:
            again = normalise(changed)
            changes = Counter(plain.changes) + Counter(again.changes)
            plain = Normalised(again.model, {rewrite.__name__: count, **changes})
    return plain


def _until(model: onnx.ModelProto, plain: onnx.ModelProto, name: str | None) -> str | None:
    """The node of the normalised network behind which lies what was behind this one of the model.

    It makes the same tensor, and may be another one, since a max pooling goes before the rectifier that it read. That
    rectifier itself makes another tensor then, and stays what is meant by its name.

    Raises:
        ConfigError: there is none.
    """
    node = None if name is None else node_names(model).get(name)
    if node is None:
        return name
    made, left = next(output for output in node.output if output), node_names(plain)
    maker = next((called for called, other in left.items() if made in other.output), None)
    if maker is None and (name not in left or node.op_type in MAX_POOLS):
        raise ConfigError(
            f"until is '{name}', which is written into other nodes before anything is converted: name the one behind it"
        )
    return maker or name


def _find(normalised: Normalised, config: ConvertConfig) -> tuple[Normalised, Network]:
    scope = Scope(config.include, config.exclude, config.until)
    return normalised, find_network(normalised.model, scope, config.smooth)


def _other_types(network: Network) -> set[int]:
    """Types that are computed in float32 instead: float16 wherever spikes lead, float64 where neurons would stand.

    What a QuantizeLinear reads counts as such a place, since it may be a rectifier.
    float64 elsewhere stays, as numbers between means, and bfloat16 is refused: onnxruntime cannot be fed with it.
    """
    half, double = onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE
    behind = {network.view.elem_type(name) for name in network.temporal}
    places = [site.current for site in network.sites]
    places += [node.input[0] for node in network.view.nodes if node.op_type == "QuantizeLinear"]
    return (behind & {half}) | ({network.view.elem_type(name) for name in places} & {half, double})

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
    """What `until` is called in the normalised network.

    A max pooling goes before the rectifier that it read (`passes.pool_first`): behind it is then behind that one.

    Raises:
        ConfigError: it is a node of the model that is no longer there.
    """
    if name is None:
        return None
    there, left = node_names(model), node_names(plain)
    if name not in there:
        return name
    if name not in left:
        raise ConfigError(
            f"until is '{name}', which is written into other nodes before anything is converted (a BatchNormalization "
            "goes into the layer before it, for example): name the node behind it"
        )
    reads = next(iter(there[name].input), "")
    before = next((called for called, node in there.items() if reads in node.output), None)
    swapped = before in left and left[name].output[0] in left[before].input
    return before if swapped else name


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

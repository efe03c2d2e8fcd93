"""Networks in tests of sites and classes: a line of nodes behind an image, classed and checked."""

from __future__ import annotations

import numpy as np
from helpers import numbers, parse

from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import Network, find_network

WEIGHTS = {
    "w": numbers(4, 3, 3, 3),
    "w4": numbers(4, 4, 3, 3),
    "zero": np.float32(0),
    "zero1": np.zeros(1, np.float32),
    "six": np.float32(6),
    "one": np.float32(1),
    "minus": np.float32(-1),
    "huge": np.float32(3.4028234663852886e38),
    "infinite": np.float32(np.inf),
    "zeros": np.zeros((3, 1, 1), np.float32),
    "slopes": np.full((3, 1, 1), 0.25, np.float32),
}
IMAGE = "float[N,3,8,8] x"


def network_of(
    body: str, inputs: str = IMAGE, outputs: str = "float[a,b,c,d] y", opset: int = 17, **constants
) -> Network:
    """A classed network; outputs [a, ...] are of any type and shape."""
    model = parse(f"g ({inputs}) => ({outputs}) {{ {body} }}", opset=opset, **{**WEIGHTS, **constants})
    for value in model.graph.output:
        if value.type.tensor_type.shape.dim[0].dim_param == "a":
            value.ClearField("type")
    network = find_network(normalise(model).model)
    assert_consistent(network)
    return network


def assert_consistent(network: Network) -> None:
    """What holds for every network: each node has one class, sites own their nodes, tensors are temporal or not."""
    names = [node.name for node in network.view.nodes]
    assert set(names) == set(network.classes)
    owned = [name for site in network.sites for name in site.nodes]
    assert len(set(owned)) == len(owned)
    assert set(owned) == {name for name, kind in network.classes.items() if kind is NodeClass.SITE}
    assert network.mean_form <= network.temporal
    assert {site.spikes for site in network.sites} <= network.temporal
    assert len({site.name for site in network.sites}) == len(network.sites)
    for position, site in enumerate(network.sites):
        assert set(site.upstream) <= {earlier.name for earlier in network.sites[:position]}


def kind_of(network: Network, tensor: str) -> NodeClass:
    return network.classes[network.view.producers[tensor].name]

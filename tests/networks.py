"""Small networks and data that several test files share. In `residual` every number is exact in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from helpers import eighths, parse

from ftbc_onnx.batching import Batching
from ftbc_onnx.data import DataSource, open_data
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan

MODELS = Path(__file__).parents[1] / "models"
RELU = MODELS / "digits_relu.onnx"
QCFS = MODELS / "digits_qcfs4.onnx"
CALIBRATION = MODELS / "digits_calibration.npz"
TEST = MODELS / "digits_test.npz"

RESIDUAL = """
residual (float[N,2,4,4] x) => (float[N,3] y) {
    c1 = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r1 = Relu(c1)
    c2 = Conv<pads=[1,1,1,1]>(r1, w2, b2)
    r2 = Relu(c2)
    c3 = Conv(r2, w3)
    a3 = Add(c3, r1)
    r3 = Relu(a3)
    p = GlobalAveragePool(r3)
    f = Flatten(p)
    y = Gemm<transB=1>(f, w4, b4)
}
"""

WEIGHTS = {
    "w1": eighths(4, 2, 3, 3, seed=1),
    "b1": np.array([0.5, 0.125, -0.25, -64], np.float32),  # the last channel is never active
    "w2": eighths(4, 4, 3, 3, seed=2, low=-4, high=5),
    "b2": np.array([0.25, 0, -0.125, 0.5], np.float32),
    "w3": eighths(4, 4, 1, 1, seed=3),
    "w4": eighths(3, 4, seed=4),
    "b4": eighths(3, seed=5),
}

THRESHOLDS = {
    "r1": np.array([2, 1, 4, 0.5], np.float32),
    "r2": np.array([1, 2, 0.5, 2], np.float32),
    "r3": np.array([4, 2, 2, 1], np.float32),
}


def residual(opset: int = 17) -> onnx.ModelProto:
    """Three convolutions with a skip connection, weights in eighths; sites in order."""
    return parse(RESIDUAL, opset=opset, **WEIGHTS)


def inputs(samples: int, seed: int = 0) -> np.ndarray:
    """Inputs of `residual`, in eighths: [samples, 2, 4, 4]."""
    return eighths(samples, 2, 4, 4, seed=seed, low=-4, high=8)


def network_of(model: onnx.ModelProto) -> Network:
    """The classed network of a model."""
    return find_network(normalise(model).model)


def node_names(network: Network) -> dict[str, str]:
    """Name of the node that makes a tensor."""
    return {tensor: node.name for tensor, node in network.view.producers.items()}


def plan_of(network: Network, thresholds: dict[str, np.ndarray], steps: int) -> SpikingPlan:
    """A plan without biases; thresholds in the order of the sites."""
    values = dict(zip([site.name for site in network.sites], thresholds.values(), strict=True))
    return SpikingPlan("0" * 64, network.sites, steps, "if", values)


def source_of(model: onnx.ModelProto, **arrays: np.ndarray) -> DataSource:
    """Arrays as a source for a model."""
    return open_data(arrays, input_specs(model))


def batches_of(size: int, fixed: bool = False) -> Batching:
    """Batches of a size."""
    return Batching(size, fixed)


def digits(kind: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 1, 8, 8] and labels [n] of ``calibration`` or ``test``."""
    with np.load(MODELS / f"digits_{kind}.npz") as data:
        return data["image"][:count], data["label"][:count]


SPECS = [
    NeuronSpec("if"),
    NeuronSpec("signed"),
    NeuronSpec("signed-st"),
    NeuronSpec("group", 3),
    NeuronSpec("signed-group", 15),
    NeuronSpec("multi-threshold", 4),
    NeuronSpec("signed-group", 3, "differential"),
    NeuronSpec("if", 1, "differential"),
]
"""Every kind of neuron, in rate and in differential coding."""


def random_plan(network: Network, spec: NeuronSpec, steps: int = 5) -> SpikingPlan:
    """A plan of some neuron with random thresholds and biases."""
    rng = np.random.default_rng(3)
    return SpikingPlan(
        "",
        network.sites,
        steps,
        spec,
        {site.name: rng.uniform(0.3, 2.0, site.channels) for site in network.sites},
        {site.name: rng.normal(0, 0.1, (steps, site.channels)) for site in network.sites},
    )

"""The networks that `benchmark.py` and `scaling.py` time: of the data folder, and of `models/` with random weights."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ftbc_onnx.graph.files import load
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan

MODELS = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True)
class Timed:
    """A network to time.

    Attributes:
        label: in tables.
        shape: of an image.
        file: name in the data folder; None: there is none.
        made: name in `models/architectures.py`, for random weights; None: there is none.
        steps: T to time it with; with ``--quick`` 8 only.
    """

    label: str
    shape: tuple[int, ...]
    file: str | None = None
    made: str | None = None
    steps: tuple[int, ...] = (4, 8, 32)


NETWORKS = {
    network.label: network
    for network in (
        Timed("ResNet-20", (3, 32, 32), "cifar10_resnet20_torchscript", "resnet20"),
        Timed("MobileNet v1 0.25", (128, 128, 3), "mobilenet_v1_0.25_128_tf2onnx"),
        Timed("VGG-16", (3, 32, 32), made="vgg16", steps=(8,)),
        Timed("ResNet-18", (3, 32, 32), made="resnet18", steps=(8,)),
    )
}


def torch_network(name: str) -> Any:
    """A network of `models/` with rectifiers and random weights, in evaluation mode."""
    sys.path.insert(0, str(MODELS))
    import torch  # noqa: PLC0415 (only where a network is made)
    from architectures import make  # noqa: PLC0415
    from torch import nn  # noqa: PLC0415

    torch.manual_seed(0)
    return make(name, nn.ReLU, 10, hidden=512).eval()


def export(name: str, shape: tuple[int, ...], path: Path) -> Path:
    """Write the network that `torch_network` makes as ONNX, if it is not there."""
    if not path.exists():
        sys.path.insert(0, str(MODELS))
        import torch  # noqa: PLC0415
        from export import export as write  # noqa: PLC0415

        write(torch_network(name), torch.zeros(2, *shape), path, "torchscript")
    return path


def open_network(path: Path, steps: int, neuron: NeuronSpec | None = None) -> tuple[Network, SpikingPlan]:
    """A network, and a plan with random thresholds and biases: speed does not depend on them much."""
    source = load(path)
    network = find_network(normalise(source.model).model)
    rng = np.random.default_rng(0)
    plan = SpikingPlan(
        source.digest,
        network.sites,
        steps,
        neuron or NeuronSpec("if"),
        {site.name: rng.uniform(1.0, 3.0, site.channels) for site in network.sites},
        {site.name: rng.normal(0, 0.1, (steps, site.channels)) for site in network.sites},
    )
    return network, plan


def feeds_of(network: Network, shape: tuple[int, ...], batch: int) -> dict[str, np.ndarray]:
    """Random images for a network."""
    x = np.random.default_rng(1).normal(0, 1, (batch, *shape)).astype(np.float32)
    return {network.view.inputs[0].name: x}

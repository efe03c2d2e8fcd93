"""A plan and its ANN as a NIR graph.

Neurons have threshold 1 and send spikes of 1. Thresholds and gains go into the weights: where the ANN has a tensor x,
NIR has x/u, with a unit u per channel. A site fixes the unit of its current, u = theta, and of its spikes,
u = g*theta; a layer with weights turns the unit of its input into the one that its reader wants,

    W'[o, i] = W[o, i] u_in[i] / u_out[o],      b'[o] = (b[o] + shift[o]) / u_out[o]

a mean pool and a sum keep units, and where spikes are wanted in another unit than their own (a skip connection) a
diagonal layer of weights stands between. Network inputs and outputs have unit 1. All this is exact but for rounding.

A shift is a constant that is added to the current of a site (cases 2 and 3 of `ftbc_onnx.nir.losses`).

Neurons. Hard: ``IF(r=1, v_threshold=1-, v_reset=0)``, where 1- is the largest float32 below 1, because NIR fires on
``>`` and we on ``>=``. Soft reset, said by a loop:

    I(r=1) -> Threshold(1/2-) -> spikes,      Threshold -> Scale(-1) -> I

In steps of one unit of time, the edge back one step late, the integrator holds v[t] = v[t-1] - z[t-1] + x[t] with
v[-1] = 0 = z[-1], which is u[t] - 1/2 of a neuron with soft reset that starts at 1/2.

Node names are ours (``n03_conv``), since NIR files take no ``/`` and importers no ``.``; the ANN's are in the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nir
import numpy as np

from ftbc_onnx.graph.plain_layers import Flat, Joined, Layer, Pool, Shifted, Sum, Weighted, sizes
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite

Names = tuple[str, ...]
"""NIR nodes whose outputs sum to a tensor: NIR adds what comes in over several edges."""


def translate(network: Network, plan: SpikingPlan, layers: Mapping[str, Layer], soft_reset: bool = False) -> Any:
    """The NIR graph of a plan of which no loss without a nearest expression is left.

    Args:
        network: the normalised ANN.
        plan: its plan, of integrate-and-fire neurons.
        layers: by tensor, of `ftbc_onnx.nir.losses.survey`.
        soft_reset: write neurons as loops of primitives.

    Returns:
        A ``nir.NIRGraph``, one step per unit of time. The caller feeds the input at every step and takes the mean of
        the output over the readout's steps.
    """
    return _Translator(network, plan, layers, soft_reset).run()


class _Translator:
    def __init__(self, network: Network, plan: SpikingPlan, layers: Mapping[str, Layer], soft_reset: bool) -> None:
        self._network, self._plan, self._layers, self._soft = network, plan, layers, soft_reset
        self._sites = {site.spikes: site for site in plan.sites}
        self._nodes: dict[str, Any] = {}
        self._edges: list[tuple[str, str]] = []
        self._neurons: dict[str, str] = {}
        self._inputs: dict[str, str] = {}
        self._done: dict[tuple[str, bytes, bytes], Names] = {}

    def run(self) -> Any:
        for value in self._network.view.inputs:
            shape = np.array(self._sizes(value.name))
            self._inputs[value.name] = self._add("input", value.name, nir.Input(shape))
        for site in self._plan.sites:  # in topological order, so that nothing recurses past a site
            self._neurons[site.spikes] = self._neuron(site)
        for name in self._network.view.output_names:
            made = self._write(name, self._ones(name), 0 * self._ones(name))
            if len(made) > 1:  # importers do not sum at an output
                made = (self._diagonal(made, name, self._ones(name), 0 * self._ones(name)),)
            self._add("output", name, nir.Output(np.array(self._sizes(name))), made)
        return nir.NIRGraph(
            self._nodes,
            self._edges,
            {"made_by": "ftbc-onnx", "steps": self._plan.steps, "readout": str(self._plan.readout)},
        )

    def _sizes(self, tensor: str) -> tuple[int, ...]:
        return sizes(self._network.view, tensor)

    def _ones(self, tensor: str) -> np.ndarray:
        return np.ones(self._sizes(tensor)[0])

    def _add(self, kind: str, origin: str, node: Any, before: Names = ()) -> str:
        """A node, named so that the alphabetical order is the topological one, and its incoming edges."""
        name = f"n{len(self._nodes):04d}_{kind}"
        node.metadata = {"onnx": origin.replace("\0", "\\0")}  # HDF5 takes no zeros in text
        self._nodes[name] = node
        self._edges += [(source, name) for source in before]
        return name

    def _neuron(self, site: SpikingSite) -> str:
        """The neurons of a site; returns the node that sends the spikes, of height 1."""
        size = self._sizes(site.current)
        plan, theta = self._plan, self._theta(site)
        shift = np.broadcast_to(plan.biases[site.name].astype(np.float64).mean(0), theta.shape)
        if not self._soft:
            shift = shift + theta / (2 * plan.steps)
        current = self._write(site.current, theta, shift)
        ones = np.ones(size, np.float32)
        if not self._soft:
            below = np.nextafter(ones, np.float32(0))
            return self._add("if", site.name, nir.IF(ones, below, np.zeros_like(ones)), current)
        membrane = self._add("i", site.name, nir.I(ones), current)
        below = np.nextafter(ones / 2, np.float32(0))
        spikes = self._add("threshold", site.name, nir.Threshold(below), (membrane,))
        reset = self._add("scale", site.name, nir.Scale(-ones), (spikes,))
        self._edges.append((reset, membrane))
        return spikes

    def _theta(self, site: SpikingSite) -> np.ndarray:
        theta = self._plan.thresholds[site.name].astype(np.float64)
        return np.array(np.broadcast_to(theta, self._sizes(site.current)[:1]))

    def _unit(self, tensor: str) -> np.ndarray:
        """The unit per channel in which a tensor costs nothing to have."""
        site = self._sites.get(tensor)
        if site is not None:
            return self._theta(site) * self._plan.gains.get(site.name, np.ones(1)).astype(np.float64)
        layer = self._layers.get(tensor)
        if layer is None or isinstance(layer, Weighted | Joined):
            return self._ones(tensor)
        unit = self._unit(layer.sources[0] if isinstance(layer, Sum) else layer.source)
        return np.repeat(unit, len(self._ones(tensor)) // len(unit))

    def _write(self, tensor: str, unit: np.ndarray, shift: np.ndarray) -> Names:
        """The nodes whose outputs sum to (tensor + shift) / unit."""
        key = (tensor, unit.tobytes(), shift.tobytes())
        if key not in self._done:
            self._done[key] = self._write_new(tensor, unit, shift)
        return self._done[key]

    def _write_new(self, tensor: str, unit: np.ndarray, shift: np.ndarray) -> Names:
        layer = self._layers.get(tensor)
        if isinstance(layer, Weighted):
            return (self._weighted(tensor, layer, unit, shift),)
        if isinstance(layer, Joined):
            shifts = (shift, *(0 * shift for _ in layer.parts[1:]))
            return tuple(self._weighted(tensor, part, unit, by) for part, by in zip(layer.parts, shifts, strict=True))
        if isinstance(layer, Shifted):
            return self._write(layer.source, unit, shift + layer.shift)
        if isinstance(layer, Sum):
            return self._sum(tensor, layer, unit, shift)
        own = self._unit(tensor)
        if not np.array_equal(own, unit) or shift.any():
            here = self._write(tensor, own, np.zeros_like(shift))
            return (self._diagonal(here, tensor, own / unit, shift / unit),)
        if layer is None:
            return (self._inputs.get(tensor) or self._neurons[tensor],)
        source = self._write(layer.source, self._unit(layer.source), 0 * self._ones(layer.source))
        return (self._pool(tensor, layer, source) if isinstance(layer, Pool) else self._flat(tensor, layer, source),)

    def _weighted(self, tensor: str, layer: Weighted, unit: np.ndarray, shift: np.ndarray) -> str:
        incoming = self._unit(layer.source)
        source = self._write(layer.source, incoming, np.zeros_like(incoming))
        weight = _dense(layer.weight.astype(np.float64), layer.groups)
        tail = (1,) * (weight.ndim - 2)
        weight = weight * incoming.reshape(1, -1, *tail) / unit.reshape(-1, 1, *tail)
        return self._layer(tensor, layer, weight, (layer.bias + shift) / unit, source)

    def _layer(self, origin: str, layer: Weighted, weight: np.ndarray, bias: np.ndarray, source: Names) -> str:
        weight, bias = weight.astype(np.float32), bias.astype(np.float32)
        if weight.ndim == 2:
            return self._add("affine", self._origin(origin), nir.Affine(weight, bias), source)
        node = nir.Conv2d(None, weight, layer.stride, layer.padding, layer.dilation, 1, bias)
        return self._add("conv", self._origin(origin), node, source)

    def _diagonal(self, source: Names, tensor: str, scale: np.ndarray, shift: np.ndarray) -> str:
        """One weight per channel, as a layer that every importer knows."""
        weight = np.diag(scale).reshape(len(scale), len(scale), *(1,) * (len(self._sizes(tensor)) - 1))
        return self._layer(tensor, Weighted(tensor, weight, shift), weight, shift, source)

    def _sum(self, tensor: str, layer: Sum, unit: np.ndarray, shift: np.ndarray) -> Names:
        """Every branch in the same unit; the shift goes where there is a bias to take it."""
        free = [isinstance(self._layers.get(name), Weighted | Joined | Shifted | Sum) for name in layer.sources]
        taker = free.index(True) if any(free) else 0
        made: list[str] = []
        for i, name in enumerate(layer.sources):
            for part in self._write(name, unit, shift if i == taker else 0 * shift):
                if part in made:  # NIR has no two edges between the same nodes
                    part = self._diagonal((part,), tensor, self._ones(tensor), 0 * shift)  # noqa: PLW2901
                made.append(part)
        return tuple(made)

    def _pool(self, tensor: str, layer: Pool, source: Names) -> str:
        node = nir.AvgPool2d(np.array(layer.kernel), np.array(layer.stride), np.array(layer.padding))
        made = self._add("avgpool", self._origin(tensor), node, source)
        if not layer.flat:
            return made
        return self._add("flatten", self._origin(tensor), self._flatten((len(self._ones(tensor)), 1, 1)), (made,))

    def _flat(self, tensor: str, layer: Flat, source: Names) -> str:
        return self._add("flatten", self._origin(tensor), self._flatten(self._sizes(layer.source)), source)

    @staticmethod
    def _flatten(size: tuple[int, ...]) -> Any:
        return nir.Flatten({"input": np.array(size)}, 0, -1)

    def _origin(self, tensor: str) -> str:
        node = self._network.view.producers.get(tensor)
        return tensor if node is None else node.name


def _dense(weight: np.ndarray, groups: int) -> np.ndarray:
    """Weights of a grouped layer [O, I/groups, ...] with the zeros between groups written out, [O, I, ...].

    nir 1.0.8 does not read back a grouped Conv2d (it takes I/groups for its channels), and importers refuse them.
    """
    outputs, inputs = len(weight) // groups, weight.shape[1]
    dense = np.zeros((len(weight), groups * inputs, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        dense[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return dense

"""Fit layers again to the spikes that they read.

The mean s of what T steps bring to a layer is not the activation that its weights were trained on: spikes are few, and
come unevenly. Biases put the mean of a channel right; the rest depends on the input, and a part of it can be told from
the other inputs of the layer. So the layer before a site gets the weights that come closest to the ANN's current, in
the least squares over calibration samples (`ftbc_onnx.least_squares`):

    W' = argmin  mean |z - (W' s + c' + shortcuts)|^2  +  ridge |W' - W|^2

z being what the ANN has there, and the shortcuts what the SNN has, so that what they bring is made up for as well.
Sites are gone through in topological order, each at all T steps: its layers are fitted to what really comes of those
before it, fitted already, and its neurons get rough biases. Every layer is computed a few times, however deep the
network is. Forward passes and linear equations: no gradient, no label.

Which layers, and those that no site stands behind, the last one for example: `ftbc_onnx.graph.fittable`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ftbc_onnx.graph.emit.one_site import ACTIVATION, CURRENTS, SPIKES, emit_one_site
from ftbc_onnx.graph.fittable import fittable_layers
from ftbc_onnx.graph.observe import expose_tensors, mean_activation_name, observe_ann
from ftbc_onnx.graph.refitted import with_layers
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import attributes
from ftbc_onnx.least_squares import refit_conv, refit_gemm
from ftbc_onnx.plan import Layer, SpikingPlan, SpikingSite
from ftbc_onnx.rules import ROUGH
from ftbc_onnx.runtime import Device, Session
from ftbc_onnx.simulate import Feeds, Simulation, Values

STRENGTHS = (0.1, 1.0)
"""Of the ridge (`ftbc_onnx.least_squares.ridge`): what is tried."""


def elements(neurons: Mapping[str, int], steps: int) -> int:
    """About how many numbers `refit` holds per sample: the ANN at all sites, and T steps around the largest one."""
    return max(2 * sum(neurons.values()) + 8 * steps * max(neurons.values()), 1)


def refit(
    network: Network,
    plan: SpikingPlan,
    feeds: Feeds,
    device: Device,
    *,
    strength: float = STRENGTHS[0],
    biases: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> dict[str, Layer]:
    """The layers of an asynchronous plan, fitted again, by the name of their node.

    Args:
        network: the normalised ANN.
        plan: its sites, thresholds and gains are used, its biases are not.
        feeds: calibration samples.
        device: where to run.
        strength: of the ridge.
        biases: whether the neurons will have biases.
        progress: called after each site with the number of sites done.
    """
    walk = _Walk(network, plan, feeds, device, strength, biases=biases, progress=progress)
    walk.run_synchronous()
    return walk.layers


class _Walk(Simulation):
    """A simulation site by site in which layers are fitted, and biases found, on the way."""

    def __init__(
        self,
        network: Network,
        plan: SpikingPlan,
        feeds: Feeds,
        device: Device,
        strength: float,
        *,
        biases: bool,
        progress: Callable[[int], None],
    ) -> None:
        self._device, self._strength, self._progress = device, strength, progress
        self._rule = ROUGH if biases else None
        super().__init__(network, plan.with_layers({}), feeds)
        self.layers: dict[str, Layer] = {}
        self._targets = self._find_targets()
        watched = observe_ann(network.view.model, network.sites)
        wanted = sorted(set(self._targets.values()))
        self._exact = self._open(expose_tensors(watched, wanted)).run(
            feeds, [*wanted, *(mean_activation_name(site.name) for site in network.sites)]
        )
        self._last_read: dict[str, int] = dict.fromkeys(network.view.output_names, len(self._segments))
        for position, (segment, _) in enumerate(self._segments):
            for name in (*segment.reads, *([segment.cut.handed_out] if segment.cut else [])):
                self._last_read[name] = max(position, self._last_read.get(name, 0))

    def _open(self, model: Any) -> Session:
        return Session(model, self._device)

    def _find_targets(self) -> dict[str, str]:
        """What layers are fitted to, by the name of their node; their own outputs where it is not in their segment."""
        found = fittable_layers(self._network)
        for segment, _ in self._segments:
            nodes = [] if segment.model is None else segment.model.graph.node
            made = {name for node in nodes for name in node.output}
            for node in nodes:
                if node.name in found and found[node.name] not in made:
                    found[node.name] = node.output[0]
        return found

    def _prepare(self, position: int, session: Session | None, values: Sequence[Values]) -> Session | None:
        """Fit the layers of a segment, one after another; what nobody reads from here on is forgotten."""
        for now in values:
            for name in [name for name in now if self._last_read.get(name, -1) < position]:
                now.pop(name, None)
        segment = self._segments[position][0]
        fitted: dict[str, Layer] = {}
        for node in [] if segment.model is None else segment.model.graph.node:
            if node.name in self._targets:
                model = with_layers(segment.model, fitted)
                fitted[node.name] = self._fit(node, *self._arrive(node, model, segment.reads, values))
        self.layers.update(fitted)
        return self._open(with_layers(segment.model, fitted)) if fitted else session

    def _arrive(
        self, node: Any, model: Any, reads: Sequence[str], values: Sequence[Values]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Means over T steps: what a layer reads, and what is missing behind it to what it is fitted to."""
        source, own, wanted = node.input[0], node.output[0], self._targets[node.name]
        outputs = list(dict.fromkeys([own, wanted] if source in reads else [source, own, wanted]))
        session = self._open(expose_tensors(model, outputs))
        is_mean = node.output[0] in self._network.mean_form  # then so is what it reads
        total: list[np.ndarray] = []
        for now in values:
            fed = {name: now[name] for name in reads}
            found = {**fed, **session.run(fed, outputs)}
            step, shape = [found[source], found[wanted]], found[own].shape
            total = step if is_mean or not total else [old + new for old, new in zip(total, step, strict=True)]
        count = np.float32(1 if is_mean else len(values))
        missing = self._exact[wanted] - total[1] / count
        spread = tuple(axis for axis, size in enumerate(shape) if size < missing.shape[axis])  # by an Add
        return total[0] / count, missing.mean(spread, keepdims=True) if spread else missing

    def _fit(self, node: Any, x: np.ndarray, missing: np.ndarray) -> Layer:
        """The layer that makes what is missing of x, too."""
        weights, *constant = (np.asarray(self._network.view.constant(name)) for name in node.input[1:] if name)
        described = attributes(node)
        if node.op_type == "Conv":
            new, added = refit_conv(weights, x, missing, self._strength, described)
        else:
            new, added = refit_gemm(weights, x, missing, self._strength, transposed=bool(described.get("transB", 0)))
        bias = added + constant[0] if constant else added
        return Layer(np.asarray(new, np.float32), np.asarray(bias, np.float32))

    def _fire_all(self, site: SpikingSite, currents: list[np.ndarray]) -> list[np.ndarray]:
        """Spikes with biases found on the way."""
        session = self._open(emit_one_site(self._network, self._plan, site, self._rule))
        activation = self._exact[mean_activation_name(site.name)].reshape(site.channel_shape)
        spikes = session.run({CURRENTS: np.stack(currents), ACTIVATION: activation}, [SPIKES])[SPIKES]
        self._progress(1 + self._network.sites.index(site))
        return list(spikes)

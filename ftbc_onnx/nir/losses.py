"""What NIR cannot say of a spiking network, before anything is written.

NIR's integrate-and-fire primitive (`nir.IF`, nir 1.0) is

    dv/dt = R I,    z = [v > v_threshold],    v = v_reset where z = 1

It has no initial membrane and nothing that depends on the time step. Ours (`ftbc_onnx.neurons.integrate_and_fire`) is

    u[t] = (v[t-1] + x[t]) + b[t],    s[t] = theta [u[t] >= theta],    v[t] = u[t] - s[t],    v[-1] = theta/2

With a nearest expression, written with ``--lossy``:

1. soft reset: IF resets to 0, what exceeds theta is lost
2. initial membrane theta/2: spread over the T steps, theta/(2T) each
3. temporal biases other than zero: their mean over the T steps, in the bias of the layer before

Without one, refused even then:

4. neurons other than integrate-and-fire with rate coding
5. signed sites
6. the synchronous schedule
7. thresholds along another axis than 1
8. nodes that are no layer of `ftbc_onnx.graph.plain_layers`: MaxPool, padding that is not symmetric, ...

A layer that is applied to running means (behind ``--until``) is no loss: layers are affine, so that the mean of what
they make of every step is what they make of the mean.

With `soft_reset`, neurons are written as a loop of primitives, which says 1 and 2 (see `ftbc_onnx.nir.translate`).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ftbc_onnx.graph.plain_layers import Layer, Unsayable, layer_of, sizes, sources_of
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan, SpikingSite


@dataclass(frozen=True)
class Loss:
    """Something that NIR cannot say.

    Attributes:
        node: name of the node or site.
        what: what cannot be said.
        why: why not.
        nearest: what is written instead with ``--lossy``; None: nothing comes near, refused even then.
    """

    node: str
    what: str
    why: str
    nearest: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Survey:
    """What a network is in layers, by the tensor that each makes, and what cannot be said of it."""

    layers: dict[str, Layer]
    losses: tuple[Loss, ...]


def survey(network: Network, plan: SpikingPlan, soft_reset: bool = False) -> Survey:
    """Look at everything that the outputs depend on.

    Args:
        network: the normalised ANN.
        plan: its plan.
        soft_reset: whether neurons are written as loops.
    """
    layers: dict[str, Layer] = {}
    losses: list[Loss] = []
    sites = {site.spikes: site for site in plan.sites}
    if plan.neuron != NeuronSpec("if"):
        reason = "a NIR neuron sends one spike of one size, and takes none back: convert with --neuron if"
        losses.append(Loss("every site", f"neuron {plan.neuron}", reason))
    if plan.synchronous:
        losses.append(Loss("every site", "schedule synchronous", "NIR neurons fire as their currents come in"))
    wanted, seen = list(network.view.output_names), set[str]()
    inputs = {value.name for value in network.view.inputs}
    while wanted:
        tensor = wanted.pop()
        if tensor in seen:
            continue
        seen.add(tensor)
        if tensor in sites:
            losses += _of_site(network, plan, sites[tensor], soft_reset)
            wanted.append(sites[tensor].current)
            continue
        if tensor in inputs:
            losses += _of_shape(network, tensor, "input")
            continue
        node = network.view.producers.get(tensor)
        if node is None:
            losses.append(Loss(tensor, "constant output", "NIR has no constants"))
            continue
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        try:
            layers[tensor] = layer = layer_of(network.view, node)
            wanted += reversed(sources_of(layer))
        except Unsayable as error:
            losses.append(Loss(node.name, op, str(error)))
            wanted += [name for name in node.input if name in network.view.producers or name in inputs]
    order = {site.name: i for i, site in enumerate(plan.sites)}
    return Survey(layers, tuple(sorted(losses, key=lambda loss: order.get(loss.node, -1))))


def _of_shape(network: Network, tensor: str, what: str) -> list[Loss]:
    try:
        sizes(network.view, tensor)
    except Unsayable as error:
        return [Loss(tensor, what, str(error))]
    return []


def _of_site(network: Network, plan: SpikingPlan, site: SpikingSite, soft_reset: bool) -> list[Loss]:
    losses = _of_shape(network, site.current, "neurons")
    losses = [Loss(site.name, loss.what, loss.why) for loss in losses]
    if site.channel_axis not in (None, 1):
        losses.append(Loss(site.name, f"thresholds along axis {site.channel_axis}", "only axis 1 is written"))
    if site.signed:
        losses.append(Loss(site.name, "spikes of both signs", "a NIR neuron sends spikes of one sign"))
    if not soft_reset:
        losses.append(
            Loss(site.name, "soft reset", "nir.IF resets to v_reset", "a reset to 0: what exceeds theta is lost")
        )
        losses.append(
            Loss(site.name, "initial membrane theta/2", "nir.IF has none", f"a bias of theta/{2 * plan.steps} per step")
        )
    if plan.biases[site.name].any():
        nearest = f"their mean over {plan.steps} steps"
        losses.append(Loss(site.name, "temporal biases", "nothing in NIR depends on the time step", nearest))
    return losses

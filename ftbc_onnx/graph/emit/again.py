"""The ANN written once more beside itself, with other tensors in the place of its activations.

With a site's tensor replaced, everything downstream is what the ANN makes of the replacement. Other weights may take
the place of the ANN's: then what depends on them is written again too, though it may depend on no site.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ftbc_onnx.graph.builder import GraphBuilder
from ftbc_onnx.graph.classes import NodeClass
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.graph.view import node_inputs
from ftbc_onnx.plan import SpikingSite

Replace = Callable[[SpikingSite, str], str]
"""(site, its activation in the copy) -> the tensor that travels on in its place."""


def write_again(
    builder: GraphBuilder, network: Network, suffix: str, replace: Replace, weights: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Write the part of the ANN that depends on sites, or on the weights named, behind the ANN itself.

    Args:
        builder: where the ANN stands already, under its own names.
        network: the ANN.
        suffix: what the names of the copy end with.
        replace: called at every site.
        weights: initializers of the ANN -> tensors read in their place.

    Returns:
        Tensors of the ANN -> tensors of the copy, for all that were written again.
    """
    names = dict(weights or {})
    owner = {site.spikes: site for site in network.sites}
    for node in network.view.nodes:
        static = network.classes[node.name] is NodeClass.STATIC
        if static and not any(name in names for name in node_inputs(node)):
            continue
        made = builder.copy(node, names, suffix)
        names.update({old: replace(owner[old], new) if old in owner else new for old, new in made.items()})
    return names


def apply_site(builder: GraphBuilder, network: Network, site: SpikingSite, current: str, suffix: str) -> str:
    """The ANN's function of a site, applied to another current: name of the activation."""
    names = {site.current: current}
    for node in network.view.nodes:
        if node.name in site.nodes:
            names.update(builder.copy(node, names, suffix))
    return names[site.spikes]

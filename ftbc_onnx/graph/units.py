"""Spikes counted in units, and currents measured in them: names in a fused model (`ftbc_onnx.graph.fuse`).

A unit is the smallest spike of a site. Where it is 1, thresholds are in the layers around the site.
"""

from __future__ import annotations

import numpy as np
import onnx

from ftbc_onnx.graph.view import GraphView
from ftbc_onnx.neurons import Reversed
from ftbc_onnx.plan import SpikingSite

IN_UNITS = "in_units"
"""Last part of the name of what was brought into the units of a site."""


def height_name(site: str) -> str:
    """Tensor of what a spike of one unit of a site is worth, [C], where spikes are counted in units."""
    return f"{site}/height"


def is_in_units(view: GraphView, site: SpikingSite) -> bool:
    """Whether the spikes of a site of an emitted model are counted in units."""
    return height_name(site.name) in view.producers


def divisor_name(site: str) -> str:
    """Tensor of what the currents of a site are divided by, [C], where they are measured in units."""
    return f"{site}/divisor"


def threshold_name(site: str) -> str:
    """Initializer of a site's thresholds, [C]."""
    return f"{site}/threshold"


def first_membrane(steps: int) -> np.ndarray:
    """What is added to the biases of a turned site that come in at a layer: m[-1] at the first step, [T, 1]."""
    column = np.zeros((steps, 1), np.float32)
    column[0] = Reversed().start
    return column


def is_scale(node: onnx.NodeProto) -> bool:
    """Whether a node brings a shortcut into units: it is no layer of the ANN."""
    return node.op_type == "Conv" and f"/{IN_UNITS}" in node.name

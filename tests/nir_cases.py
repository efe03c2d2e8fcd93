"""What tests of NIR share: a small network, and what is said of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import eighths, make_plan, parse
from networks import THRESHOLDS

from ftbc_onnx.graph.sites import Network
from ftbc_onnx.nir.losses import Loss, survey
from ftbc_onnx.plan import SpikingPlan

T = 4


def mlp(**changes: str) -> onnx.ModelProto:
    """Two layers; `changes` replaces lines."""
    lines = {"c": "c = Gemm<transB=1>(x, w1, b1)", "r": "r = Relu(c)", "y": "y = Gemm<transB=1>(r, w2)", **changes}
    body = "\n".join(lines.values())
    return parse(
        f"g (float[N,3] x) => (float[N,2] y) {{ {body} }}",
        w1=eighths(4, 3, seed=1),
        b1=eighths(4, seed=2),
        w2=eighths(2, 4, seed=3),
    )


def stated(network: Network) -> dict[str, np.ndarray]:
    return {site.name: value for site, value in zip(network.sites, THRESHOLDS.values(), strict=True)}


def losses(network: Network, plan: SpikingPlan | None = None, soft_reset: bool = True) -> list[Loss]:
    return list(survey(network, plan or make_plan(network, T), soft_reset).losses)


def graph_of(network: Network, plan: SpikingPlan, soft_reset: bool = True) -> Any:
    pytest.importorskip("nir")
    from ftbc_onnx.nir.translate import translate

    found = survey(network, plan, soft_reset)
    assert all(loss.nearest for loss in found.losses), found.losses
    return translate(network, plan, found.layers, soft_reset)


def kinds(graph: Any) -> list[str]:
    return [type(graph.nodes[name]).__name__ for name in sorted(graph.nodes)]


def reread(graph: Any, path: Path) -> Any:
    import nir

    nir.write(path, graph)
    return nir.read(path)

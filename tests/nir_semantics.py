"""NIR's equations in NumPy, one step per unit of time, edges back one step late: what runtimes are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np


def run_nir(graph: Any, value: np.ndarray, steps: int) -> np.ndarray:
    """Outputs of a graph of one input and one output at every step, [T, B, ...].

    Nodes are taken in alphabetical order, which in our files is the topological one.
    """
    names = sorted(graph.nodes)
    state: dict[str, Any] = {}
    before: dict[str, np.ndarray] = {}
    rows = []
    for _ in range(steps):
        now: dict[str, np.ndarray] = {}
        for name in names:
            node = graph.nodes[name]
            if type(node).__name__ == "Input":
                now[name] = value
                continue
            total: Any = 0.0
            for source, target in graph.edges:
                if target == name:
                    total = total + (now[source] if source < name else before.get(source, 0.0))
            now[name] = _node(node, total, state, name)
            if type(node).__name__ == "Output":
                rows.append(now[name])
        before = now
    return np.stack(rows)


def _node(node: Any, x: Any, state: dict[str, Any], name: str) -> np.ndarray:
    kind = type(node).__name__
    if kind == "IF":
        v = state.get(name, node.v_reset) + node.r * x
        z = (v > node.v_threshold).astype(np.float32)
        state[name] = np.where(z == 1, node.v_reset, v)
        return z
    if kind == "I":
        state[name] = state.get(name, np.float32(0)) + node.r * x
        return np.asarray(state[name])
    if kind == "Threshold":
        return (x > node.threshold).astype(np.float32)
    if kind == "Scale":
        return np.asarray(node.scale * x)
    if kind == "Affine":
        return np.asarray(x @ node.weight.T + node.bias)
    if kind == "Conv2d":
        return _conv(x, node)
    if kind == "AvgPool2d":
        windows = _windows(x, node.kernel_size, node.stride, node.padding, (1, 1))
        return np.asarray(windows.mean((-2, -1), dtype=np.float32))
    if kind == "Flatten":
        assert (node.start_dim, node.end_dim) == (0, -1)
        return np.asarray(x.reshape(len(x), -1))
    assert kind == "Output", kind
    return np.asarray(x)


def _windows(x: np.ndarray, kernel: Any, stride: Any, padding: Any, dilation: Any) -> np.ndarray:
    """[B, C, H', W', kh, kw]."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = kernel, stride, padding, dilation
    x = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    spread = np.lib.stride_tricks.sliding_window_view(x, ((kh - 1) * dh + 1, (kw - 1) * dw + 1), axis=(2, 3))
    return spread[:, :, ::sh, ::sw, ::dh, ::dw]


def _conv(x: np.ndarray, node: Any) -> np.ndarray:
    assert node.groups == 1
    windows = _windows(x, node.weight.shape[2:], node.stride, node.padding, node.dilation)
    made = np.einsum("bchwij,ocij->bohw", windows, node.weight)
    return np.asarray(made + node.bias.reshape(-1, 1, 1)).astype(np.float32)

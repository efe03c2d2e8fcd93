"""The published rule: a step against the error of the mean spike.

    e[t] = mean(s[t]) - mean(a),      b[t] <- b[t] - alpha * e[t]

means over everything but the channel axis, a the ANN's activation at the site, s[t] the spike at this very step (not a
running mean), upstream already corrected. The site fires again with the new bias before time moves on. Updates
accumulate from batch to batch.

Source: FTBC, arXiv 2403.18388, algorithm 1 (alpha = 0.4 on CIFAR, 0.5 on ImageNet). The published code subtracts its
bias; we add ours, so the sign here is the opposite of that code's.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.graph.emit.calibration import Probe


class PaperRule:
    """The published step with rate alpha."""

    name = "paper"

    def __init__(self, alpha: float) -> None:
        if not (np.isfinite(alpha) and alpha > 0):
            raise ConfigError(f"alpha is {alpha}: it must be a positive number (0.4 is the published one)")
        self.alpha = alpha

    def emit(self, probe: Probe) -> str:
        """b - alpha * (mean(s) - mean(a))."""
        sink = probe.sink
        error = sink.op("Sub", probe.mean_spikes(probe.bias), probe.activation, out="gap")
        return sink.op("Sub", probe.bias, sink.op("Mul", sink.constant(float(self.alpha)), error), out="bias")

    def combine(self, old: np.ndarray, new: np.ndarray, seen: int, samples: int) -> np.ndarray:  # noqa: ARG002
        """The next batch starts from where this one ended."""
        return new

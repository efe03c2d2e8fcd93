"""Integrate-and-fire without leak, soft reset, spikes of height theta.

    u[t] = (v[t-1] + x[t]) + b[t]
    s[t] = theta * [u[t] >= theta]
    v[t] = u[t] - s[t],      v[-1] = theta/2

Sources: QCFS (Bu et al., ICLR 2022, arXiv 2303.04347) for the soft reset and the half-threshold start; FTBC
(arXiv 2403.18388) for b, which we add. It fires on ``>=``, everywhere. The order of the additions is as written.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import SoftReset
from ftbc_onnx.sink import Sink


class IntegrateAndFire(SoftReset):
    """Binary spikes {0, theta}; the state is the membrane potential v."""

    name = "if"
    lowest = 0.0

    def spikes(self, u: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """Theta where u >= theta."""
        return np.where(u >= threshold, threshold, np.float32(0))

    def emit_spikes(self, sink: Sink, u: str, threshold: str, out: str | None = None) -> str:
        """The same: GreaterOrEqual, Where."""
        fires = sink.op("GreaterOrEqual", u, threshold)
        return sink.op("Where", fires, threshold, sink.constant(0.0), out=out)

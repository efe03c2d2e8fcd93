"""Integrate-and-fire without leak, soft reset, spikes of height theta.

    u[t] = (v[t-1] + x[t]) + b[t]
    s[t] = theta * [u[t] >= theta]
    v[t] = u[t] - s[t],      v[-1] = theta/2

Sources: QCFS (Bu et al., ICLR 2022, arXiv 2303.04347) for the soft reset and the half-threshold start; FTBC
(arXiv 2403.18388) for b, which we add. It fires on ``>=``, everywhere. The order of the additions is as written.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import ONE, ZERO, SoftReset, emit_truth
from ftbc_onnx.sink import Sink


class IntegrateAndFire(SoftReset):
    """Binary spikes {0, theta}; the state is the membrane potential v."""

    name = "if"

    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:  # noqa: ARG002
        """1 where u >= theta."""
        return np.where(u >= unit, ONE, ZERO)

    def emit_count(self, sink: Sink, u: str, unit: str, memory: str | None) -> str:  # noqa: ARG002
        """The same: GreaterOrEqual, Cast (in onnxruntime on a CPU twice as fast as Where)."""
        return emit_truth(sink, sink.op("GreaterOrEqual", u, unit))

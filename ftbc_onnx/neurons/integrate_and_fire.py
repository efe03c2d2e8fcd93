"""Integrate-and-fire without leak, soft reset, spikes of height theta.

    u[t] = (v[t-1] + x[t]) + b[t]
    s[t] = theta * [u[t] >= theta]
    v[t] = u[t] - s[t],      v[-1] = theta/2

Sources: QCFS (Bu et al., ICLR 2022, arXiv 2303.04347) for the soft reset and the half-threshold start; FTBC
(arXiv 2403.18388) for b, which we add. It fires on ``>=``, everywhere. The order of the additions is as written.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.soft_reset import ONE, ZERO, SoftReset
from ftbc_onnx.sink import Sink


class IntegrateAndFire(SoftReset):
    """Binary spikes {0, theta}; the state is the membrane potential v."""

    name = "if"

    def count(self, u: np.ndarray, unit: np.ndarray, sent: np.ndarray | None) -> np.ndarray:  # noqa: ARG002
        """1 where u >= theta."""
        return np.where(u >= unit, ONE, ZERO)

    def emit_count(self, sink: Sink, u: str, unit: str, sent: str | None) -> str:  # noqa: ARG002
        """The same: GreaterOrEqual, Where."""
        return sink.op("Where", sink.op("GreaterOrEqual", u, unit), sink.constant(1.0), sink.constant(0.0))

    def emit_spikes(
        self,
        sink: Sink,
        u: str,
        unit: str,
        sent: str | None,  # noqa: ARG002
        out: str | None = None,
    ) -> tuple[str, str | None]:
        """Theta or 0 at once: one operator less than theta times the count, which nobody remembers."""
        fires = sink.op("GreaterOrEqual", u, unit)
        return sink.op("Where", fires, unit, sink.constant(0.0), out=out), None

"""Integrate-and-fire on currents of the other sign, in units of theta: every operation is one that layers have, too.

With x' = -x/theta and b' = -b/theta, the membrane m = -v/theta goes through

    p[t] = (m[t-1] + x'[t]) + b'[t]
    s[t] = clip(-2^24 * p[t] + (1 - 2^24), 0, 1)          = [p[t] <= -1], exactly
    m[t] = p[t] + s[t],      m[-1] = -1/2

The product is by a power of two, and so exact. At p = -1 the sum is 1; at the next float above, -1 + 2^-24, it is 0,
and at the next below, -1 - 2^-23, it is 3. Negation rounds nothing: s is bitwise what `IntegrateAndFire` with theta = 1
fires on x/theta and b/theta.

What it is for: a reset by addition, and a HardSigmoid instead of a comparison, stay in the layout that onnxruntime's
convolutions compute in on a CPU, so that no tensor is reordered between layers.
"""

from __future__ import annotations

import numpy as np

from ftbc_onnx.neurons.integrate_and_fire import IntegrateAndFire
from ftbc_onnx.neurons.protocol import State, StateNames
from ftbc_onnx.neurons.soft_reset import ONE, ZERO
from ftbc_onnx.sink import Sink

SLOPE = -float(2**24)
"""Of the step function."""


class Reversed(IntegrateAndFire):
    """Binary spikes {0, 1}; the state is m. The unit is 1."""

    def __init__(self, start: float = -0.5) -> None:
        """Give it m[-1]: 0 where the first bias holds it."""
        self.start = start

    def step(self, current: np.ndarray, state: State, unit: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, State]:
        """The equations above, in their order."""
        p = (state[0] + current) + bias
        s = np.where(p <= -unit, ONE, ZERO)
        return s, (p + s,)

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, unit: str, bias: str, *, out: str = "spikes"
    ) -> tuple[str, StateNames]:
        """The same: Add, HardSigmoid, Add."""
        (drive,) = self.emit_hold(sink, current, state, unit)
        p = sink.op("Add", drive, bias, out="u")
        s = sink.op("HardSigmoid", p, out=out, alpha=SLOPE, beta=1.0 + SLOPE)
        return s, (sink.op("Add", p, s, out="membrane"),)

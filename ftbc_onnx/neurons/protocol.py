"""What every neuron states: one time step, once in NumPy and once as standard ONNX operators.

State goes in and comes out. The two statements use the same order of floating-point operations, so that they agree
bitwise; tests check it for every neuron of the registry.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ftbc_onnx.sink import Sink

State = tuple[np.ndarray, ...]
StateNames = tuple[str, ...]


class Neuron(Protocol):
    """One time step of a population of neurons.

    Shapes: current, spikes and membrane are the site's tensor, [B, C, H, W] say; threshold, unit and bias are broadcast
    against it, [1, C, 1, 1] (`SpikingSite.channel_shape`). The initial state has the unit's shape and broadcasts; a
    number that all neurons share, and go on sharing, has shape [1].
    """

    name: str
    levels: int
    """K: how many units the largest spike has, theta = K * unit."""
    lowest: float
    """The lowest spike, in units of theta: 0, or -1 for neurons that send both signs."""
    events: str
    """What its events are called in an emitted graph: ``spikes``, or ``events`` where other numbers travel on."""

    def unit(self, threshold: np.ndarray) -> np.ndarray:
        """lambda, the height of the smallest spike, computed once from theta."""
        ...

    def emit_unit(self, sink: Sink, threshold: str) -> str:
        """The same as operators."""
        ...

    def initial_state(self, unit: np.ndarray) -> State:
        """State before the first step."""
        ...

    def emit_initial_state(self, sink: Sink, unit: str) -> StateNames:
        """The same as operators, for a unit that is no constant."""
        ...

    def step(self, current: np.ndarray, state: State, unit: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, State]:
        """One step in NumPy: (spikes, new state)."""
        ...

    def emit_step(
        self, sink: Sink, current: str, state: StateNames, unit: str, bias: str, *, out: str = "spikes"
    ) -> tuple[str, StateNames]:
        """One step as standard operators: names of (spikes, new state); the spikes are called `out`."""
        ...

    def emit_hold(self, sink: Sink, current: str, state: StateNames, unit: str) -> StateNames:
        """The part of a step that does not depend on the bias, computed once for a rule that tries many."""
        ...

    def emit_events(self, sink: Sink, held: StateNames, unit: str, bias: str) -> str:
        """Events with this bias, in units: whole numbers, the state left alone."""
        ...

    def emit_height(self, sink: Sink, unit: str) -> str:
        """What an event of one unit adds to what travels on, spikes = height * events + base."""
        ...

    def emit_base(self, sink: Sink, held: StateNames) -> str | None:
        """What travels on besides the events; None: nothing."""
        ...

"""A plan run in NumPy, step by step and site by site.

The linear parts are computed by sessions of the ANN cut into segments at its sites, neurons and running means in NumPy,
with graph optimisations off: an emitted model must agree to the last bit (`ftbc_onnx.verify`).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np

from ftbc_onnx.graph.cut import Cut, Segment, cut_network
from ftbc_onnx.graph.refitted import refitted
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.runtime import ONE_THREAD, Session

Feeds = Mapping[str, np.ndarray]
Values = MutableMapping[str, np.ndarray]


_UNBOUNDED = np.errstate(over="ignore", invalid="ignore")  # data may be beyond all bounds


def simulate(network: Network, plan: SpikingPlan, feeds: Feeds, steps: int | None = None) -> dict[str, np.ndarray]:
    """Run a plan in NumPy: the running mean of every output that depends on spikes, [T, B, ...].

    Args:
        network: the normalised ANN.
        plan: sites, thresholds and biases.
        feeds: inputs of the ANN.
        steps: steps to run; None: all of the plan's, and so for a synchronous plan in any case.
    """
    simulation = Simulation(network, plan, feeds)
    return simulation.run_synchronous() if plan.synchronous else simulation.run(steps or plan.steps)


class Simulation:
    """A plan on its way through its steps."""

    def __init__(self, network: Network, plan: SpikingPlan, feeds: Feeds) -> None:
        """Open the segments of a network."""
        network, plan = refitted(network, plan)
        self._network, self._plan = network, plan
        self._segments = [
            (segment, None if segment.model is None else self._open(segment.model)) for segment in cut_network(network)
        ]
        self._values = {name: np.asarray(value) for name, value in feeds.items()}
        self._neurons = {s.name: plan.neuron_of(s) for s in plan.sites}
        self._units = {
            s.name: self._neurons[s.name].unit(plan.thresholds[s.name].reshape(s.channel_shape)) for s in plan.sites
        }
        self.states = {name: self._neurons[name].initial_state(unit) for name, unit in self._units.items()}
        self._entered = network.entering("bias")
        self._sums: dict[str, np.ndarray] = {}
        self._totals: dict[str, np.ndarray] = {}
        self._dropped: dict[str, np.ndarray] = {}

    def _open(self, model: Any) -> Session:
        """A session with one thread: a network has many segments, and every session would keep threads of its own."""
        return Session(model, ONE_THREAD, optimise=False)

    @_UNBOUNDED
    def run(self, steps: int) -> dict[str, np.ndarray]:
        """The running means of the outputs, [T, B, ...]."""
        rows = []
        for t in range(steps):
            means: Values = {}
            for segment, session in self._segments:
                self._compute(segment, session, self._values, t)
                cut = segment.cut
                if cut is None:
                    continue
                if cut.site is not None:
                    self._values[cut.fed_in] = self._at_site(cut, cut.site, self._values[cut.handed_out], t)
                else:
                    self._convert(cut, self._values, means, t)
            rows.append(self._outputs(self._values, means, t))
        return _stack(rows)

    @_UNBOUNDED
    def run_synchronous(self) -> dict[str, np.ndarray]:
        """The same, every segment at all T steps before the next segment."""
        values: list[Values] = [ChainMap({}, self._values) for _ in range(self._plan.steps)]
        means: list[Values] = [{} for _ in values]
        for position, (segment, opened) in enumerate(self._segments):
            session = self._prepare(position, opened, values)
            for t, now in enumerate(values):
                self._compute(segment, session, now, t)
            cut = segment.cut
            if cut is None:
                continue
            if cut.site is not None:
                fired = self._fire_all(cut.site, [now[cut.handed_out] for now in values])
                for now, spikes in zip(values, fired, strict=True):
                    now[cut.fed_in] = spikes
            else:
                for t, now in enumerate(values):
                    self._convert(cut, now, means[t], t)
        return _stack([self._outputs(now, means[t], t) for t, now in enumerate(values)])

    def _prepare(self, position: int, session: Session | None, values: Sequence[Values]) -> Session | None:  # noqa: ARG002
        """What a segment is run with; here, what it was opened with."""
        return session

    def _compute(self, segment: Segment, session: Session | None, values: Values, t: int) -> None:
        """Run a segment at step t; what does not depend on t once, for every step."""
        if session is not None and (segment.temporal or t == 0):
            found = session.run({name: values[name] for name in segment.reads})
            (values if segment.temporal else self._values).update(found)

    def _convert(self, cut: Cut, values: Values, means: Values, t: int) -> None:
        """A current to a mean, which `means` remembers, or a mean to a current."""
        value = values[cut.handed_out]
        if cut.kind == "to_mean":
            values[cut.fed_in] = means[cut.handed_out] = self._accumulate(cut.handed_out, value, t)
        else:
            values[cut.fed_in] = self._difference(cut.handed_out, value, t)

    def _outputs(self, values: Values, means: Values, t: int) -> dict[str, np.ndarray]:
        """Running means of the outputs after step t."""
        found = {}
        for name in self._network.view.output_names:
            if name in means:
                found[name] = means[name]
            elif name in self._network.temporal:
                value = values[name]
                found[name] = value if name in self._network.mean_form else self._accumulate(name, value, t)
        return {name: self._delayed(name, mean, t) for name, mean in found.items()}

    def _delayed(self, name: str, mean: np.ndarray, t: int) -> np.ndarray:
        """The running mean of an output over the readout's window (`ftbc_onnx.window`)."""
        window = self._plan.readout
        if t + 1 < window.start or not window.start:
            return mean
        wide = mean.astype(np.float32) if mean.dtype == np.float16 else mean
        number = wide.dtype.type
        total = wide * number(t + 1) if name in self._network.mean_form else self._sums[name]
        if t + 1 == window.start:
            self._dropped[name] = total
            return mean
        return np.asarray((total - self._dropped[name]) / number(window.count(t)), dtype=mean.dtype)

    def _at_site(self, cut: Cut, site: SpikingSite, value: np.ndarray, t: int) -> np.ndarray:
        """Spikes of a current; or the sum with a site's bias at step t, or with its membrane, where that comes in."""
        if cut.kind == "fire":
            return self.fire(site, value, t)
        if cut.kind == "bias":
            return np.asarray(self._plan.biases[site.name][t] + value)
        membrane, self.states[site.name] = self.states[site.name][0], (np.zeros(1, np.float32),)
        return np.asarray(value + membrane)

    def potential(self, site: SpikingSite, current: np.ndarray, t: int) -> np.ndarray:
        """u[t] of a site before it fires: membrane, current and bias."""
        return np.asarray((self.states[site.name][0] + current) + self._bias(site, t))

    def _bias(self, site: SpikingSite, t: int) -> np.ndarray:
        """The bias of a site at step t; 0 where it came in before."""
        if site.name in self._entered:
            return np.zeros(1, np.float32)
        return np.asarray(self._plan.biases[site.name][t].reshape(site.channel_shape))

    def fire(self, site: SpikingSite, current: np.ndarray, t: int) -> np.ndarray:
        """Spikes of a site at step t; its state moves on."""
        bias = self._bias(site, t)
        spikes, state = self._neurons[site.name].step(current, self.states[site.name], self._units[site.name], bias)
        self.states[site.name] = state
        return spikes

    def _fire_all(self, site: SpikingSite, currents: list[np.ndarray]) -> list[np.ndarray]:
        biases = [row.reshape(site.channel_shape) for row in self._plan.biases[site.name]]
        return self._plan.layer_of(site).fire(currents, self._units[site.name], biases)

    def _accumulate(self, name: str, current: np.ndarray, t: int) -> np.ndarray:
        self._sums[name] = self._sums[name] + current if t else current
        return self._sums[name] / np.float32(t + 1)

    def _difference(self, name: str, mean: np.ndarray, t: int) -> np.ndarray:
        total = mean * np.float32(t + 1)
        value = total - self._totals[name] if t else total
        self._totals[name] = total
        return value


def _stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """[T, B, ...] per name, of one record per step."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

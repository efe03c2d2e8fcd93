"""Verify an emitted model: against a NumPy run of its plan, and in two batch sizes.

The NumPy run (`simulate`) goes through the plan step by step and site by site: the linear parts are computed by
sessions of the ANN cut into segments at its sites, neurons and running means in NumPy. With graph optimisations off,
the emitted model must agree with it to the last bit.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping, Sequence

import numpy as np

from ftbc_onnx.errors import VerificationError
from ftbc_onnx.graph.cut import Cut, Segment, cut_network
from ftbc_onnx.graph.emit.unrolled import Emitted
from ftbc_onnx.graph.free_batch import baked_reshapes
from ftbc_onnx.graph.observe import expose_running_means, running_mean_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.results import VerificationResult
from ftbc_onnx.runtime import CPU, Session
from ftbc_onnx.step_runner import StepRunner

Feeds = Mapping[str, np.ndarray]
Values = MutableMapping[str, np.ndarray]

MOST_RUNS = 2000
"""Runs of segments that a verification may take; of a long T, only the first steps are compared.

A synchronous plan has no first steps: all are run."""

_CLOSE = 1e-3
_BATCH_CLOSE = 0.05


def simulate(network: Network, plan: SpikingPlan, feeds: Feeds, steps: int | None = None) -> dict[str, np.ndarray]:
    """Run a plan in NumPy: the running mean of every output that depends on spikes, [T, B, ...].

    Args:
        network: the normalised ANN.
        plan: sites, thresholds and biases.
        feeds: inputs of the ANN.
        steps: steps to run; None: all of the plan's, and so for a synchronous plan in any case.
    """
    simulation = _Simulation(network, plan, cut_network(network), feeds)
    return simulation.run_synchronous() if plan.synchronous else simulation.run(steps or plan.steps)


class _Simulation:
    def __init__(self, network: Network, plan: SpikingPlan, segments: Sequence[Segment], feeds: Feeds) -> None:
        self._network, self._plan = network, plan
        self._segments = [
            (segment, None if segment.model is None else Session(segment.model, optimise=False)) for segment in segments
        ]
        self._values = {name: np.asarray(value) for name, value in feeds.items()}
        self._neurons = {s.name: plan.neuron_of(s) for s in plan.sites}
        self._units = {
            s.name: self._neurons[s.name].unit(plan.thresholds[s.name].reshape(s.channel_shape)) for s in plan.sites
        }
        self._states = {name: self._neurons[name].initial_state(unit) for name, unit in self._units.items()}
        self._entered = network.entering("bias")
        self._sums: dict[str, np.ndarray] = {}
        self._totals: dict[str, np.ndarray] = {}
        self._dropped: dict[str, np.ndarray] = {}

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

    def run_synchronous(self) -> dict[str, np.ndarray]:
        """The same, every segment at all T steps before the next segment."""
        values: list[Values] = [ChainMap({}, self._values) for _ in range(self._plan.steps)]
        means: list[Values] = [{} for _ in values]
        for segment, session in self._segments:
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
        window, number = self._plan.readout, mean.dtype.type
        if t + 1 < window.start or not window.start:
            return mean
        total = mean * number(t + 1) if name in self._network.mean_form else self._sums[name]
        if t + 1 == window.start:
            self._dropped[name] = total
            return mean
        return np.asarray((total - self._dropped[name]) / number(window.count(t)))

    def _at_site(self, cut: Cut, site: SpikingSite, value: np.ndarray, t: int) -> np.ndarray:
        """Spikes of a current; or the sum with a site's bias at step t, or with its membrane, where that comes in."""
        if cut.kind == "fire":
            return self._fire(site, value, t)
        if cut.kind == "bias":
            return np.asarray(self._plan.biases[site.name][t] + value)
        membrane, self._states[site.name] = self._states[site.name][0], (np.zeros(1, np.float32),)
        return np.asarray(value + membrane)

    def _fire(self, site: SpikingSite, current: np.ndarray, t: int) -> np.ndarray:
        bias = np.zeros(1, np.float32)
        if site.name not in self._entered:
            bias = self._plan.biases[site.name][t].reshape(site.channel_shape)
        spikes, state = self._neurons[site.name].step(current, self._states[site.name], self._units[site.name], bias)
        self._states[site.name] = state
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


def run_through(emitted: Emitted, plan: SpikingPlan) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """How to run an emitted model of any form through its T steps, without optimisations: outputs and running means."""
    outputs = [readout.output for readout in emitted.readouts]
    if emitted.form == "step":
        runner = StepRunner(emitted.model, plan, CPU, optimise=False)

        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            runner.reset()
            rows = [runner.step(feeds) for _ in range(plan.steps)]
            means = {running_mean_name(name): np.stack([row[name] for row in rows]) for name in outputs}
            return {**means, **{name: rows[-1][name] for name in outputs}}

        return run
    session = Session(expose_running_means(emitted.model, emitted.readouts), optimise=False)
    return lambda feeds: session.run(feeds, [*map(running_mean_name, outputs), *outputs])


def verify(emitted: Emitted, network: Network, plan: SpikingPlan, feeds: Feeds) -> VerificationResult:
    """Compare an emitted model with a NumPy run of its plan, and with itself in another batch size.

    Args:
        emitted: the emitted model, and where its outputs are found after every step.
        network: the normalised ANN.
        plan: the plan that was emitted.
        feeds: a few samples; with a free batch, the first one is also run alone.

    Raises:
        VerificationError: they differ by more than rounding and a few spikes.
    """
    few = max(1, min(plan.steps, MOST_RUNS // max(1, len(network.sites))))
    steps = plan.steps if plan.synchronous else few
    expected = simulate(*(emitted.twin or (network, plan)), feeds, steps)
    run, names = run_through(emitted, plan), [running_mean_name(readout.output) for readout in emitted.readouts]
    found = run(feeds)
    bitwise, largest = True, 0.0
    for readout in emitted.readouts:
        ours, theirs = found[running_mean_name(readout.output)][:steps], expected[readout.output]
        if ours.shape != theirs.shape:
            raise VerificationError(
                f"output '{readout.output}' has shape {ours.shape[1:]}, its plan gives {theirs.shape[1:]}"
            )
        for mine, other in ((ours, theirs), (found[readout.output], found[running_mean_name(readout.output)][-1])):
            bitwise = bitwise and np.array_equal(mine, other, equal_nan=True)
            largest = max(largest, _relative(_distance(mine, other).max(initial=0), _size(other).max(initial=0)))
    if largest > _CLOSE:
        raise VerificationError(
            f"the emitted model differs from its plan by {largest:.1e} of its largest output: "
            "please report this, with the model"
        )
    rows = len(next(iter(feeds.values())))
    sizes: tuple[int, ...] = (rows,)
    difference = 0.0
    if network.static_batch is None and rows > 1:
        alone = run({name: value[:1] for name, value in feeds.items()})
        sizes = (1, rows)
        difference = max(_batch_difference(found[name], alone[name], network) for name in names)
    return VerificationResult(rows, steps, bitwise, largest, sizes, difference)


def _batch_difference(many: np.ndarray, alone: np.ndarray, network: Network) -> float:
    """Between the first sample of a batch and the same sample alone; the batch, if any, is on axis 1 of [T, B, ...]."""
    if many.ndim == alone.ndim == 1:
        return 0.0
    if alone.shape[1:2] != (1,) or many.shape[2:] != alone.shape[2:]:
        raise VerificationError(
            f"a batch of one gives an output of shape {alone.shape[1:]}, a batch of several one of {many.shape[1:]}: "
            f"the model fixes its batch inside ({_suspect(network)}); export it with a dynamic batch"
        )
    first = many[:, :1]
    difference = _relative(_distance(first, alone).mean(), max(_size(first).mean(), _size(alone).mean()))
    if difference > _BATCH_CLOSE:
        raise VerificationError(
            f"the output of a sample changes by {difference:.1%} with the batch it is in: the model mixes the samples "
            f"of a batch ({_suspect(network)}); export it with a dynamic batch"
        )
    return difference


def _suspect(network: Network) -> str:
    """What probably ties a model to one batch: the first Reshape with a constant batch, by name."""
    baked = baked_reshapes(network.view)
    return f"Reshape '{baked[0]}' has a constant batch" if baked else "a reduction over axis 0, for example"


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| elementwise, for numbers of any kind; infinite where one is not finite and the other is not the same."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    return np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.where(np.isnan(gap), np.inf, gap))


def _size(a: np.ndarray) -> np.ndarray:
    """|a| elementwise, 0 where it is NaN or infinite."""
    a = a.astype(np.float64)
    return np.where(np.isfinite(a), np.abs(a), 0.0)


def _relative(value: float, scale: float) -> float:
    return float(value) / max(float(scale), float(np.finfo(np.float32).tiny))

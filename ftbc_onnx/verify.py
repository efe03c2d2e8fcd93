"""Verify an emitted model: against a NumPy run of its plan, and in two batch sizes.

The NumPy run (`ftbc_onnx.simulate`) goes through the plan step by step and site by site. With graph optimisations off,
the emitted model must agree with it to the last bit. A fused model agrees with a run of what it was fused into; that
one's potentials, if every site is given the spikes of the plan itself, must be those of the plan but for rounding.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ftbc_onnx.batching import Batching
from ftbc_onnx.config import check_positive
from ftbc_onnx.data import DataSource, random_source
from ftbc_onnx.errors import ConfigError, ModelError, VerificationError
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.one_step import STEP
from ftbc_onnx.graph.emit.unrolled import Emitted
from ftbc_onnx.graph.files import input_specs, read_model
from ftbc_onnx.graph.free_batch import baked_reshapes
from ftbc_onnx.graph.fuse import Fused
from ftbc_onnx.graph.normalise import Normalised
from ftbc_onnx.graph.observe import expose_running_means, running_mean_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.per_sample import axis_of_samples, per_sample
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.results import VerificationResult
from ftbc_onnx.runtime import ONE_THREAD, Session
from ftbc_onnx.simulate import Feeds, Simulation, simulate
from ftbc_onnx.spiking_file import read_spiking
from ftbc_onnx.step_runner import StepRunner

MOST_RUNS = 2000
"""Runs of segments that a verification may take; of a long T, only the first steps are compared.

A synchronous plan has no first steps: all are run."""

SAMPLES = 2
"""Samples that are compared, unless more are asked for: every step of every neuron takes part in each."""

_ADVICE = "please report this, with the model"
_OR_ORIGINAL = "; if another tool has changed the file since, give it as it was written with --original"
_CLOSE = 1e-3
_BATCH_CLOSE = 0.05
_FUNCTION_CLOSE = 0.05
_REWRITTEN_CLOSE = 0.01


def run_through(emitted: Emitted, plan: SpikingPlan) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """How to run an emitted model of any form through its T steps, without optimisations and as `simulate` does."""
    outputs = [readout.output for readout in emitted.readouts]
    if emitted.form == "step":
        runner = StepRunner(emitted.model, plan, ONE_THREAD, optimise=False)

        def run(feeds: Feeds) -> dict[str, np.ndarray]:
            runner.reset()
            rows = [runner.step(feeds) for _ in range(plan.steps)]
            means = {running_mean_name(name): np.stack([row[name] for row in rows]) for name in outputs}
            return {**means, **{name: rows[-1][name] for name in outputs}}

        return run
    session = Session(expose_running_means(emitted.model, emitted.readouts), ONE_THREAD, optimise=False)
    return lambda feeds: session.run(feeds, [*map(running_mean_name, outputs), *outputs])


def verify(
    emitted: Emitted, network: Network, plan: SpikingPlan, feeds: Feeds, advice: str = _ADVICE
) -> VerificationResult:
    """Compare an emitted model with a NumPy run of its plan, and with itself in another batch size.

    Args:
        emitted: the emitted model, and where its outputs are found after every step.
        network: the normalised ANN.
        plan: the plan that was emitted.
        feeds: a few samples; with a free batch, the first one is also run alone.
        advice: what the error says to do if it is not what its plan says.

    Raises:
        VerificationError: they differ by more than rounding and a few spikes.
    """
    few = max(1, min(plan.steps, MOST_RUNS // max(1, len(network.sites))))
    steps = plan.steps if plan.synchronous else few
    twin, expected = emitted.twin, _expected(emitted, network, plan, feeds, steps)
    run, names = run_through(emitted, plan), [running_mean_name(readout.output) for readout in emitted.readouts]
    found = run(feeds)
    means = {readout.output: found[running_mean_name(readout.output)] for readout in emitted.readouts}
    every = _agreement([(name, ours[:steps], expected[name]) for name, ours in means.items()], axes=1)
    last = _agreement([(name, found[name], ours[-1]) for name, ours in means.items()])
    bitwise, largest = every[0] and last[0], max(every[1], last[1])
    if largest > _CLOSE:
        raise VerificationError(
            f"the emitted model differs from its plan by {largest:.1e} of its largest output: {advice}"
        )
    fusion = None if twin is None or plan.synchronous else fusion_error(network, plan, twin, feeds, steps)
    if fusion is not None and fusion > _CLOSE:
        raise VerificationError(
            f"the fused network differs from its plan by {fusion:.1e} of its largest potential: "
            "please report this, with the model, and use --form unrolled"
        )
    rows = len(next(iter(feeds.values())))
    sizes: tuple[int, ...] = (rows,)
    difference = 0.0
    if network.static_batch is None and rows > 1:
        alone = run({name: value[:1] for name, value in feeds.items()})
        sizes = (1, rows)
        difference = max(_batch_difference(name, found[name], alone[name], network, rows) for name in names)
    return VerificationResult(rows, steps, bitwise, largest, sizes, difference, fusion)


def few_samples(source: DataSource, static: int | None, samples: int = SAMPLES) -> Feeds:
    """The first samples of some data, at most so many; with a fixed batch, one batch."""
    batch, _ = next(Batching(static or min(samples, len(source)), static is not None).padded(source))
    return batch.feeds


def verify_file(
    model: str | os.PathLike[str] | bytes,
    ann: str | os.PathLike[str] | bytes,
    data: Any = None,
    *,
    original: str | os.PathLike[str] | bytes | None = None,
    preprocessing: Preprocessing | None = None,
    samples: int = SAMPLES,
) -> VerificationResult:
    """Verify a file that `convert` wrote, or what another tool has made of it since, against its plan.

    Args:
        model: path of the spiking network, or its bytes.
        ann: path of the ANN it was made from, or its bytes.
        data: samples for it, anything that `ftbc_onnx.data.open_data` takes; None: random numbers.
        original: the file as `convert` wrote it, whose metadata have the plan, if `model` is what another tool has made
            of it. Only outputs after T steps are compared then.
        preprocessing: what it sets goes before what the network was calibrated with (`SpikingFile.open`).
        samples: samples compared, at most (with a fixed batch, one batch).

    Raises:
        VerificationError: it does not compute what its plan says.
        ModelError: it cannot be read or run, or was made from another ANN.
        DataError: the data do not fit.
    """
    check_positive("samples", samples)
    file = read_spiking(model if original is None else original)
    _, network = file.ann(ann)
    plan, options, inputs = file.plan, file.options, input_specs(network.view.model)
    if data is not None:
        source = file.open(data, preprocessing, "verification", inputs, network.static_batch or samples)
    elif preprocessing is None:
        source = random_source(inputs, network.static_batch or samples, 0)
    else:
        raise ConfigError("preprocessing goes with data, which are not given: random numbers are taken as they are")
    feeds = few_samples(source, network.static_batch, samples)
    written = emit(network, plan, file.form, steps_input=options.steps_input, passes=options.fuse)
    if original is None:
        digest = file.record.get("plan_digest")  # older files have none
        if digest is not None and digest != plan.digest:
            raise VerificationError(f"thresholds, biases or layers are not those that were written{_OR_ORIGINAL}")
        emitted = replace(written, model=file.model, readouts=tuple(file.readouts))
        return verify(emitted, network, plan, feeds, f"{_ADVICE}{_OR_ORIGINAL}")
    rewritten = read_model(model)
    if file.form == "step" or STEP in {value.name for value in rewritten.graph.input}:
        raise ConfigError("--original goes with files of all T steps: one of a single step has no output after T steps")
    return _verify_outputs(replace(written, model=rewritten), network, plan, feeds)


def _verify_outputs(rewritten: Emitted, network: Network, plan: SpikingPlan, feeds: Feeds) -> VerificationResult:
    """Compare what a file gives after T steps with a NumPy run of the plan that it was written from.

    What has rewritten it has probably changed how sums round, and spikes amplify that: the mean difference counts.
    """
    expected = _expected(rewritten, network, plan, feeds, plan.steps)
    session, names = Session(rewritten.model, ONE_THREAD), [readout.output for readout in rewritten.readouts]
    missing = sorted({*names, *feeds} - {*session.output_names, *session.input_names})
    if missing:
        raise VerificationError(f"the file has no '{missing[0]}', which the original has: names must be kept")
    found = session.run(feeds, names)
    pairs = [(name, found[name], expected[name][-1]) for name in names]
    bitwise, largest = _agreement(pairs)
    mean = max(_relative(_distance(mine, other).mean(), _size(other).mean()) for _, mine, other in pairs)
    if mean > _REWRITTEN_CLOSE:
        raise VerificationError(
            f"outputs after T steps differ by {mean:.1%} on average from those of the original's plan: "
            f"{_REWRITTEN_CLOSE:.0%} is taken for rounding"
        )
    rows = len(next(iter(feeds.values())))
    return VerificationResult(rows, plan.steps, bitwise, largest, (rows,), 0.0, mean_difference=mean)


def _expected(emitted: Emitted, network: Network, plan: SpikingPlan, feeds: Feeds, steps: int) -> dict[str, np.ndarray]:
    """A NumPy run of what an emitted model computes to the last bit."""
    twin = emitted.twin
    return simulate(twin.network, twin.plan, feeds, steps) if twin else simulate(network, plan, feeds, steps)


def _agreement(pairs: Iterable[tuple[str, np.ndarray, np.ndarray]], axes: int = 0) -> tuple[bool, float]:
    """Whether all pairs agree to the last bit, and the largest difference, relative to the largest value of its pair.

    So many `axes` in front (the steps) are not what a shape is about.

    Raises:
        VerificationError: shapes differ.
    """
    bitwise, largest = True, 0.0
    for name, ours, theirs in pairs:
        if ours.shape != theirs.shape:
            raise VerificationError(
                f"output '{name}' has shape {ours.shape[axes:]}, its plan gives {theirs.shape[axes:]}"
            )
        bitwise = bitwise and np.array_equal(ours, theirs, equal_nan=True)
        largest = max(largest, _relative(_distance(ours, theirs).max(initial=0), _size(theirs).max(initial=0)))
    return bitwise, largest


def check_samples_apart(network: Network, feeds: Feeds) -> None:
    """That the ANN's outputs for the first sample do not change with the batch it is in: spikes may hide it.

    Nothing is checked with a fixed batch, or one sample.

    Raises:
        VerificationError: they do.
    """
    if network.static_batch is not None or len(next(iter(feeds.values()))) < 2:
        return
    session = Session(network.view.model, ONE_THREAD, optimise=False)
    names = [name for name in network.view.output_names if name in network.temporal]
    many = session.run(feeds, names)
    alone = session.run({name: value[:1] for name, value in feeds.items()}, names)
    for name in names:
        _batch_difference(name, many[name][None], alone[name][None], network, len(next(iter(feeds.values()))))


def check_same_function(original: Any, normalised: Normalised, network: Network, feeds: Feeds) -> None:
    """That the network which is converted is the ANN that was read: all else is compared with the network.

    Nothing is checked where quantised operators became others (they round otherwise), or onnxruntime runs only one.

    Raises:
        VerificationError: it is another function.
    """
    if any(normalised.changes.get(name) for name in ("plain_operators", "dequantise")):
        return
    names = [name for name in network.view.output_names if name in network.temporal]
    try:
        expected = Session(original, ONE_THREAD, optimise=False).run(feeds, names)
    except ModelError:
        return
    found = Session(network.view.model, ONE_THREAD, optimise=False).run(feeds, names)
    for name in names:
        mine, theirs = found[name], expected[name]
        same = mine.shape == theirs.shape
        difference = _relative(_distance(mine, theirs).mean(), _size(theirs).mean()) if same and mine.size else 0.0
        if not same or difference > _FUNCTION_CLOSE:
            raise VerificationError(
                f"output '{name}' of the normalised ANN differs from the original's by "
                f"{f'{difference:.1%}' if same else f'its shape, {mine.shape} for {theirs.shape}'}: {_ADVICE}"
            )


def fusion_error(network: Network, plan: SpikingPlan, fused: Fused, feeds: Feeds, steps: int) -> float:
    """How far a fused network is from its plan: the largest difference of potentials u[t], relative to their largest.

    Both are run side by side. After every site the fused network goes on from the potentials and the spikes of the
    plan, so that a spike that rounding flips is no difference.
    """
    told = _Told(network, plan, feeds)
    forced = _Forced(fused, plan, told, feeds)
    told.run(steps)
    forced.run(steps)
    return max(forced.errors, default=0.0)


class _Told(Simulation):
    """A simulation that writes down what every site does."""

    def __init__(self, network: Network, plan: SpikingPlan, feeds: Feeds) -> None:
        super().__init__(network, plan, feeds)
        self.done: dict[tuple[str, int], tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...]]] = {}

    def fire(self, site: SpikingSite, current: np.ndarray, t: int) -> np.ndarray:
        """Spikes; potential, spikes and new state are kept."""
        potential = self.potential(site, current, t)
        spikes = super().fire(site, current, t)
        self.done[site.name, t] = potential, spikes, self.states[site.name]
        return spikes


class _Forced(Simulation):
    """A simulation of a fused plan in which every site does what another simulation of the plan did."""

    def __init__(self, fused: Fused, plan: SpikingPlan, told: _Told, feeds: Feeds) -> None:
        super().__init__(fused.network, fused.plan, feeds)
        self._told, self._in_units, self._turned = told, fused.in_units, fused.plan.reversed
        self._units = {s.name: plan.neuron.make().unit(plan.thresholds[s.name]) for s in plan.sites}
        self._heights = {name: unit * plan.gains.get(name, np.float32(1)) for name, unit in self._units.items()}
        self.errors: list[float] = []

    def fire(self, site: SpikingSite, current: np.ndarray, t: int) -> np.ndarray:
        """The spikes of the plan, in units; the potential is compared with the plan's."""
        expected, spikes, state = self._told.done[site.name, t]
        unit: np.ndarray = np.ones(1, np.float32)
        height = unit
        if site.name in self._in_units:
            unit, height = (v[site.name].reshape(site.channel_shape) for v in (self._units, self._heights))
            unit = -unit if site.name in self._turned else unit
        found = self.potential(site, current, t) * unit
        gap = np.where(np.isfinite(found) & np.isfinite(expected), _distance(found, expected), 0.0)  # others: overflow
        self.errors.append(_relative(gap.max(initial=0), _size(expected).max(initial=0)))
        self.states[site.name] = (np.asarray(state[0] / unit), *state[1:])
        return np.asarray(spikes / height)


def _batch_difference(name: str, many: np.ndarray, alone: np.ndarray, network: Network, rows: int) -> float:
    """Between the first sample of a batch of `rows` and the same sample alone, of an output at every step, [T, ...]."""
    if many.ndim == alone.ndim == 1:
        return 0.0
    view = network.view
    first_input = next(value for value in view.graph.input if value.name not in view.initializers).name
    axis = axis_of_samples(view.shape(name), (view.shape(first_input) or (None,))[0])
    try:
        first, single = (
            np.stack([per_sample(step, size, axis)[:1] for step in steps]) for steps, size in ((many, rows), (alone, 1))
        )
        same = first.shape == single.shape
    except ModelError:
        same = False
    if not same:
        raise VerificationError(
            f"a batch of one gives an output of shape {alone.shape[1:]}, a batch of several one of {many.shape[1:]}: "
            f"the model fixes its batch inside {_suspect(network)}"
        )
    alone = single
    difference = _relative(_distance(first, alone).mean(), max(_size(first).mean(), _size(alone).mean()))
    if difference > _BATCH_CLOSE:
        raise VerificationError(
            f"the output of a sample changes by {difference:.1%} with the batch it is in: the model mixes the samples "
            f"of a batch {_suspect(network)}"
        )
    return difference


def _suspect(network: Network) -> str:
    """What probably ties a model to one batch, by name, and what to do about it."""
    scaled = [node.name for node in network.view.nodes if node.op_type == "DynamicQuantizeLinear"]
    if scaled:
        return f"(DynamicQuantizeLinear '{scaled[0]}' has one scale for all of them); quantise it with fixed scales"
    baked = baked_reshapes(network.view)
    cause = f"Reshape '{baked[0]}' has a constant batch" if baked else "a reduction over axis 0, for example"
    return f"({cause}); export it with a dynamic batch"


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

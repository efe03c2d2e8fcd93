"""Choices made on held-back calibration samples: which neuron, which thresholds, which biases.

The calibration samples are split: three of four are fitted to, the fourth is held back and judges (`split`). A
judgement is a short evaluation of an emitted network on the samples held back: how far its output is from the ANN's,
how often it decides as the ANN does, and how many events it takes. Evaluation data never take part in a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftbc_onnx.batching import Batching
from ftbc_onnx.data import DataSource
from ftbc_onnx.evaluate import AnnRun, evaluate
from ftbc_onnx.graph.emit import emit_quick
from ftbc_onnx.graph.emit.search import Candidate, emit_search, errors_name
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import CalibrationRule
from ftbc_onnx.runtime import Device, Session
from ftbc_onnx.sample_order import middles

HELD_BACK = 4
"""One sample of this many is held back."""

FEWEST = 16
"""With fewer calibration samples nothing is held back: they are fitted to and judge as well, and the report says so."""

SEARCHED = 1 << 26
"""Neurons, over samples and candidates, that a search has at a time, if it can: some 3 GB."""

NEAR = 2.0
"""An output error of at most this many times the least is as good, if the decisions agree as often."""

LADDER = (
    NeuronSpec("signed-st"),
    NeuronSpec("signed-group", 4),
    NeuronSpec("signed-group", 8),
    NeuronSpec("signed-group", 15),
)
"""Neurons for ``accuracy``, from few levels to many."""

THRIFTY = (
    *LADDER,
    NeuronSpec("signed-group", 4, "differential"),
    NeuronSpec("multi-threshold", 4),
    NeuronSpec("multi-threshold", 4, "differential"),
    NeuronSpec("multi-threshold", 6, "differential"),
)
"""Neurons for ``spikes``."""


def candidates_for(budget: str, levels: int | None, binary: bool, synchronous: bool = False) -> tuple[NeuronSpec, ...]:
    """The neurons that ``--neuron auto`` tries.

    Args:
        budget: ``accuracy``, ``spikes`` or ``levels``.
        levels: levels per step at most, or None (4 for ``levels``).
        binary: spikes of one height and one sign only.
        synchronous: layer by layer: nothing has to be taken back.
    """
    if synchronous and not binary:
        return (NeuronSpec("group", levels or 4),)
    if binary:
        return (NeuronSpec("if"),)
    if budget == "levels":
        most = levels or 4
        if most == 1:
            return (NeuronSpec("if"), NeuronSpec("signed"), NeuronSpec("signed-st"))
        return (NeuronSpec("group", most), NeuronSpec("signed-group", most))
    tried = THRIFTY if budget == "spikes" else LADDER
    allowed = tuple(spec for spec in tried if levels is None or spec.most <= levels)
    return allowed or (NeuronSpec("signed-st"),)


@dataclass(frozen=True)
class Trial:
    """One thing that was tried, on the samples held back.

    Attributes:
        what: in words.
        error: mean |SNN - ANN| of the output at T, relative to mean |ANN|.
        agreement: share of samples with the ANN's decision, in percent; None if not a classifier.
        events: events per neuron over the T steps; None if they were not counted.
        samples: how many samples judged.
    """

    what: str
    error: float
    agreement: float | None
    events: float | None
    samples: int


@dataclass(frozen=True)
class Selection:
    """What was tried for one question, what was chosen, and why."""

    question: str
    trials: tuple[Trial, ...]
    chosen: int
    why: str

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "trials": [asdict(trial) for trial in self.trials]}


def split(source: DataSource, samples: int, multiple: int = 1) -> tuple[DataSource, DataSource | None]:
    """(Samples to fit to, samples held back): every fourth is held back, so that classes in a row are in both.

    Args:
        source: the calibration data.
        samples: how many of them are used, at most.
        multiple: both parts have a multiple of this number (a fixed batch).

    Returns:
        The whole and None if there are fewer than `FEWEST` samples, or fewer than two fixed batches.
    """
    there = min(samples, len(source))
    held = max(there // HELD_BACK // multiple, 1) * multiple
    if there < max(FEWEST, held + multiple):
        return source, None
    numbers = np.arange(there)
    back = np.unique(middles(there, held))
    return source.subset(np.setdiff1d(numbers, back)), source.subset(back)


@dataclass(frozen=True)
class Judge:
    """Emitted networks on the samples held back."""

    network: Network
    ann: AnnRun
    source: DataSource
    batching: Batching
    device: Device
    counting: bool = False

    def __call__(self, what: str, plan: SpikingPlan) -> Trial:
        """Judge a plan."""
        emitted = emit_quick(self.network, plan)
        result = evaluate(
            emitted.model,
            emitted.readouts,
            plan,
            self.source,
            self.batching,
            device=self.device,
            ann=self.ann,
            label_offset=None,
            counting=self.counting,
        )
        return Trial(
            what,
            float("inf") if result.output_gap is None else result.output_gap[-1],
            None if result.agreement is None else result.agreement[-1],
            None if result.counts is None else result.counts.events[-1],
            result.samples,
        )


def as_good(trials: Sequence[Trial]) -> list[int]:
    """Positions of the trials as good as the best: decisions within one standard error, error within `NEAR`."""
    least = min(trial.error for trial in trials)
    best = max((trial.agreement for trial in trials if trial.agreement is not None), default=None)
    good = []
    for i, trial in enumerate(trials):
        agrees = True
        if best is not None and trial.agreement is not None:
            share = best / 100
            slack = 100 * np.sqrt(max(share * (1 - share), 1 / trial.samples) / trial.samples)
            agrees = trial.agreement >= best - slack
        if agrees and trial.error <= NEAR * least:
            good.append(i)
    return good or [min(range(len(trials)), key=lambda i: trials[i].error)]


def choose_neuron(
    specs: Sequence[NeuronSpec],
    budget: str,
    convert: Callable[[NeuronSpec], SpikingPlan],
    judge: Callable[[str, SpikingPlan], Trial],
) -> tuple[NeuronSpec, Selection]:
    """The neuron for a budget.

    1. ``accuracy``: of those as good as the best (`as_good`), the one with the fewest levels. They are tried from many
       levels down, until one is not as good.
    2. ``spikes``: of those, the one with the fewest events.
    3. ``levels``: all have the same levels: the one with the least error.
    """
    if budget == "accuracy":
        specs = sorted(specs, key=lambda spec: spec.most, reverse=True)
    tried: list[Trial] = []
    for spec in specs:
        tried.append(judge(str(spec), convert(spec)))
        if budget == "accuracy" and len(tried) - 1 not in as_good(tried):
            break
    trials = tuple(tried)
    if budget == "levels":
        chosen, why = min(range(len(specs)), key=lambda i: trials[i].error), "least output error"
    elif budget == "spikes":
        chosen, why = (
            min(as_good(trials), key=lambda i: trials[i].events or 0.0),
            "fewest events of those as good as the best",
        )
    else:
        chosen, why = min(as_good(trials), key=lambda i: specs[i].most), "fewest levels of those as good as the best"
    return specs[chosen], Selection("neuron", trials, chosen, why)


def search_sites(
    network: Network,
    plan: SpikingPlan,
    candidates: Mapping[str, Sequence[Candidate]],
    feeds: Mapping[str, np.ndarray],
    device: Device,
    *,
    rule: CalibrationRule | None = None,
    error: str = "squares",
    neurons: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Which candidate every site keeps (`ftbc_onnx.graph.emit.search`), by site.

    One run, or as many as `SEARCHED` asks for: in each of them some sites try their candidates, and the others fire
    their first, which is what travels on in any case. So the number of runs changes no error.

    Args:
        network: the normalised ANN.
        plan: its sites, steps and neurons.
        candidates: what to try per site.
        feeds: samples.
        device: where to run.
        rule: finds the biases of candidates that have none.
        error: ``squares`` or ``gaps``.
        neurons: of every site, per sample; None: they all fit.
    """
    kept = dict.fromkeys(candidates, 0)
    rows = len(next(iter(feeds.values())))
    for group in _groups(candidates, {name: rows * size for name, size in (neurons or {}).items()}):
        tried = {name: all_ if name in group else all_[:1] for name, all_ in candidates.items()}
        session = Session(emit_search(network, plan, tried, rule, error), device)
        errors = session.run(feeds, [errors_name(name) for name in group])
        kept.update({name: int(np.argmin(errors[errors_name(name)])) for name in group})
    return kept


def _groups(candidates: Mapping[str, Sequence[Candidate]], neurons: Mapping[str, int]) -> Iterator[list[str]]:
    """Sites that have something to try, in order, as many at a time as `SEARCHED` allows, at least one.

    `neurons`: of every site, over samples. The first candidates of all sites run in every group.
    """
    group, base = list[str](), sum(neurons.values())
    held = base
    for name, tried in candidates.items():
        if len(tried) == 1:
            continue
        more = neurons.get(name, 0) * (len(tried) - 1)
        if group and held + more > SEARCHED:
            yield group
            group, held = [], base
        group.append(name)
        held += more
    if group:
        yield group


def gate_biases(
    network: Network,
    plan: SpikingPlan,
    feeds: Mapping[str, np.ndarray],
    device: Device,
    neurons: Mapping[str, int] | None = None,
) -> tuple[SpikingPlan, int]:
    """The plan with the biases of a site kept only where they make its gaps smaller on these samples.

    `neurons` as of `search_sites`.

    Returns:
        The plan, and the number of sites whose biases were put to zero.
    """
    none = plan.without_biases()
    tried = {
        site.name: [Candidate(plan.thresholds[site.name], p.biases[site.name]) for p in (plan, none)]
        for site in plan.sites
    }
    kept = search_sites(network, plan, tried, feeds, device, error="gaps", neurons=neurons)
    biases = {name: (plan if which == 0 else none).biases[name] for name, which in kept.items()}
    return plan.with_biases(biases), sum(kept.values())

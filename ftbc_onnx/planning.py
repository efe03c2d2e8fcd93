"""From a network and calibration data to a plan: neuron, thresholds, biases, each chosen on samples held back.

    split -> statistics -> neuron -> thresholds -> gains -> layers -> biases -> gate

Without calibration data a network must state its thresholds, and nothing is chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftbc_onnx.batching import Batching, choose_batching
from ftbc_onnx.calibrate import calibrate
from ftbc_onnx.data import DataSource
from ftbc_onnx.errors import ModelError
from ftbc_onnx.evaluate import run_ann
from ftbc_onnx.gains import find_gains
from ftbc_onnx.graph.emit.search import Candidate
from ftbc_onnx.graph.fittable import fittable_layers
from ftbc_onnx.job import Job
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.refit import STRENGTHS, elements, refit
from ftbc_onnx.results import CalibrationResult, Compression
from ftbc_onnx.rules import ROUGH, SolveRule, make_rule
from ftbc_onnx.selection import (
    SEARCHED,
    Judge,
    Selection,
    Trial,
    candidates_for,
    choose_neuron,
    gate_biases,
    search_sites,
    split,
)
from ftbc_onnx.shrinkage import BATCHES, check_batches
from ftbc_onnx.thresholds import ActivationStatistics, collect_statistics, estimate_thresholds

QUICK = 32
"""Samples that a trial is calibrated on, at most; half as many where activations are large."""

JUDGING = 64
"""Samples held back that judge, at most."""

_TRIAL_ELEMENTS = 1 << 24  # elements of all sites, over samples, that a trial goes through step after step
_REFIT_ELEMENTS = 1 << 30  # elements that fitting layers may hold (`ftbc_onnx.refit.elements`): 4 GB
_FEWEST = 8  # samples that a search looks at, however large they are


@dataclass(frozen=True)
class Planned:
    """A plan, and how it came about.

    Attributes:
        plan: with its biases.
        statistics: of the sites that state no threshold.
        calibrated: what the rule found; None if no biases were looked for.
        selections: what was tried and chosen.
        gated: sites whose biases were put to zero because they did not hold on the samples held back.
        fitted: calibration samples fitted to.
        held_back: calibration samples that judged; 0 if those fitted to judged as well.
        compression: what storing fewer biases cost; None if all are stored.
    """

    plan: SpikingPlan
    statistics: Mapping[str, ActivationStatistics]
    calibrated: CalibrationResult | None
    selections: tuple[Selection, ...]
    gated: int
    fitted: int
    held_back: int
    compression: Compression | None = None

    def calibration_record(self) -> dict[str, Any] | None:
        """For the report; None if no biases were looked for."""
        if self.calibrated is None:
            return None
        compression = None if self.compression is None else self.compression.as_dict()
        return {
            **self.calibrated.as_dict(),
            "held_back": self.held_back,
            "gated_sites": self.gated,
            "compression": compression,
        }


def calibration_batching(job: Job, data: DataSource) -> tuple[Batching, int]:
    """Batches for calibration, and the number of samples used.

    Raises:
        DataError: there are fewer samples than a batch, or too few to tell biases from noise (``shrink``).
        ModelError: no layer can be fitted again (``refit``).
    """
    samples = min(job.config.calib_samples, len(data))
    static = job.free.static_batch
    batching = choose_batching(job.config.batch_size, static, data, samples, "calibration", neurons=job.size)
    if job.config.refit:
        _check_refit(job, batching)
    if job.config.shrink:
        check_batches(samples * 3 // 4 // (batching.size if batching.fixed else 1))
    return batching, samples


def _check_refit(job: Job, batching: Batching) -> None:
    if batching.fixed:
        raise ModelError("refit takes a model whose batch is free: export it with a dynamic batch")
    if not fittable_layers(job.free):
        raise ModelError("refit finds no layer that it can fit: a Conv or Gemm with constant weights that reads spikes")


def make_plan(job: Job) -> Planned:
    """Neuron, thresholds and biases as the options say, in the order of this module's head."""
    config = job.config
    if job.calibration is None:
        spec = NeuronSpec("if") if config.neuron == "auto" else config.neuron_spec
        thresholds = estimate_thresholds(job.network, {}, config, config.steps * spec.most)
        return Planned(_plan(job, spec, thresholds), {}, None, (), 0, 0, 0)
    return _Planner(job, job.calibration).run()


def _plan(job: Job, spec: NeuronSpec, thresholds: Mapping[str, np.ndarray]) -> SpikingPlan:
    """A plan with every bias zero."""
    steps, schedule = job.config.steps, job.config.schedule
    readout = job.config.window
    return SpikingPlan(job.source.digest, job.network.sites, steps, spec, thresholds, {}, readout, schedule)


class _Planner:
    """The stages share the split data, the statistics and the judge."""

    def __init__(self, job: Job, data: DataSource) -> None:
        self.job = job
        batching, samples = calibration_batching(job, data)
        config = job.config
        self.synchronous = config.schedule == "synchronous"
        estimated = any(site.threshold is None for site in job.network.sites)
        self.chooses_thresholds = config.threshold == "auto" and estimated and not self.synchronous
        chooses = any((config.neuron == "auto", self.chooses_thresholds, config.gates, config.gain, config.refit))
        fit, held = split(data, samples, batching.size if batching.fixed else 1) if chooses else (data, None)
        self.fit, self.held = fit, held
        self.fitted = min(samples, len(fit))
        self.batching = batching if batching.fixed else Batching(min(batching.size, self.fitted), False)
        self.statistics: Mapping[str, ActivationStatistics] = {}
        self._judge: Judge | None = None
        self._quick_biases: dict[str, Mapping[str, np.ndarray]] = {}
        self._trials: dict[str, Trial] = {}

    def run(self) -> Planned:
        job, config = self.job, self.job.config
        self.statistics = collect_statistics(
            job.free,
            self.fit,
            self.fitted,
            self.batching,
            job.device,
            progress=job.stage("thresholds", 2 * self.fitted),
        )
        selections = []
        spec = config.neuron_spec
        if config.neuron == "auto":
            spec, *others = specs = candidates_for(config.budget, config.levels, config.binary, self.synchronous)
            if others:
                spec, selection = choose_neuron(specs, config.budget, self._quick, self._judged)
                selections.append(selection)
        plan = self._plan(spec)
        if self.chooses_thresholds:
            plan, selection = self._choose_thresholds(plan)
            selections.append(selection)
        if config.looks_for_gains(spec) and (self.held is not None or config.gain):
            plan, selection = self._choose_gains(plan)
            selections.append(selection)
        if config.refit:
            plan, selection = self._refit(plan)
            selections.append(selection)
        calibrated = self._calibrate(plan)
        gated = 0
        if calibrated is not None:
            plan = plan.with_biases(calibrated.biases)
            if config.gates and self.held is not None:
                plan, gated, selection = self._gate(plan)
                selections.append(selection)
        compression = None
        if config.compress_bias:
            plan, compression = self._compress(plan)
        held = 0 if self.held is None else len(self.held)
        return Planned(plan, self.statistics, calibrated, tuple(selections), gated, self.fitted, held, compression)

    @property
    def judge(self) -> Judge:
        """Made when it is first needed; without samples held back, some that were fitted to judge."""
        if self._judge is None:
            job = self.job
            source = self.held or self.fit
            static = job.network.static_batch
            most = min(len(source), JUDGING if static is None else max(JUDGING // static, 1) * static)
            source = source.subset(np.arange(most))
            batching = job.batching(source)
            output = next(name for name in job.network.view.output_names if name in job.network.temporal)
            ann = run_ann(job.source.model, job.network, output, source, batching, device=job.device, label_offset=None)
            self._judge = Judge(job.network, ann, source, batching, job.device, job.config.budget == "spikes")
        return self._judge

    def _plan(self, spec: NeuronSpec, method: str | None = None, levels: float = 1.0) -> SpikingPlan:
        """Thresholds for a neuron, biases zero; `levels` times T*K levels for the methods that look at them."""
        config = self.job.config
        count = max(1, round(config.steps * spec.most * levels))
        thresholds = estimate_thresholds(self.job.network, self.statistics, config, count, method)
        return _plan(self.job, spec, thresholds)

    def _quick(self, spec: NeuronSpec) -> SpikingPlan:
        return self._with_quick_biases(self._plan(spec))

    def _with_quick_biases(self, plan: SpikingPlan) -> SpikingPlan:
        """The plan as it would be with biases; the plan that one question chose is the first of the next."""
        key = plan.digest
        if key not in self._quick_biases:
            found = self._calibrate(plan, quick=True)
            self._quick_biases[key] = plan.biases if found is None else found.biases
        return plan.with_biases(self._quick_biases[key])

    def _judged(self, what: str, plan: SpikingPlan) -> Trial:
        """What the judge says of a plan, in a run if it was not asked before."""
        key = plan.digest
        if key not in self._trials:
            self._trials[key] = self.judge(what, plan)
        return replace(self._trials[key], what=what)

    def _calibrate(self, plan: SpikingPlan, quick: bool = False) -> CalibrationResult | None:
        job = self.job
        rule = make_rule(job.config.rule, job.config.alpha)
        if rule is None:
            return None
        if quick and isinstance(rule, SolveRule):
            rule = ROUGH
        samples = min(self.fitted, self._quick_samples if quick else self.fitted)
        if self.batching.fixed:
            samples = max(samples // self.batching.size, 1) * self.batching.size
        shrink = 0.0 if quick else job.config.shrink
        most = -(-samples // BATCHES) if shrink and not self.batching.fixed else samples
        batching = replace(self.batching, size=min(self.batching.size, most))
        return calibrate(
            job.free,
            plan,
            rule,
            self.fit,
            batching=batching,
            samples=samples,
            device=job.device,
            shrink=shrink,
            progress=job.stage("choices" if quick else "biases", samples),
        )

    @property
    def _quick_samples(self) -> int:
        searched = sum(self.job.neurons[name] for name in self.statistics)
        return int(np.clip(_TRIAL_ELEMENTS // max(searched, 1), QUICK // 2, QUICK))

    def _choose_thresholds(self, plan: SpikingPlan) -> tuple[SpikingPlan, Selection]:
        """Three whole plans against each other: mse for T*K levels, for twice as many, and every site its own."""
        more = self._plan(plan.neuron, levels=2.0)
        methods: Sequence[SpikingPlan] = (
            plan,
            more,
            self._plan(plan.neuron, "moments"),
            self._plan(plan.neuron, "percentile"),
            self._plan(plan.neuron, "max"),
        )
        tried = {
            site.name: [Candidate(p.thresholds[site.name]) for p in (methods if site.threshold is None else (plan,))]
            for site in plan.sites
        }
        feeds = self._few(self.fit, len(methods))
        kept = search_sites(self.job.free, plan, tried, feeds, self.job.device, rule=ROUGH, neurons=self.job.neurons)
        own = plan.with_thresholds({name: tried[name][which].threshold for name, which in kept.items()})
        words = ("mse for T*K levels", "mse for 2*T*K levels", "of mse, moments, percentile and max, per site")
        plans = (plan, more, own)
        return self._least("threshold", words, plans, map(self._with_quick_biases, plans))

    def _choose_gains(self, plan: SpikingPlan) -> tuple[SpikingPlan, Selection]:
        """No gain, the gain that is measured, and the middle between them (their geometric mean)."""
        job, start = self.job, self._with_quick_biases(plan)
        gains = find_gains(job.free, start, self.fit, batching=self.batching, samples=self.fitted, device=job.device)
        halves = {name: np.sqrt(gain) for name, gain in gains.items()}
        plans = (plan, plan.with_gains(halves), plan.with_gains(gains))
        found = (start, *(self._with_quick_biases(p) for p in plans[1:]))
        return self._least("gain", ("no gain", "half of the gain", "the gain"), plans, found)

    def _refit(self, plan: SpikingPlan) -> tuple[SpikingPlan, Selection]:
        """The layers of the ANN, and layers fitted to the spikes that they read, to some strengths of the ridge."""
        job = self.job
        count = int(np.clip(_REFIT_ELEMENTS // elements(job.neurons, plan.steps), 1, self.fitted))
        feeds, plans, words = next(self.fit.batches(count, limit=count)).feeds, [plan], ["those of the ANN"]
        has_biases = job.config.rule != "none"
        for strength in STRENGTHS:
            progress = job.stage("layers", len(plan.sites))
            layers = refit(job.free, plan, feeds, job.device, strength=strength, biases=has_biases, progress=progress)
            plans.append(plan.with_layers(layers))
            words.append(f"{len(layers)} fitted to {count} samples, ridge {strength:g}")
        return self._least("layers", words, plans, map(self._with_quick_biases, plans))

    def _least(
        self, question: str, words: Sequence[str], plans: Sequence[SpikingPlan], judged: Iterable[SpikingPlan]
    ) -> tuple[SpikingPlan, Selection]:
        """Of some plans the one whose output errs least, each judged as it would be with biases."""
        trials = tuple(self._judged(word, p) for word, p in zip(words, judged, strict=True))
        chosen = min(range(len(plans)), key=lambda i: trials[i].error)
        return plans[chosen], Selection(question, trials, chosen, "least output error")

    def _gate(self, plan: SpikingPlan) -> tuple[SpikingPlan, int, Selection]:
        """Per site first; then all of it against none."""
        gated, dropped = plan, 0
        if not self.synchronous:
            job, feeds = self.job, self._few(self.held or self.fit, 2)
            gated, dropped = gate_biases(job.free, plan, feeds, job.device, job.neurons)
        tried = {f"biases at {len(plan.sites) - dropped} of {len(plan.sites)} sites": gated}
        if plan.layers:
            tried["no biases"] = plan.without_biases()
        tried["plain conversion" if plan.layers else "no biases"] = plan.plain()
        kept, selection = self._least("temporal bias", list(tried), list(tried.values()), tried.values())
        return kept, len(plan.sites) if selection.chosen else dropped, selection

    def _compress(self, plan: SpikingPlan) -> tuple[SpikingPlan, Compression | None]:
        """A few vectors per channel, and what that costs on the samples held back; None if nothing gets smaller."""
        packed = plan.with_compressed_biases()
        if not packed.factors:
            return plan, None
        trials = [self._judged(word, p) for word, p in (("all biases", plan), ("compressed biases", packed))]
        stored = [
            kept.courses.size + kept.vectors.size if (kept := packed.factors.get(name)) is not None else bias.size
            for name, bias in packed.biases.items()
        ]
        before = sum(bias.size for bias in plan.biases.values())
        power = sum(float((bias.astype(np.float64) ** 2).sum()) for bias in plan.biases.values())
        lost = sum(float(((plan.biases[n].astype(np.float64) - b) ** 2).sum()) for n, b in packed.biases.items())
        error = float(np.sqrt(lost / power)) if power else 0.0
        return packed, Compression(before, sum(stored), error, trials[0].error, trials[1].error, trials[0].samples)

    def _few(self, source: DataSource, candidates: int) -> Mapping[str, np.ndarray]:
        """Samples for a search among so many candidates per site."""
        most = SEARCHED // max(candidates * self.job.size, 1)
        size = self.batching.size if self.batching.fixed else int(np.clip(most, _FEWEST, min(QUICK, len(source))))
        return next(source.batches(size, limit=size)).feeds

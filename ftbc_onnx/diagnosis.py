"""Where ANN and SNN part: what every site adds to the error of the output, and of what its own error is made.

Everything is measured in `ftbc_onnx.graph.emit.diagnosis`; here the means of batches are put together. All errors are
relative: a mean of |difference| over the mean of |ANN|. They are taken neuron by neuron, so nothing cancels.

A site's *local* error is what it adds to what reaches it. It is made of, one after another, each at most what is left:

* ``weights``: its layer has other weights in the file than in the ANN;
* ``silent``: of channels that never fired although the ANN is active there;
* ``clipping``: activation beyond the largest rate that its neurons can have;
* ``bias``: what the error would be less without temporal biases;
* ``timing``: what it is more than that of the same neurons fed the exact current at every step;
* ``rounding``: the rest, which falls with the number of levels and steps.

What a site *costs* is the output's error if it alone errs, fed exact currents, all others being exact. Errors that have
nothing to do with each other add up in their squares: the *share* of a site is its cost squared, over the sum for all
sites. What the SNN is *spared* if a site adds nothing, all others adding what they do, is told too; it says nothing of
a network that is badly broken, where sites downstream make up for the fault, or would not err without it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ftbc_onnx.batching import Batching, choose_batching
from ftbc_onnx.config import check_positive
from ftbc_onnx.data import DataSource
from ftbc_onnx.errors import DataError, ModelError
from ftbc_onnx.graph.altered import altered_weights
from ftbc_onnx.graph.emit.diagnosis import COSTS, CURVE, OUTPUT, SIZE, TAIL, curves_name, emit_diagnosis, parts_name
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.likeness import Unlike
from ftbc_onnx.network_size import count_neurons
from ftbc_onnx.plan import SpikingPlan, SpikingSite
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.runtime import Device, Session, choose_device
from ftbc_onnx.sample_order import middles
from ftbc_onnx.spiking_file import read_spiking

CAUSES = ("weights", "silent", "clipping", "bias", "timing", "rounding")

SAMPLES = 64
"""Samples looked at, at most, unless asked for more."""

READ = 16
"""Of an iterable, which may have no end, so many times as many samples are read as are looked at."""

_ELEMENTS = 1 << 24  # neurons, over samples, for each of which a run holds some twenty numbers

_EXACT = 1e-6  # a cost below is rounding
_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, eq=False)
class SiteDiagnosis:
    """What a site does to the error.

    Attributes:
        site: the site.
        cost: error of the output after T steps if this site alone errs.
        turned: share of the ANN's decisions that it turns then, in percent; None if the output is no row of scores.
        share: its part of the squares of all costs.
        spared: what the output's error would be less if this site added nothing.
        real: error of its rate after each step, upstream as it is, [T].
        alone: the same with upstream exact, [T].
        local: what it adds to what reaches it, after T steps.
        causes: what that is made of, by cause, in the order of `CAUSES`; they sum to `local`.
        silent: number of channels that never fired although the ANN is active there.
        clipped: number of channels whose largest activation is beyond what the neurons can send.
        worst: the channels with the largest local error, and their parts of it.
    """

    site: SpikingSite
    cost: float
    turned: float | None
    share: float
    spared: float
    real: np.ndarray
    alone: np.ndarray
    local: float
    causes: Mapping[str, float]
    silent: int
    clipped: int
    worst: tuple[tuple[int, float], ...]

    @property
    def cause(self) -> str:
        """The largest part of its local error."""
        return max(self.causes, key=lambda name: self.causes[name])

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "site": self.site.name,
            "cost": self.cost,
            "turned": self.turned,
            "share": self.share,
            "spared": self.spared,
            "error": [float(v) for v in self.real],
            "own_error": [float(v) for v in self.alone],
            "local": self.local,
            "cause": self.cause,
            "causes": dict(self.causes),
            "channels": self.site.channels,
            "silent_channels": self.silent,
            "clipped_channels": self.clipped,
            "worst_channels": [{"channel": c, "part": part} for c, part in self.worst],
        }


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """Where ANN and SNN part on some data.

    Attributes:
        plan: of the SNN.
        data: description of the data.
        samples: how many.
        output: the output that is judged.
        output_error: mean |SNN - ANN| of it after each step, relative to mean |ANN|, [T]; plain mean over the steps.
        agreement: share of the ANN's decisions after T steps, in percent; None if it is no row of scores.
        sites: in topological order.
        tail: what layers behind the last site add to the output, relative to mean |ANN|: 0 but for other weights.
        altered: weights that the file has others of.
        rerun: mean |file - diagnosis graph| of the output on a few samples, relative to mean |ANN|; None: not run.
        unlike: inputs that get other numbers on these data than they got in the conversion.
    """

    plan: SpikingPlan
    data: str
    samples: int
    output: str
    output_error: np.ndarray
    agreement: float | None
    sites: tuple[SiteDiagnosis, ...]
    tail: float
    altered: tuple[str, ...] = ()
    rerun: float | None = None
    unlike: tuple[Unlike, ...] = ()

    @property
    def ranked(self) -> list[SiteDiagnosis]:
        """The sites, the one that costs most first; where none errs alone, the one without which most is spared."""
        if self.exact_alone:
            return sorted(self.sites, key=lambda site: (-site.spared, -site.local))
        return sorted(self.sites, key=lambda site: -site.cost)

    @property
    def exact_alone(self) -> bool:
        """Whether sites and layers behind them are exact if the ANN's activations reach them (QCFS at its own T)."""
        return self.tail < _EXACT and all(site.cost < _EXACT for site in self.sites)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; sites in order of rank."""
        return {
            "data": self.data,
            "samples": self.samples,
            "steps": self.plan.steps,
            "neuron": str(self.plan.neuron),
            "output": self.output,
            "output_error": [float(v) for v in self.output_error],
            "agreement": self.agreement,
            "sites": [site.as_dict() for site in self.ranked],
            "tail": self.tail,
            "altered_weights": list(self.altered),
            "rerun_difference": self.rerun,
            "unlike": [found.as_dict() for found in self.unlike],
        }


def diagnose(
    network: Network,
    plan: SpikingPlan,
    source: DataSource,
    batching: Batching,
    *,
    device: Device,
    output: str | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    samples: int | None = None,
    emitted: Any = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Diagnosis:
    """Compare an asynchronous SNN with its ANN, site by site.

    Args:
        network: the normalised ANN.
        plan: the plan of the SNN.
        source: data; labels are not looked at.
        batching: samples per run.
        device: where to run.
        output: which output; None: the first that depends on spikes.
        weights: weights that the SNN's file has others of (`ftbc_onnx.graph.altered`).
        samples: samples to use, at most.
        emitted: the SNN's file, to see whether it computes what its plan says; None: not looked at.
        progress: called after each batch with the samples done.

    Raises:
        ModelError: the plan is synchronous: its layers fire once, there is no step to compare.
        DataError: an output is not finite.
    """
    if plan.synchronous:
        raise ModelError("a layer-synchronous network has no steps to compare: convert with --schedule asynchronous")
    judged = output or next(name for name in network.view.output_names if name in network.temporal)
    session = Session(emit_diagnosis(network, plan, judged, weights), device)
    tables = [name for name in session.output_names if name != OUTPUT]
    sums: dict[str, np.ndarray] = {}
    done, rerun = 0, None
    for batch, rows in batching.padded(source, samples):
        found = session.run(batch.feeds, [*tables, OUTPUT])
        for name in tables:
            sums[name] = sums.get(name, np.zeros(1)) + found[name].astype(np.float64) * rows
        if emitted is not None and done == 0:
            again = Session(emitted, device).run(batch.feeds, [judged])[judged]
            rerun = float(np.abs(again - found[OUTPUT]).mean() / max(float(found[SIZE][0]), _TINY))
        done += rows
        progress(done)
    means = {name: total / done for name, total in sums.items()}
    costs, size = means[COSTS], max(float(means[SIZE][0]), _TINY)
    if not np.all(np.isfinite(costs)):
        raise DataError(f"output '{judged}' is not finite on these data: nothing can be said of its error")
    scores = network.view.shape(judged)
    decides = scores is not None and len(scores) == 2 and scores[1] != 1
    squares = max(float((costs[:, 0] ** 2).sum()), _TINY)
    sites = tuple(
        _site(
            site,
            plan,
            (means[curves_name(site.name)], means[parts_name(site.name)]),
            cost=float(row[0]) / size,
            turned=100 * (1 - float(row[1])) if decides else None,
            share=float(row[0]) ** 2 / squares,
            spared=float(costs[-1, 2] - row[2]) / size,
        )
        for site, row in zip(plan.sites, costs[:-1], strict=True)
    )
    return Diagnosis(
        plan,
        source.description,
        done,
        judged,
        means[CURVE][:, 0] / size,
        100 * float(costs[-1, 3]) if decides else None,
        sites,
        float(means[TAIL][0]) / size,
        tuple(weights or ()),
        rerun,
    )


def diagnose_file(
    model: str | os.PathLike[str],
    ann: str | os.PathLike[str],
    data: Any,
    *,
    preprocessing: Preprocessing | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    device: str = "auto",
    progress: Callable[[int], None] = lambda _: None,
) -> Diagnosis:
    """Diagnose a file that `convert` wrote, beside the ANN it was made from.

    Args:
        model: path of the spiking network.
        ann: path of the ANN.
        data: anything that `ftbc_onnx.data.open_data` takes; labels are not looked at.
        preprocessing: what it sets goes before what the network was calibrated with (`SpikingFile.open`).
        batch_size: samples per run; None: so many that the run takes a few GB at most.
        samples: samples used, at most; None: `SAMPLES`. They are spread over the data.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        progress: called after each batch with the samples done.

    Raises:
        FtbcError: of the kind that fits; `ModelError` if the ANN is not the one it was made from.
    """
    for name, value in (("batch_size", batch_size), ("samples", samples)):
        if value is not None:
            check_positive(name, value)
    file = read_spiking(model)
    if file.plan.layers:
        raise ModelError(
            f"{file.called} has layers that were fitted again, so its sites do not stand beside those of the ANN: "
            "diagnose a conversion without --refit"
        )
    original, network = file.ann(ann)
    wanted = SAMPLES if samples is None else samples
    source = file.open(data, preprocessing, "diagnosis", input_specs(original.model), READ * wanted)
    count = min(wanted, len(source))
    if count:
        source = source.subset(middles(len(source), count))
    where = choose_device(device)
    neurons = sum(count_neurons(network, source, where).values())
    size = batch_size or max(_ELEMENTS // max(neurons, 1), 1)
    found = diagnose(
        network,
        file.plan,
        source,
        choose_batching(size, network.static_batch, source, None, "diagnosis"),
        device=where,
        output=file.readouts[0].output if file.readouts else None,
        weights=altered_weights(network, file.model),
        emitted=None if file.form == "step" or file.plan.readout.start else file.model,
        progress=progress,
    )
    return replace(found, unlike=file.unlike(source))


def _site(site: SpikingSite, plan: SpikingPlan, tables: tuple[np.ndarray, np.ndarray], **costs: Any) -> SiteDiagnosis:
    """A site from its tables [T, 3, C] and [7, C], and what it costs."""
    curves, parts = tables
    size, rate, local, beyond, layer, neuron, largest = parts
    whole = max(float(size.sum()), _TINY)
    real, alone, unbiased = (curves.sum(axis=2) / whole).T
    silent = (rate == 0) & (size > 0)
    found = {
        "weights": layer.sum() / whole,
        "silent": local[silent].sum() / whole,
        "clipping": beyond[~silent].sum() / whole,
        "bias": real[-1] - unbiased[-1],
        "timing": neuron.sum() / whole - alone[-1],
    }
    left = total = float(local.sum()) / whole
    causes = {}
    for name, part in found.items():
        causes[name] = min(max(float(part), 0.0), left)
        left -= causes[name]
    causes["rounding"] = left
    worst = np.argsort(-local)[:3]
    return SiteDiagnosis(
        site,
        real=real,
        alone=alone,
        local=total,
        causes=causes,
        silent=int(silent.sum()),
        clipped=int((largest > plan.thresholds[site.name] * plan.gains.get(site.name, 1.0)).sum()),
        worst=tuple((int(c), float(local[c] / max(local.sum(), _TINY))) for c in worst if local[c] > 0),
        **costs,
    )

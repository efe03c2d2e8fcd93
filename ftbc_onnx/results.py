"""What calibration, verification and evaluation give back: frozen values, each with its plain form for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftbc_onnx.likeness import Unlike
from ftbc_onnx.plan import SpikingSite


@dataclass(frozen=True)
class CalibrationResult:
    """Biases found, [T, C] per site, and what it took; `shrunk` is the mean share per site that was put to zero."""

    rule: str
    biases: Mapping[str, np.ndarray]
    samples: int
    batches: int
    seconds: float
    shrunk: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without the biases, which are the emitted model's initializers."""
        return {
            "rule": self.rule,
            "samples": self.samples,
            "batches": self.batches,
            "seconds": round(self.seconds, 3),
            "shrunk": self.shrunk,
            "largest_bias": {name: float(np.abs(bias).max(initial=0.0)) for name, bias in self.biases.items()},
        }


@dataclass(frozen=True)
class Compression:
    """What storing a few vectors per channel instead of T biases saves and costs.

    Attributes:
        before: numbers stored without it.
        after: numbers stored.
        relative_error: root of the squared error of all biases over their squares.
        output_error_before: mean |SNN - ANN| of the output, relative to mean |ANN|, with all biases.
        output_error: the same with the compressed ones.
        samples: how many samples judged.
    """

    before: int
    after: int
    relative_error: float
    output_error_before: float
    output_error: float
    samples: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class VerificationResult:
    """The emitted model against a NumPy run of its plan.

    Attributes:
        samples: samples compared.
        steps: time steps compared.
        bitwise: whether every running mean agrees to the last bit (graph optimisations off).
        largest_difference: of the running means, relative to their largest value.
        batch_sizes: batch sizes that were run.
        batch_difference: between the same samples in two batch sizes, mean absolute, relative to the mean output.
        fusion_difference: of a fused network's potentials from its plan's, relative to their largest; None of others.
        mean_difference: of what another tool has made of a file, mean absolute, relative to the mean output, after T
            steps; None of files that are compared at every step.
    """

    samples: int
    steps: int
    bitwise: bool
    largest_difference: float
    batch_sizes: tuple[int, ...]
    batch_difference: float
    fusion_difference: float | None = None
    mean_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "samples": self.samples,
            "steps": self.steps,
            "bitwise": self.bitwise,
            "largest_difference": self.largest_difference,
            "batch_sizes": list(self.batch_sizes),
            "batch_difference": self.batch_difference,
            "fusion_difference": self.fusion_difference,
            "mean_difference": self.mean_difference,
        }


@dataclass(frozen=True)
class SiteActivity:
    """What a site does on some data.

    Attributes:
        site: the site.
        mean_spikes: mean spikes after each step over everything but the channel axis, [T, C].
        height: theta times gain, [C]: the largest spike.
        mean_activation: mean activation of the ANN, [C]; None if it was not given.
        events: events per neuron at each step, [T] (see `Counts`); None if they were not counted.
        binary_spikes: binary spikes per neuron at each step, [T]; None if they were not counted.
    """

    site: SpikingSite
    mean_spikes: np.ndarray
    height: np.ndarray
    mean_activation: np.ndarray | None
    events: np.ndarray | None = None
    binary_spikes: np.ndarray | None = None

    @property
    def rates(self) -> np.ndarray:
        """Mean spikes over all steps in units of theta, [C]: firing rates, if spikes are binary."""
        return np.asarray((self.mean_spikes / self.height).mean(axis=0))

    @property
    def rate(self) -> float:
        """The same over all channels."""
        return float((self.mean_spikes / self.height).mean())

    @property
    def gap(self) -> np.ndarray | None:
        """Mean over channels of |mean spikes up to step t - mean activation|, after each step, [T]."""
        gaps = self._gaps
        return None if gaps is None else np.asarray(gaps.mean(axis=1))

    @property
    def gap_in_theta(self) -> np.ndarray | None:
        """The same in units of theta, [T]: comparable from site to site."""
        gaps = self._gaps
        return None if gaps is None else np.asarray((gaps / self.height).mean(axis=1))

    @property
    def silent(self) -> int:
        """Channels that sent nothing at any step, although the ANN's mean activation (if it is known) is not 0."""
        quiet = ~self.mean_spikes.any(axis=0)
        return int((quiet if self.mean_activation is None else quiet & (self.mean_activation != 0)).sum())

    @property
    def _gaps(self) -> np.ndarray | None:
        """|mean spikes up to step t - mean activation|, [T, C]."""
        if self.mean_activation is None:
            return None
        steps = np.arange(1, len(self.mean_spikes) + 1)[:, None]
        running = np.cumsum(self.mean_spikes, axis=0) / steps
        return np.asarray(np.abs(running - self.mean_activation))


@dataclass(frozen=True)
class Counts:
    """What a spiking network sends and computes; curves are summed up to each step t = 1..T.

    Attributes:
        neurons: in all sites, per sample.
        events: events per neuron (mean over all neurons of all sites): numbers other than 0 that were sent.
        binary_spikes: the same, an event of k units counted as popcount(|k|) binary spikes.
        synops: synaptic operations per sample, see `ftbc_onnx.graph.synops`.
        dense_synops: of one step in which every input is nonzero: the ANN's MACs in the same layers.
        binary_synops: SynOps in binary spikes.
        analog_synops: the part of both whose input is a real number, so that each is a multiplication.
        macs_once: MACs per sample of the layers before the first neurons.
        macs_every_step: MACs per sample and step of the layers that read running means.
        neuron_additions: additions of all neurons per sample and step, see `ftbc_onnx.counting.additions`.
        levels: K, the most units of one event.
        uncounted: operators with weights that are in none of these numbers.
    """

    neurons: float
    events: tuple[float, ...]
    binary_spikes: tuple[float, ...]
    synops: tuple[float, ...]
    dense_synops: float
    binary_synops: tuple[float, ...]
    analog_synops: tuple[float, ...]
    macs_once: float
    macs_every_step: float
    neuron_additions: float
    levels: int
    uncounted: tuple[str, ...] = ()

    @property
    def ann_macs(self) -> float:
        """The ANN's MACs per sample: every layer once, on numbers of which none is 0."""
        return self.macs_once + self.macs_every_step + self.dense_synops

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {**plain, "ann_macs": self.ann_macs}


@dataclass(frozen=True)
class EarlyExit:
    """What it gives and takes to stop a sample as soon as its output is clear (`ftbc_onnx.early_exit`).

    Attributes:
        margin: M, the lead above which a sample stops.
        accuracy: of the decisions at which samples stop, in percent; None without labels.
        mean_steps: steps that a sample takes, on average.
    """

    margin: float
    accuracy: float | None
    mean_steps: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"margin": self.margin, "accuracy": self.accuracy, "mean_steps": self.mean_steps}


@dataclass(frozen=True)
class EvaluationResult:
    """A spiking network on some data; curves have one value per step t = 1..T.

    Attributes:
        samples: samples evaluated.
        data: description of the data.
        output: the output that is judged (the first).
        ann_accuracy: accuracy of the ANN, in percent; None without labels or without the ANN.
        accuracy: accuracy after each step, in percent; None without labels.
        agreement: share of samples with the ANN's decision after each step, in percent; None if not a classifier.
        output_gap: mean |SNN - ANN| of the output after each step, relative to mean |ANN|; None without the
            ANN, or where outputs are not finite.
        activity: per site.
        seconds: time taken by the SNN.
        ann_seconds: time taken by the ANN.
        counts: events and synaptic operations; None if they were not counted.
        readout: over which steps outputs are averaged, ``mean`` or ``delayed:t0``.
        early_exit: accuracy and steps with an early exit; None if it was not asked for.
        finite: whether all outputs that were compared are finite.
        unlike: inputs that get other numbers on these data than they got in the conversion.
    """

    samples: int
    data: str
    output: str
    ann_accuracy: float | None
    accuracy: tuple[float, ...] | None
    agreement: tuple[float, ...] | None
    output_gap: tuple[float, ...] | None
    activity: tuple[SiteActivity, ...]
    seconds: float
    ann_seconds: float
    counts: Counts | None = None
    readout: str = "mean"
    early_exit: EarlyExit | None = None
    finite: bool = True
    unlike: tuple[Unlike, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; gap and rate per site."""
        return {
            "samples": self.samples,
            "data": self.data,
            "output": self.output,
            "ann_accuracy": self.ann_accuracy,
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "agreement": None if self.agreement is None else list(self.agreement),
            "output_gap": None if self.output_gap is None else list(self.output_gap),
            "finite": self.finite,
            "sites": {
                a.site.name: {
                    "rate": a.rate,
                    "rate_range": [float(a.rates.min()), float(a.rates.max())],
                    "silent_channels": a.silent,
                    "mean_activation": None if a.mean_activation is None else float(a.mean_activation.mean()),
                    "gap": _plain(a.gap),
                    "gap_in_theta": _plain(a.gap_in_theta),
                    "events": _plain(a.events),
                    "binary_spikes": _plain(a.binary_spikes),
                }
                for a in self.activity
            },
            "seconds": round(self.seconds, 3),
            "ann_seconds": round(self.ann_seconds, 3),
            "counts": None if self.counts is None else self.counts.as_dict(),
            "readout": self.readout,
            "early_exit": None if self.early_exit is None else self.early_exit.as_dict(),
            "unlike": [found.as_dict() for found in self.unlike],
        }


def _plain(curve: np.ndarray | None) -> list[float] | None:
    return None if curve is None else [float(value) for value in curve]

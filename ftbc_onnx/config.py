"""Options of a conversion: typed, frozen, checked when made; an unknown one is an error that names the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from ftbc_onnx.energy import AC, MAC, Constants
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.neurons import BINARY, NeuronSpec, check_schedule
from ftbc_onnx.shrinkage import check_shrink
from ftbc_onnx.window import Window

THRESHOLDS = ("auto", "mse", "moments", "percentile", "max")
SMOOTH = ("spiking", "rate-exact")
BUDGETS = ("accuracy", "spikes", "levels")
RULES = ("solve", "paper", "none")
READOUTS = ("mean", "delayed")
SWITCHES = (
    *("binary", "compress_bias", "strict", "per_channel", "random_data", "refit", "verify", "compare", "counting"),
    *("running_mean", "float16", "steps_input"),
)
MOST_STEPS = 1 << 24
"""Spikes are counted in float32, which has every whole number up to here."""

OLDEST_OPSET = 13
"""From here on Split and Squeeze need no known sizes and ReduceSum takes axes."""

_IMPLIED = {"readout": ("readout_from", "delayed"), "threshold": ("percentile", "percentile")}
"""An option, another one that says it by itself, and what it then is."""

FUSE = ("thresholds", "biases", "resets")
FORMS = ("auto", "unrolled", "fused", "folded", "loop", "step")


@dataclass(frozen=True)
class ConvertConfig:
    """How a network is converted.

    Attributes:
        steps: T, the number of time steps.
        neuron: name of a neuron, for the rectifiers; ``auto``: chosen for the budget, on samples held back.
        levels: K levels per step (of ``multi-threshold`` its thresholds); None: 4, or 1 of binary neurons.
            With ``auto``: at most so many levels.
        coding: ``rate`` or ``differential``, of a neuron that is named.
        budget: what ``auto`` looks for: ``accuracy`` (few levels, but as good as the best), ``spikes`` (the fewest
            events of those as good as the best) or ``levels`` (the best with `levels`).
        binary: ``auto`` keeps to spikes of 0 and theta.
        schedule: ``asynchronous``: sites fire at every step; ``synchronous``: each waits for all T steps of its current
            and fires once, so that the network is the ANN with T*K levels (neurons ``if`` and ``group``).
        smooth: what stands behind functions that are no rectifiers: ``spiking`` neurons of both signs, or nothing
            (``rate-exact``: their values travel on as they are).
        include: regular expressions of activations to convert (operator types or node names); empty: all.
        exclude: regular expressions of activations to leave analog.
        until: name of a node behind which the network stays analog, on the mean.
        strict: refuse a network with operators that are no spike arithmetic.
        threshold: how theta is found for plain rectifiers: ``mse`` (least squared error of a quantiser of T*K levels),
            ``moments`` (the same in closed form, from mean and variance), ``percentile``, ``max``, or ``auto`` (chosen
            on calibration samples held back). A QCFS states its own.
        percentile: for ``percentile``, in (0, 100].
        per_channel: one theta per channel instead of one per tensor.
        rule: ``solve``, ``paper`` or ``none``.
        alpha: step of the ``paper`` rule.
        gate: keep the biases of a site only where they hold on calibration samples held back; None: with ``solve``.
        shrink: put biases below so many standard errors to zero, with ``solve`` (`ftbc_onnx.shrinkage`); 0: none.
        compress_bias: store four vectors per channel instead of T biases (`ftbc_onnx.compression`).
        gain: look for a factor per channel on the spikes (`ftbc_onnx.gains`), taken if it holds on samples held back;
            None: with ``solve``, for neurons of one level, if samples are held back for something else.
        refit: fit layers to the spikes that they read (`ftbc_onnx.refit`); taken if it holds on samples held back.
        calib_samples: samples used of the calibration data, at most.
        batch_size: samples per run; None: 128, or fewer if there are fewer or if the network is large. A run on a CPU
            that only judges takes no more than is fast (decision 38).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: of onnxruntime, per session; None: as many as there are cores.
        seed: of random calibration data.
        random_data: calibrate on random data if none are given (marked in report and metadata).
        verify: compare the emitted model with a NumPy run of its plan.
        compare: evaluate the network without its biases, too.
        counting: count events and synaptic operations in the evaluation.
        form: how time is laid out: ``unrolled`` (a copy of the network per step), ``fused`` (the same with the numbers
            of the neurons in the layers around them), ``folded`` (time in the batch, for
            networks whose nodes keep the samples of a batch apart), ``loop`` (one Loop over time), ``step`` (one step,
            whose state the caller keeps: `ftbc_onnx.StepRunner`), or ``auto``: what runs
            fastest on the device (fused or unrolled on a CPU, folded on a GPU where it is possible), or a loop if that
            has too many nodes to be opened quickly.
        fuse: what the fused form puts into the layers: ``thresholds``, ``biases``, ``resets`` (`ftbc_onnx.graph.fuse`).
        opset: version of the default ONNX domain to write, from 13 on; None: the model's own, or 13 if that is older.
        float16: layers with weights compute in float16; neurons and sums stay in float32.
        steps_input: the number of steps is an input of the file, ``ftbc/steps`` (int64, []), T where it is not fed;
            with form ``loop``.
        readout: the output is the ``mean`` over all steps, or ``delayed``: over those from `readout_from` on.
        readout_from: t0 of ``delayed``, from 1 to T - 1.
        early_exit: margin at which the evaluation stops a sample early (`ftbc_onnx.early_exit`); None: it does not.
        energy_mac: pJ of a multiplication with an addition, for the report (`ftbc_onnx.energy`).
        energy_ac: pJ of an addition.
        running_mean: also give the running mean of every output after each step, as ``OUTPUT/running_mean`` [T, ...].
    """

    steps: int = 8
    neuron: str = "auto"
    levels: int | None = None
    coding: str = "rate"
    budget: str = "accuracy"
    binary: bool = False
    schedule: str = "asynchronous"
    smooth: str = "spiking"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    until: str | None = None
    strict: bool = False
    threshold: str = "auto"
    percentile: float = 99.9
    per_channel: bool = True
    rule: str = "solve"
    alpha: float = 0.4
    gate: bool | None = None
    shrink: float = 0.0
    compress_bias: bool = False
    gain: bool | None = None
    refit: bool = False
    calib_samples: int = 256
    batch_size: int | None = None
    device: str = "auto"
    threads: int | None = None
    seed: int = 0
    random_data: bool = False
    verify: bool = True
    compare: bool = True
    counting: bool = True
    form: str = "auto"
    fuse: tuple[str, ...] = FUSE
    opset: int | None = None
    float16: bool = False
    steps_input: bool = False
    readout: str = "mean"
    readout_from: int | None = None
    early_exit: float | None = None
    energy_mac: float = MAC
    energy_ac: float = AC
    running_mean: bool = False

    def __post_init__(self) -> None:
        self._check_types()
        check_positive("calib_samples", self.calib_samples)
        for name in ("batch_size", "threads"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        _one_of("threshold", self.threshold, THRESHOLDS)
        _one_of("rule", self.rule, RULES)
        _one_of("smooth", self.smooth, SMOOTH)
        _one_of("budget", self.budget, BUDGETS)
        _one_of("form", self.form, FORMS)
        check_schedule(self.schedule, self.neuron_spec, self.steps)  # refuses what is no neuron, too
        if self.neuron == "auto" and self.coding != "rate":
            raise ConfigError(
                "coding goes with a neuron that is named: add --neuron (or --budget spikes, which tries both)"
            )
        if self.neuron == "auto" and self.levels is not None:
            check_positive("levels", self.levels)
        if self.neuron != "auto" and (self.binary or self.budget != "accuracy"):
            raise ConfigError(f"budget and binary go with --neuron auto, not with '{self.neuron}'")
        if not _is_number(self.percentile) or not 0 < self.percentile <= 100:
            raise ConfigError(f"percentile is {self.percentile}: it must be above 0 and at most 100")
        if not _is_number(self.alpha) or not 0 < self.alpha < float("inf"):
            raise ConfigError(f"alpha is {self.alpha}: it must be a positive number (0.4 is the published one)")
        self._check_form()
        Constants(self.energy_mac, self.energy_ac)  # refuses what is no energy
        self._check_readout()
        self._check_biases()
        for name in SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it must be True or False")

    def _check_types(self) -> None:
        """Of what later checks compare; numbers of NumPy become Python's."""
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), np.generic):
                object.__setattr__(self, field.name, value.item())
        for name in ("include", "exclude", "fuse"):
            object.__setattr__(self, name, _words(name, getattr(self, name)))
        for name in ("neuron", "coding", "schedule", "device", *(("until",) if self.until is not None else ())):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it must be text")
        for name in ("seed", *(("opset",) if self.opset is not None else ())):
            check_whole(name, getattr(self, name))
        check_positive("T (steps)", self.steps)
        if self.steps > MOST_STEPS:
            raise ConfigError(f"T (steps) is {self.steps}: it must be at most {MOST_STEPS}, up to where float32 counts")

    def _check_form(self) -> None:
        if self.form in ("loop", "step") and self.schedule == "synchronous":
            raise ConfigError(
                f"form '{self.form}' goes with schedule asynchronous: synchronous layers fire one after another"
            )
        for name in self.fuse:
            _one_of("fuse", name, FUSE)
        if "resets" in self.fuse and "thresholds" not in self.fuse:
            raise ConfigError("fuse resets goes with thresholds: a step function needs a threshold of 1")
        if self.fuse != FUSE and self.form not in ("auto", "fused"):
            raise ConfigError(f"fuse goes with form fused, not with '{self.form}'")
        if self.form == "fused" and self.schedule == "synchronous":
            raise ConfigError("form 'fused' goes with schedule asynchronous")
        if self.opset is not None and self.opset < OLDEST_OPSET:
            raise ConfigError(f"opset is {self.opset}: {OLDEST_OPSET} is the oldest that is written")
        if self.steps_input and self.form != "loop":
            raise ConfigError("steps_input goes with form loop: only a loop can run fewer steps")
        if self.form == "step" and self.running_mean:
            raise ConfigError("running_mean goes with another form: the step form gives nothing else")

    def _check_biases(self) -> None:
        check_shrink(self.shrink, self.rule)
        for name in ("gate", "gain"):
            if getattr(self, name) is not None and not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}: it must be True, False or None")
        if self.gain and (self.rule != "solve" or self.schedule == "synchronous"):
            raise ConfigError("gain goes with rule solve and schedule asynchronous: it needs biases to follow it")
        if self.refit and (self.schedule == "synchronous" or self.float16):
            raise ConfigError("refit goes with schedule asynchronous and float32")

    def _check_readout(self) -> None:
        _one_of("readout", self.readout, READOUTS)
        start = self.readout_from
        if self.readout == "mean" and start is not None:
            raise ConfigError("readout_from goes with readout 'delayed', not with 'mean'")
        if self.readout == "delayed":
            if isinstance(start, bool) or not isinstance(start, int) or not 0 < start < self.steps:
                taken = f"a whole number from 1 to T-1 = {self.steps - 1}" if self.steps > 1 else "T of at least 2"
                raise ConfigError(f"readout_from is {start}: readout 'delayed' takes {taken}")
            if self.schedule == "synchronous":
                raise ConfigError(
                    "readout 'delayed' goes with schedule asynchronous: synchronous spikes have no early steps"
                )
        if self.early_exit is not None:
            check_margin(self.early_exit)
            if self.schedule == "synchronous":
                raise ConfigError(
                    "early_exit goes with schedule asynchronous: a synchronous network has no early output"
                )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ConvertConfig:
        """Options by name: `readout_from` alone implies readout ``delayed``, and `percentile` alone that threshold.

        Raises:
            ConfigError: a name is unknown, or a value cannot be used.
        """
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean '{near[0]}'?" if near else f"the options are {', '.join(known)}"
                raise ConfigError(f"unknown option '{name}': {hint}")
        given = {name: value for name, value in options.items() if value is not None or name not in _IMPLIED}
        for name, (implying, value) in _IMPLIED.items():
            if name not in given and options.get(implying) is not None:
                given[name] = value
        return cls(**given)

    @property
    def neuron_spec(self) -> NeuronSpec:
        """The neuron, with its levels and coding (integrate-and-fire for ``auto``, until one is chosen)."""
        if self.neuron == "auto":
            return NeuronSpec()
        levels = self.levels if self.levels is not None else 1 if self.neuron in BINARY else 4
        return NeuronSpec(self.neuron, levels, self.coding)

    @property
    def window(self) -> Window:
        """Over which steps the output is averaged."""
        return Window(self.readout_from or 0)

    @property
    def gates(self) -> bool:
        """Whether biases have to hold on samples held back."""
        return self.rule == "solve" if self.gate is None else self.gate and self.rule != "none"

    def looks_for_gains(self, neuron: NeuronSpec) -> bool:
        """Whether a gain is looked for with this neuron."""
        if self.rule != "solve" or self.schedule == "synchronous":
            return False
        return neuron.most == 1 if self.gain is None else self.gain

    def as_dict(self) -> dict[str, Any]:
        """The options as plain JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def check_positive(name: str, value: int) -> int:
    """The number, if it is whole and at least 1; one of NumPy as Python's.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name} is {value!r}: it must be a whole number, at least 1")
    return int(value)


def check_whole(name: str, value: int) -> int:
    """The number, if it is whole; one of NumPy as Python's.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name} is {value!r}: it must be a whole number")
    return int(value)


def check_margin(value: float, name: str = "early_exit") -> None:
    """Refuse what is no margin of an early exit.

    Raises:
        ConfigError: it is no number from 0.
    """
    if not _is_number(value) or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is {value}: it must be a margin, a number of at least 0")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _words(name: str, value: Any) -> tuple[str, ...]:
    """One text, or several."""
    several = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
    for one in several:
        if not isinstance(one, str):
            raise ConfigError(f"{name} is {value!r}: it must be text, or several of them")
    return several


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise ConfigError(f"{name} is '{value}'{hint}: choose one of {', '.join(choices)}")

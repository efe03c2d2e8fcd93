"""The neurons, by name. A neuron is one file; adding one touches that file and one line of `NEURONS`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.neurons.bipolar import Bipolar
from ftbc_onnx.neurons.differential import Differential
from ftbc_onnx.neurons.group import Group
from ftbc_onnx.neurons.integrate_and_fire import IntegrateAndFire
from ftbc_onnx.neurons.multi_threshold import MultiThreshold
from ftbc_onnx.neurons.protocol import Neuron
from ftbc_onnx.neurons.reversed import Reversed
from ftbc_onnx.neurons.scaled import Scaled
from ftbc_onnx.neurons.signed import Signed
from ftbc_onnx.neurons.soft_reset import SoftReset
from ftbc_onnx.neurons.synchronous import Synchronous

NEURONS: dict[str, Callable[[int], SoftReset]] = {
    "if": lambda _: IntegrateAndFire(),
    "signed": lambda _: Signed("signed"),
    "signed-st": lambda _: Signed("signed-st", negative=0.0),
    "group": Group,
    "signed-group": lambda k: Group(k, signed=True),
    "multi-threshold": MultiThreshold,
}
"""A neuron for rectifiers by its name, made from the number that it takes (K, or n of ``multi-threshold``)."""

BINARY = ("if", "signed", "signed-st")
"""Neurons with one level: they take no number."""

CODINGS = ("rate", "differential")

SCHEDULES = ("asynchronous", "synchronous")
"""When a site fires: at every step on what has come so far, or once, on all T steps (`neurons.synchronous`)."""


@dataclass(frozen=True)
class NeuronSpec:
    """Which neurons a network has.

    Attributes:
        name: of `NEURONS`, for the rectifiers.
        levels: K levels per step; of ``multi-threshold`` the number n of its thresholds; 1 of binary neurons.
        coding: ``rate``, or ``differential`` around the same neuron.
    """

    name: str = "if"
    levels: int = 1
    coding: str = "rate"

    def __post_init__(self) -> None:
        if self.name not in NEURONS:
            near = difflib.get_close_matches(str(self.name), NEURONS, 1)
            hint = f" (did you mean '{near[0]}'?)" if near else ""
            raise ConfigError(f"unknown neuron '{self.name}'{hint}: choose one of {', '.join(NEURONS)}")
        if self.coding not in CODINGS:
            raise ConfigError(f"coding is '{self.coding}': choose one of {', '.join(CODINGS)}")
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or not 1 <= self.levels <= 255:
            raise ConfigError(f"levels is {self.levels}: it must be a whole number from 1 to 255")
        if self.name in BINARY and self.levels != 1:
            raise ConfigError(f"neuron '{self.name}' has one level, not {self.levels}: use group or signed-group")
        if self.name == "multi-threshold" and self.levels > 16:
            raise ConfigError(f"levels is {self.levels}: multi-threshold takes at most 16 thresholds (theta/2^15)")

    @property
    def most(self) -> int:
        """K: the largest number of units in one spike."""
        return 2 ** (self.levels - 1) if self.name == "multi-threshold" else self.levels

    def make(self, bipolar: bool = False) -> Neuron:
        """The neuron for a rectifier, or (`bipolar`) the one of as many levels for y = x."""
        if not bipolar:
            neuron = NEURONS[self.name](self.levels)
        elif self.name == "multi-threshold":
            neuron = MultiThreshold(self.levels, rectifies=False)
        else:
            neuron = Bipolar(self.levels)
        return Differential(neuron) if self.coding == "differential" else neuron

    def __str__(self) -> str:
        levels = "" if self.name in BINARY else f" of {self.levels} {'thresholds' if self.is_powers else 'levels'}"
        return f"{self.name}{levels}{', differential coding' if self.coding == 'differential' else ''}"

    @property
    def is_powers(self) -> bool:
        """Whether its levels are powers of two, one spike a step."""
        return self.name == "multi-threshold"


def check_schedule(schedule: str, neuron: NeuronSpec, steps: int) -> None:
    """Refuse a schedule that is unknown, or synchronous firing where it makes no sense.

    Raises:
        ConfigError: which, and what to choose.
    """
    if schedule not in SCHEDULES:
        raise ConfigError(f"schedule is '{schedule}': choose one of {', '.join(SCHEDULES)}")
    if schedule == "asynchronous":
        return
    if neuron.name not in ("if", "group") or neuron.coding != "rate":
        raise ConfigError(
            f"neuron {neuron} cannot fire layer-synchronously, where nothing has to be taken back: "
            "choose if or group and rate coding, or schedule asynchronous"
        )
    if steps * steps * neuron.most >= 2**24:
        raise ConfigError(
            f"T = {steps} with {neuron.most} level(s) is too long for schedule synchronous: "
            "T*T*K must be below 2^24, so that spikes are counted exactly in float32"
        )


__all__ = [
    "BINARY",
    "CODINGS",
    "NEURONS",
    "SCHEDULES",
    "Neuron",
    "NeuronSpec",
    "Reversed",
    "Scaled",
    "Synchronous",
    "check_schedule",
]

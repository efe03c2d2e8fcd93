"""The plan: where neurons stand and with which numbers. Everything after normalisation reads it, nothing changes it.

A site is known by names only, because a name stays valid in the ANN, in every form of the SNN, in JSON and in a report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ftbc_onnx.compression import RANK, Factors, compress
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.neurons import Neuron, NeuronSpec, Reversed, Scaled, Synchronous, check_schedule
from ftbc_onnx.window import Window


@dataclass(frozen=True)
class SpikingSite:
    """One activation of the ANN, to become one population of neurons.

    Attributes:
        name: unique and readable; every emitted tensor of the site starts with it.
        op_type: ``Relu``, ``Clip``, ``Max`` or ``QCFS``; of a signed site, the operator before it.
        nodes: names of the nodes that the site stands for (a QCFS chain has several).
        current: tensor that enters (the ANN's pre-activation).
        spikes: tensor that leaves (the ANN's activation; in the SNN the spikes).
        rank: number of axes of both; None if not known.
        channel_axis: axis with a bias and a threshold of its own per entry; None: one for the whole tensor.
        channels: C, the length of that axis (1 if there is none).
        ceiling: upper bound stated by a Clip; None if there is none.
        threshold: theta stated by a QCFS, one value or C; None: to be estimated.
        levels: L stated by a QCFS.
        signed: whether spikes of both signs are sent (bipolar neurons, behind a function that is no rectifier).
        upstream: names of the sites whose spikes reach the current through no other site.
    """

    name: str
    op_type: str
    nodes: tuple[str, ...]
    current: str
    spikes: str
    rank: int | None
    channel_axis: int | None
    channels: int
    ceiling: float | None = None
    threshold: tuple[float, ...] | None = None
    levels: int | None = None
    signed: bool = False
    upstream: tuple[str, ...] = ()

    @property
    def channel_shape(self) -> tuple[int, ...]:
        """Shape of a value per channel, as it broadcasts: [1, C, 1, 1] for NCHW, [1, 1] without a channel axis.

        [1] if the rank is not known.
        """
        if self.rank is None:
            return (1,)
        return tuple(self.channels if axis == self.channel_axis else 1 for axis in range(self.rank))

    @property
    def mean_axes(self) -> tuple[int, ...] | None:
        """Every axis but the channel's: (0, 2, 3) for NCHW; None (all of them) without a channel."""
        if self.channel_axis is None or self.rank is None:
            return None
        return tuple(axis for axis in range(self.rank) if axis != self.channel_axis)


@dataclass(frozen=True, eq=False)
class Layer:
    """What a layer of the SNN has in place of the ANN's numbers (`ftbc_onnx.refit`).

    Attributes:
        weights: in the shape of the ANN's, float32.
        bias: [C], float32.
    """

    weights: np.ndarray
    bias: np.ndarray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Layer)
            and np.array_equal(self.weights, other.weights)
            and np.array_equal(self.bias, other.bias)
        )

    __hash__ = None  # type: ignore[assignment]  # it holds arrays


@dataclass(frozen=True)
class Refusal:
    """A node that cannot be converted, and why."""

    node: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} '{self.node}': {self.reason}"


def _frozen(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    frozen = {}
    for name, value in arrays.items():
        array = np.array(value, dtype=np.float32)
        array.setflags(write=False)
        frozen[name] = array
    return frozen


@dataclass(frozen=True, eq=False)
class SpikingPlan:
    """Where neurons stand and with which numbers.

    Attributes:
        source_digest: SHA-256 of the ANN's file or bytes.
        sites: in topological order.
        steps: T, the number of time steps.
        neuron: which neurons stand at the rectifiers; signed sites have bipolar ones of as many levels.
        thresholds: theta per site, [C] float32, positive.
        biases: temporal bias b per site, [T, C] float32, added to the current; absent sites have none (zero).
        factors: biases that are stored compressed, per site (`ftbc_onnx.compression`); `biases` holds their tables.
        gains: factor on the spikes of a site, per channel, [C] (`ftbc_onnx.neurons.scaled`); absent sites have none.
        readout: over which steps the output is averaged; ``mean`` or ``delayed:t0`` as text.
        schedule: ``asynchronous``: sites fire at every step; ``synchronous``: once, on all T steps of their current.
        reversed: sites of integrate-and-fire neurons whose currents come with the other sign (`ftbc_onnx.graph.fuse`),
            and the membrane that they start from.
        layers: layers with other weights than the ANN's, by the name of their node (`ftbc_onnx.refit`).
    """

    source_digest: str
    sites: tuple[SpikingSite, ...]
    steps: int
    neuron: NeuronSpec
    thresholds: Mapping[str, np.ndarray]
    biases: Mapping[str, np.ndarray] = field(default_factory=dict)
    readout: Window = field(default_factory=Window)
    schedule: str = "asynchronous"
    factors: Mapping[str, Factors] = field(default_factory=dict)
    gains: Mapping[str, np.ndarray] = field(default_factory=dict)
    reversed: Mapping[str, float] = field(default_factory=dict)
    layers: Mapping[str, Layer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.neuron, str):
            object.__setattr__(self, "neuron", NeuronSpec(self.neuron))
        if isinstance(self.readout, str):
            object.__setattr__(self, "readout", Window.parse(self.readout))
        if self.steps < 1:
            raise ConfigError(f"the number of time steps T is {self.steps}: it must be at least 1")
        check_schedule(self.schedule, self.neuron, self.steps)
        if self.synchronous and self.readout.start:
            raise ConfigError("readout delayed goes with schedule asynchronous: synchronous spikes have no early steps")
        names = {site.name for site in self.sites}
        if set(self.thresholds) != names or not set(self.biases) <= names:
            strange = sorted(set(self.thresholds) ^ names | set(self.biases) - names)
            raise ConfigError(f"thresholds and biases do not fit the sites of the plan: {', '.join(strange)}")
        object.__setattr__(self, "thresholds", _frozen(self.thresholds))
        filled = {site.name: np.zeros((self.steps, site.channels)) for site in self.sites}
        tables = {name: factors.table() for name, factors in self.factors.items()}
        object.__setattr__(self, "biases", _frozen({**filled, **self.biases, **tables}))
        object.__setattr__(self, "gains", _frozen(self.gains))
        if self.gains and self.synchronous:
            raise ConfigError("gains go with schedule asynchronous: a synchronous site sends its count as it is")
        for site in self.sites:
            gain = self.gains.get(site.name, np.ones(site.channels))
            if gain.shape != (site.channels,) or not np.all(gain > 0) or not np.all(np.isfinite(gain)):
                raise ConfigError(f"gain of site '{site.name}' must be {site.channels} positive numbers: {gain}")
            theta, bias = self.thresholds[site.name], self.biases[site.name]
            if theta.shape != (site.channels,) or not np.all(theta > 0) or not np.all(np.isfinite(theta)):
                raise ConfigError(f"threshold of site '{site.name}' must be {site.channels} positive numbers: {theta}")
            if bias.shape != (self.steps, site.channels) or not np.all(np.isfinite(bias)):
                raise ConfigError(
                    f"bias of site '{site.name}' must be finite and [T, C] = {(self.steps, site.channels)}: "
                    f"it is {bias.shape}"
                )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SpikingPlan):
            return NotImplemented
        return (
            self.describe() == other.describe()
            and self.layers == other.layers
            and all(
                np.array_equal(self.thresholds[name], other.thresholds[name])
                and np.array_equal(self.biases[name], other.biases[name])
                for name in self.thresholds
            )
        )

    __hash__ = None  # type: ignore[assignment]  # it holds arrays

    def neuron_of(self, site: SpikingSite) -> Neuron:
        """The neuron that stands at a site."""
        neuron: Neuron = self.neuron.make(bipolar=site.signed)
        if site.name in self.reversed:
            return Reversed(self.reversed[site.name])
        gain = self.gains.get(site.name)
        return neuron if gain is None else Scaled(neuron, gain.reshape(site.channel_shape))

    def height(self, site: SpikingSite) -> np.ndarray:
        """The largest spike of every channel of a site: theta times gain, [C]."""
        return np.asarray(self.thresholds[site.name] * self.gains.get(site.name, np.float32(1)))

    @property
    def synchronous(self) -> bool:
        """Whether sites fire once, on all T steps of their current."""
        return self.schedule == "synchronous"

    def layer_of(self, site: SpikingSite) -> Synchronous:
        """What fires at a site of a synchronous plan."""
        return Synchronous(self.neuron.most, self.steps, site.signed)

    @property
    def depth(self) -> int:
        """D, the number of sites on the longest chain."""
        depths: dict[str, int] = {}
        for site in self.sites:  # in topological order
            depths[site.name] = 1 + max((depths[name] for name in site.upstream), default=0)
        return max(depths.values(), default=0)

    def with_biases(self, biases: Mapping[str, np.ndarray]) -> SpikingPlan:
        """The same plan with other biases, [T, C] per site."""
        return replace(self, biases=biases, factors={})

    def with_compressed_biases(self) -> SpikingPlan:
        """The same plan with a few vectors per channel for every table that is larger than they are."""
        large = {name: bias for name, bias in self.biases.items() if RANK * sum(bias.shape) < bias.size and bias.any()}
        return replace(self, factors={name: compress(bias) for name, bias in large.items()})

    def with_thresholds(self, thresholds: Mapping[str, np.ndarray]) -> SpikingPlan:
        """The same plan with other thresholds, [C] per site."""
        return replace(self, thresholds=thresholds)

    def with_gains(self, gains: Mapping[str, np.ndarray]) -> SpikingPlan:
        """The same plan with other gains, [C] per site."""
        return replace(self, gains=gains)

    def with_layers(self, layers: Mapping[str, Layer]) -> SpikingPlan:
        """The same plan with other layers."""
        return replace(self, layers=layers)

    def with_neuron(self, neuron: NeuronSpec) -> SpikingPlan:
        """The same plan with other neurons."""
        return replace(self, neuron=neuron)

    def without_biases(self) -> SpikingPlan:
        """The same plan with every bias zero."""
        return replace(self, biases={}, factors={})

    def plain(self) -> SpikingPlan:
        """Plain conversion: no biases, no gains, the ANN's layers."""
        return self.without_biases().with_gains({}).with_layers({})

    def prefix(self, steps: int) -> SpikingPlan:
        """The plan of the first `steps` time steps (nothing in it depends on T, so its biases are the first rows).

        Raises:
            ConfigError: `steps` is not between 1 and T, or the plan is synchronous: there everything depends on T.
        """
        if self.synchronous and steps != self.steps:
            raise ConfigError(f"a synchronous plan of T = {self.steps} steps has no prefix: convert with T = {steps}")
        if not 1 <= steps <= self.steps:
            raise ConfigError(f"a prefix of {steps} steps was asked of a plan with T = {self.steps}")
        biases = {name: bias[:steps] for name, bias in self.biases.items()}
        factors = {name: kept.prefix(steps) for name, kept in self.factors.items()}
        return replace(self, steps=steps, biases=biases, factors=factors)

    def describe(self) -> dict[str, Any]:
        """The plan without its numbers, as plain JSON types (the numbers are the emitted model's initializers)."""
        return {
            "source_digest": self.source_digest,
            "steps": self.steps,
            "neuron": asdict(self.neuron),
            "readout": str(self.readout),
            "schedule": self.schedule,
            "gains": {name: [float(value) for value in gain] for name, gain in self.gains.items()},
            "layers": sorted(self.layers),
            "sites": [asdict(site) for site in self.sites],
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the plan with its numbers, as it is before and after it went through a file."""
        found = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for name in sorted(self.thresholds):
            for numbers in (self.thresholds[name], self.biases[name]):
                found.update(np.ascontiguousarray(numbers).data)
        for name in sorted(self.layers):
            for numbers in (self.layers[name].weights, self.layers[name].bias):
                found.update(np.ascontiguousarray(numbers).data)
        return found.hexdigest()


def site_from_dict(record: Mapping[str, Any]) -> SpikingSite:
    """Inverse of the records in `SpikingPlan.describe`."""
    fields = dict(record)
    for name in ("nodes", "upstream", "threshold"):
        if fields.get(name) is not None:
            fields[name] = tuple(fields[name])
    return SpikingSite(**fields)

"""What a spiking network costs beside the ANN, in pJ per sample: arithmetic on counts, no measurement.

A MAC multiplies and adds, an AC only adds. With t the steps done, K the levels of a spike,

    MAC(t)  = M1 + t*Mm + A(t)             layers on inputs, once; on means, every step; SynOps on currents
    AC(t)   = S(t) - A(t)                  SynOps on spikes, one per event and output it reaches
    AC2(t)  = S2(t) - A(t)                 the same in binary spikes, popcount(k) for an event of k units
    U(t)    = t*U1                         additions of all neurons, whether they fire or not
    E(t)    = Emac*MAC(t) + Eac*(AC(t) + U(t))
    E_ann   = Emac*MAC_ann                 MAC_ann = M1 + Mm + D, with D one step's SynOps if no input were 0

Three comparisons are given, since each is in use:

1. E/E_ann with AC, an event of several units being one addition; and the same without U, as it is mostly published.
2. E/E_ann with AC2.
3. E with AC2 against an ANN with activations of as many values, n = ceil(log2(t*K + 1)) bits, that is computed bit by
   bit: Eq(t) = Emac*(M1 + Mm) + min(n*Eac, Emac)*D. This is the comparison that says whether spikes pay.

The constants are for 32-bit floating point in 45 nm CMOS (Horowitz, ISSCC 2014): 3.7 + 0.9 pJ and 0.9 pJ. Memory, which
costs more than arithmetic, is not in them; nor are comparisons, poolings, normalisations and residual additions, which
are counted on neither side.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil, log2
from typing import Any

from ftbc_onnx.errors import ConfigError
from ftbc_onnx.results import Counts

MAC, AC = 4.6, 0.9
"""pJ, 45 nm, 32-bit floating point."""


@dataclass(frozen=True)
class Constants:
    """pJ per operation.

    Attributes:
        mac: Emac, a multiplication and an addition.
        ac: Eac, an addition.
    """

    mac: float = MAC
    ac: float = AC

    def __post_init__(self) -> None:
        for name, value in (("energy_mac", self.mac), ("energy_ac", self.ac)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value < float("inf"):
                raise ConfigError(f"{name} is {value}: it must be a positive number of pJ ({MAC} a MAC, {AC} an AC)")


@dataclass(frozen=True)
class Energy:
    """Per sample; curves have one value per number of steps t = 1..T.

    Attributes:
        constants: pJ per operation.
        macs: MAC(t).
        acs: AC(t).
        binary_acs: AC2(t).
        neuron_additions: U(t).
        ann_macs: MAC_ann.
        snn: E(t) in pJ, with AC.
        binary: the same with AC2.
        ann: E_ann in pJ.
        bits: n(t).
        quantised: Eq(t) in pJ.
        uncounted: operators with weights that are in none of these numbers, on either side.
    """

    constants: Constants
    macs: tuple[float, ...]
    acs: tuple[float, ...]
    binary_acs: tuple[float, ...]
    neuron_additions: tuple[float, ...]
    ann_macs: float
    snn: tuple[float, ...]
    binary: tuple[float, ...]
    ann: float
    bits: tuple[int, ...]
    quantised: tuple[float, ...]
    uncounted: tuple[str, ...] = ()

    @property
    def ratios(self) -> dict[str, list[float] | None]:
        """E over the ANN's, by comparison; None for an ANN without MACs."""
        pairs = list(zip(self.snn, self.neuron_additions, strict=True))
        without = tuple(energy - self.constants.ac * added for energy, added in pairs)
        steps = len(self.snn)
        return {
            "ratio": _over(self.snn, (self.ann,) * steps),
            "ratio_without_neurons": _over(without, (self.ann,) * steps),
            "binary_ratio": _over(self.binary, (self.ann,) * steps),
            "quantised_ratio": _over(self.binary, self.quantised),
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types; energies in pJ."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        plain["constants"] = {"mac_pj": self.constants.mac, "ac_pj": self.constants.ac}
        for name in ("snn", "binary", "ann", "quantised"):
            plain[f"{name}_pj"] = plain.pop(name)
        return {**plain, **self.ratios, "verdict": self.verdict() or None}

    def verdict(self) -> str:
        """A plain sentence if the spiking network costs more after the last step, in any comparison; else nothing."""
        ratios = self.ratios
        said = (
            ("ratio", "the ANN's"),
            ("binary_ratio", "the ANN's if spikes are binary"),
            ("quantised_ratio", f"that of an ANN with activations of {max(self.bits, default=0)} bits"),
        )
        last = [(values[-1], what) for name, what in said if (values := ratios[name])]
        more = ", ".join(f"{ratio:.2f} times {what}" for ratio, what in last if ratio > 1)
        return f"The spiking network costs more energy: {more}." if more else ""


def energy_of(counts: Counts, constants: Constants | None = None) -> Energy:
    """The equations above.

    Args:
        counts: what was counted in an evaluation.
        constants: pJ per operation; None: 45 nm.
    """
    e = constants or Constants()
    steps = range(1, len(counts.synops) + 1)
    analog = counts.analog_synops
    macs = tuple(counts.macs_once + t * counts.macs_every_step + analog[t - 1] for t in steps)
    acs = tuple(counts.synops[t - 1] - analog[t - 1] for t in steps)
    binary_acs = tuple(counts.binary_synops[t - 1] - analog[t - 1] for t in steps)
    added = tuple(t * counts.neuron_additions for t in steps)
    bits = tuple(ceil(log2(t * counts.levels + 1)) for t in steps)
    static = e.mac * (counts.macs_once + counts.macs_every_step)
    return Energy(
        constants=e,
        macs=macs,
        acs=acs,
        binary_acs=binary_acs,
        neuron_additions=added,
        ann_macs=counts.ann_macs,
        snn=tuple(e.mac * m + e.ac * (a + u) for m, a, u in zip(macs, acs, added, strict=True)),
        binary=tuple(e.mac * m + e.ac * (a + u) for m, a, u in zip(macs, binary_acs, added, strict=True)),
        ann=e.mac * counts.ann_macs,
        bits=bits,
        quantised=tuple(static + min(n * e.ac, e.mac) * counts.dense_synops for n in bits),
        uncounted=counts.uncounted,
    )


def _over(energies: tuple[float, ...], others: tuple[float, ...]) -> list[float] | None:
    return [a / b for a, b in zip(energies, others, strict=True)] if all(others) else None

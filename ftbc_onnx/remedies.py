"""What to do about a site: a sentence for every cause of its error, and options of a conversion that may help."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.diagnosis import Diagnosis, SiteDiagnosis
from ftbc_onnx.shell import joined

SMALL = 0.05
"""An output error up to here is small: no site is accused."""

EVEN = 2.0
"""A site stands out if its share is this many times what it were if all were alike, 1 / (S + 1)."""

MENTIONED = 0.1
"""A cause is mentioned if it makes so much of a site's error."""

_FINEST = 99.99  # percentile beyond which only the maximum is higher

_SAME = 0.01  # difference between the file and the diagnosis graph that other kernels may make

_SHORT = {"steps": "-T"}


Changes = Mapping[str, Any]
"""Options of a conversion that are others."""


@dataclass(frozen=True)
class Remedy:
    """What was found of a site, and what to do.

    Attributes:
        site: the site.
        cause: of `ftbc_onnx.diagnosis.CAUSES`.
        finding: half a sentence.
        tries: options that may help, each by itself, what promises most first.
        advice: what to do where no option helps.
    """

    site: str
    cause: str
    finding: str
    tries: tuple[Changes, ...] = ()
    advice: str = ""

    @property
    def sentence(self) -> str:
        """Finding and advice."""
        return f"{self.finding}: {self.advice or 'try ' + ', or '.join(spelled(changes) for changes in self.tries)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        tries = [{n: list(v) if isinstance(v, tuple) else v for n, v in changes.items()} for changes in self.tries]
        return {"site": self.site, "cause": self.cause, "sentence": self.sentence, "tries": tries}


def spelled(changes: Changes) -> str:
    """Options as the command line takes them; True and False as --name and --no-name, but for --per-tensor."""
    words: list[str] = []
    for name, value in changes.items():
        flag = _SHORT.get(name, "--" + name.replace("_", "-"))
        if name == "per_channel":
            words.append("--per-channel" if value else "--per-tensor")
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, tuple):
            words += [word for entry in value for word in (flag, entry)]
        else:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return joined(words)


def suspects(diagnosis: Diagnosis) -> list[SiteDiagnosis]:
    """The sites that stand out, the one that costs most first; none if the output's error is small."""
    if diagnosis.output_error[-1] <= SMALL:
        return []
    least = EVEN / (len(diagnosis.sites) + 1)
    return [site for site in diagnosis.ranked if site.share >= least]


def verdict(diagnosis: Diagnosis) -> list[str]:
    """What is to be said of the whole network, one sentence each."""
    error = f"{100 * diagnosis.output_error[-1]:.1f} % after {diagnosis.plan.steps} steps"
    said = [found.sentence for found in diagnosis.unlike]
    if diagnosis.altered:
        listed = ", ".join(diagnosis.altered)
        said.append(f"weights of the file are not those of the ANN ({listed}): convert the ANN again")
    if diagnosis.tail > SMALL:
        said.append(f"layers behind the last site add an output error of {100 * diagnosis.tail:.1f} %")
    if diagnosis.rerun is not None and diagnosis.rerun > _SAME:
        said.append(
            f"the file does not compute what its plan says (its output differs by {100 * diagnosis.rerun:.1f} %): it "
            "was changed; what follows is about the plan"
        )
    accused = suspects(diagnosis)
    if accused:
        listed = ", ".join(f"{site.site.name} {100 * site.cost:.1f} %" for site in accused)
        said.append(f"output error {error}; what stands out, and makes so much of an error alone: {listed}")
    elif diagnosis.output_error[-1] <= SMALL:
        said.append(f"the network follows its ANN: output error {error}, no site is accused")
    elif diagnosis.exact_alone:
        said.append(f"output error {error}, and every site alone is exact: it comes of spikes that arrive unevenly")
    else:
        said.append(f"output error {error}, and no site stands out: they add up")
    return said


def remedies(diagnosis: Diagnosis, options: ConvertConfig, *, binary: bool = False) -> list[Remedy]:
    """What to do, for every suspect and every cause of its error that counts, what is wrong before what is coarse.

    If no site stands out, but the output's error is not small, for the one that is ranked first.

    Args:
        diagnosis: of a network.
        options: that it was converted with, with its neuron by name.
        binary: whether spikes have to be binary: no other neuron is suggested then.
    """
    accused = suspects(diagnosis)
    if not accused and diagnosis.output_error[-1] > SMALL:
        accused = diagnosis.ranked[:1]
    found = [
        _REMEDIES[cause](suspect, diagnosis, options)
        for suspect in accused
        for cause, part in suspect.causes.items()
        if part > 0 and part >= MENTIONED * suspect.local
    ]
    if not binary:
        return found
    return [replace(remedy, tries=tuple(each for each in remedy.tries if "neuron" not in each)) for remedy in found]


def to_try(found: Iterable[Remedy], most: int) -> list[Changes]:
    """Every change once: the first of every remedy, then the second ones."""
    tries = [remedy.tries for remedy in found]
    rounds = zip_longest(*tries)
    different = {spelled(changes): changes for each in rounds for changes in each if changes}
    return list(different.values())[:most]


def _part(site: SiteDiagnosis, cause: str) -> str:
    return f"{100 * site.causes[cause] / site.local:.0f} % of what it adds"


def _weights(site: SiteDiagnosis, diagnosis: Diagnosis, _: ConvertConfig) -> Remedy:
    listed = ", ".join(diagnosis.altered)
    finding = f"{_part(site, 'weights')} comes of weights that are others in the file than in the ANN ({listed})"
    return Remedy(site.site.name, "weights", finding, advice="convert the ANN again")


def _silent(site: SiteDiagnosis, _: Diagnosis, options: ConvertConfig) -> Remedy:
    finding = (
        f"{_part(site, 'silent')} is of {site.silent} of {site.site.channels} channels that never fire although the "
        "ANN is active there: their thresholds do not fit"
    )
    return _thresholds(site, "silent", finding, (_more(options),))


def _clipping(site: SiteDiagnosis, _: Diagnosis, options: ConvertConfig) -> Remedy:
    channels = f"{site.clipped} of {site.site.channels} channels"
    finding = f"{_part(site, 'clipping')} is activation beyond the threshold, in {channels}"
    tries: list[Changes] = [] if options.per_channel else [{"per_channel": True}]
    if options.threshold != "max":
        fine = options.threshold == "percentile" and options.percentile >= _FINEST
        tries.append({"threshold": "max"} if fine else {"threshold": "percentile", "percentile": _FINEST})
    return _thresholds(site, "clipping", finding, (*tries, _more(options)))


def _thresholds(site: SiteDiagnosis, cause: str, finding: str, tries: tuple[Changes, ...]) -> Remedy:
    """Thresholds are found in another way, but for those that the model states."""
    if site.site.threshold is not None:
        return Remedy(site.site.name, cause, finding, advice="the model states its threshold, change it there")
    return Remedy(site.site.name, cause, finding, tries)


def _bias(site: SiteDiagnosis, _: Diagnosis, options: ConvertConfig) -> Remedy:
    finding = f"{_part(site, 'bias')} comes of its temporal biases, which do not hold on these data"
    tries = [_more(options)]
    if options.rule == "solve" and not options.shrink:
        tries.append({"shrink": 2.0})
    return Remedy(site.site.name, "bias", finding, tuple(tries))


def _timing(site: SiteDiagnosis, diagnosis: Diagnosis, options: ConvertConfig) -> Remedy:
    finding = f"{_part(site, 'timing')} comes of spikes that reach it unevenly"
    signed = diagnosis.plan.neuron.name.startswith("signed")
    tries = [] if signed else [_finer(diagnosis)]
    return Remedy(site.site.name, "timing", finding, (*tries, {"steps": 2 * options.steps}))


def _rounding(site: SiteDiagnosis, diagnosis: Diagnosis, options: ConvertConfig) -> Remedy:
    levels = options.steps * diagnosis.plan.neuron.most
    finding = f"{_part(site, 'rounding')} is rounding to T*K = {levels} levels"
    tries = [_finer(diagnosis), {"steps": 2 * options.steps}]
    if not site.site.signed and len(diagnosis.sites) > 1:
        tries.append({"exclude": (*options.exclude, f"^{re.escape(site.site.name)}$")})
    return Remedy(site.site.name, "rounding", finding, tuple(tries))


def _more(options: ConvertConfig) -> Changes:
    """Twice the calibration samples."""
    return {"calib_samples": 2 * options.calib_samples}


def _finer(diagnosis: Diagnosis) -> Changes:
    """A signed neuron with more levels."""
    most = diagnosis.plan.neuron.most
    return {"neuron": "signed-group", "levels": min(8 if most < 8 else 15 if most < 15 else 2 * most, 255)}


_REMEDIES = {
    "weights": _weights,
    "silent": _silent,
    "clipping": _clipping,
    "bias": _bias,
    "timing": _timing,
    "rounding": _rounding,
}

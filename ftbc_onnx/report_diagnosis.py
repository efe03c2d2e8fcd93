"""A diagnosis for a terminal: verdict, output error, ranked sites, what to try, what each trial gained."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ftbc_onnx.diagnosis import Diagnosis, SiteDiagnosis
from ftbc_onnx.remedies import Remedy, verdict
from ftbc_onnx.selection import Trial

SAID = 0.1
"""Part of what a site adds from which a cause is listed."""

_ABREAST = 4  # steps whose pairs of numbers are kept on a line each

SHOWN = 10
"""Sites that are listed, at most, unless all are asked for."""


def print_diagnosis(
    console: Console,
    diagnosis: Diagnosis,
    remedies: Sequence[Remedy],
    trials: Sequence[Trial] = (),
    verbose: bool = False,
) -> None:
    """What was found; with `verbose` every site, and its error after every step."""
    plan = diagnosis.plan
    _say(
        console,
        f"{diagnosis.samples} samples of {diagnosis.data}, T = {plan.steps}, neuron {plan.neuron}, output "
        f"'{diagnosis.output}'",
    )
    steps = " ".join(f"{100 * error:.1f}" for error in diagnosis.output_error)
    agreement = "" if diagnosis.agreement is None else f"; agrees with the ANN on {diagnosis.agreement:.1f} %"
    _say(console, f"output error after each step, %: {steps}{agreement}")
    for sentence in verdict(diagnosis):
        _say(console, sentence)
    ranked = diagnosis.ranked if verbose else diagnosis.ranked[:SHOWN]
    _print_sites(console, ranked, len(diagnosis.sites))
    if verbose:
        _print_curves(console, diagnosis)
    for remedy in remedies:
        _say(console, f"{remedy.site}: {remedy.sentence}")
    if trials:
        _print_trials(console, trials)


def _print_sites(console: Console, sites: Sequence[SiteDiagnosis], count: int) -> None:
    """One row per site, the one that costs most first."""
    some = f" ({len(sites)} of {count})" if len(sites) < count else ""
    table = Table(title=f"sites by what they cost, %{some}", title_justify="left")
    table.add_column("site", overflow="fold")
    decides = any(site.turned is not None for site in sites)
    for name in ("alone", *(("turns",) if decides else ()), "error", "own", "adds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("of that")
    for site in sites:
        turned = [] if site.turned is None else [f"{site.turned:.1f}"]
        numbers = [f"{100 * value:.1f}" for value in (site.cost, site.real[-1], site.alone[-1], site.local)]
        parts = [(part / max(site.local, 1e-30), name) for name, part in site.causes.items()]
        listed = ", ".join(f"{name} {100 * part:.0f}" for part, name in sorted(parts, reverse=True) if part >= SAID)
        table.add_row(escape(site.site.name), numbers[0], *turned, *numbers[1:], listed)
    console.print(table)


def _print_curves(console: Console, diagnosis: Diagnosis) -> None:
    """Error and own error of every site after each step, in topological order."""
    table = Table(
        title="what the output is spared without it, and error / own error after each step, %", title_justify="left"
    )
    table.add_column("site", overflow="fold")
    table.add_column("spared", justify="right", no_wrap=True)
    for t in range(diagnosis.plan.steps):
        table.add_column(str(t + 1), justify="right", no_wrap=diagnosis.plan.steps <= _ABREAST)
    for site in diagnosis.sites:
        pairs = zip(site.real, site.alone, strict=True)
        spared = f"{100 * site.spared:.1f}"
        table.add_row(
            escape(site.site.name), spared, *(f"{100 * real:.1f} / {100 * alone:.1f}" for real, alone in pairs)
        )
    console.print(table)


def _print_trials(console: Console, trials: Sequence[Trial]) -> None:
    """What was tried, and what it gained over the first."""
    first = trials[0]
    table = Table(title=f"tried, on {first.samples} calibration samples held back", title_justify="left")
    table.add_column("options", overflow="fold")
    for name in ("output error, %", "gained", "agrees, %", "gained"):
        table.add_column(name, justify="right")
    for trial in trials:
        cells = [f"{100 * trial.error:.2f}", "" if trial is first else f"{100 * (first.error - trial.error):+.2f}"]
        if trial.agreement is None or first.agreement is None:
            cells += ["", ""]
        else:
            gained = trial.agreement - first.agreement
            cells += [f"{trial.agreement:.1f}", "" if trial is first else f"{gained:+.1f}"]
        table.add_row(escape(trial.what), *cells)
    console.print(table)


def _say(console: Console, text: str) -> None:
    """One line, which a terminal may wrap but nothing else does."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)

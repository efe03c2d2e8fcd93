"""What happened, for a terminal: short tables made of the same plain records that ``--json`` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_conversion(console: Console, report: Mapping[str, Any], verbose: bool = False) -> None:
    """Summary of a conversion: the network, the calibration, the accuracy curve; with `verbose` also the sites."""
    classes = ", ".join(f"{count} {name}" for name, count in report["node_classes"].items())
    _say(console, f"[bold]{escape(report['source'])}[/]: {len(report['sites'])} sites; nodes: {classes}")
    _say(
        console,
        f"T = {report['steps']}, {report['form']} in {report['emitted_nodes']} nodes, neuron {report['neuron']}, "
        f"threshold {report['threshold']}, rule {report['rule']}, device {report['device']} ({report['provider']})",
    )
    if report["form"] != "unrolled" and report["options"]["form"] == "auto":
        _say(console, f"form {report['form']}: {report['form_because']} (--form takes another)")
    for kind in ("float16", "double"):
        if f"{kind}_to_float32" in report["normalisation"]:
            _say(console, f"computed in float32, where the ANN has {kind}; inputs and outputs keep their types")
    pairs = report["normalisation"].get("dequantise")
    if pairs:
        _say(console, f"QuantizeLinear and DequantizeLinear taken out in {pairs} place(s): spikes round instead")
    layered = report["synchronous"]
    if layered is not None:
        _say(
            console,
            f"layer-synchronous: a quantised network with {layered['levels']} levels; each of the {layered['depth']} "
            f"layers waits {report['steps']} steps, so a result takes {layered['latency']} steps (rows before the last "
            "have no meaning of their own)",
        )
    _print_calibration(console, report)
    print_selections(console, report["selections"], verbose)
    if report["random_data"]:
        _say(console, "[bold yellow]calibrated on random data: for a dry run only[/]")
    _print_channels(console, report)
    if report["rate_exact"]:
        kinds = Counter(node["op_type"] for node in report["rate_exact"])
        listed = ", ".join(f"{count} {op}" for op, count in kinds.most_common())
        _say(console, f"not spike arithmetic, applied to running means: {listed}")
    for left in report["analog"]:
        _say(console, f"left analog: {_node(left)} ({escape(left['reason'])})")
    print_verification(console, report["verification"])
    if report["evaluation"] is not None:
        where = "calibration data: " if report["evaluated_on"] == "calibration data" else ""
        print_curve(console, report["evaluation"], report["evaluation_without_bias"], where)
        print_energy(console, report["energy"])
    for sentence in report["summary"][1:]:  # the first says what the table does
        _say(console, escape(sentence))
    if verbose:
        print_sites(console, report)


def print_verification(console: Console, checked: Mapping[str, Any] | None) -> None:
    """How far the file is from a NumPy run of its plan."""
    if checked is None:
        _say(console, "not verified")
        return
    mean = checked.get("mean_difference")
    if mean is not None:
        _say(console, f"outputs after {checked['steps']} steps are those of the plan, within {mean:.2%} on average")
        return
    how = "to the last bit" if checked["bitwise"] else f"within {checked['largest_difference']:.1e}"
    line = f"verified against a NumPy run of the plan: equal {how} over {checked['steps']} steps"
    fused = checked["fusion_difference"]
    _say(console, line if fused is None else f"{line}, once its numbers are in the layers (within {fused:.0e})")


def _print_channels(console: Console, report: Mapping[str, Any]) -> None:
    """Channels that are dead, silent or saturated, where there are any."""
    silent = [site["silent_channels"] for site in (report["evaluation"] or {"sites": {}})["sites"].values()]
    saturated = [(site["activation"] or {}).get("saturated_channels") for site in report["sites"]]
    for counts, what in (
        ([site["dead_channels"] for site in report["sites"]], "were never active in calibration"),
        (silent, "sent nothing in the evaluation, although the ANN is active there"),
        (saturated, "lose more than 5 % of their activation above theta"),
    ):
        found = [count for count in counts if count]
        if found:
            _say(console, f"{sum(found)} channel(s) in {len(found)} site(s) {what}")


def _print_calibration(console: Console, report: Mapping[str, Any]) -> None:
    """Where the biases come from, and how they are stored."""
    calibration = report["calibration"]
    if calibration is None:
        _say(console, "no biases were calibrated: every temporal bias is zero")
    else:
        _say(
            console,
            f"biases from {calibration['samples']} samples of {escape(report['data'])} in {calibration['batches']} "
            f"batch(es), {calibration['seconds']:.1f} s; {calibration['held_back']} more held back",
        )
        if calibration["shrunk"] is not None:
            share = 100 * calibration["shrunk"]
            _say(console, f"{share:.0f} % of the biases were put to zero, as calibration batches do not agree on them")
        packed = calibration["compression"]
        if packed is not None:
            _say(
                console,
                f"biases stored in {packed['after']} numbers instead of {packed['before']}: output error "
                f"{packed['output_error_before']:.4f} -> {packed['output_error']:.4f} on {packed['samples']} samples",
            )


def print_selections(console: Console, selections: Sequence[Mapping[str, Any]], verbose: bool = False) -> None:
    """What was chosen on the samples held back, one line per question; with `verbose` what else was tried."""
    for selection in selections:
        trials = selection["trials"]
        _say(
            console,
            f"{selection['question']} chosen on {trials[0]['samples']} samples: "
            f"{trials[selection['chosen']]['what']} ({selection['why']}, {len(trials)} tried)",
        )
        for trial in trials if verbose else ():
            agreement = "" if trial["agreement"] is None else f", agrees with the ANN on {trial['agreement']:.1f} %"
            events = "" if trial["events"] is None else f", {trial['events']:.2f} events per neuron"
            _say(console, f"  {trial['what']}: output error {or_not_finite(trial['error'], '.4f')}{agreement}{events}")


def print_curve(
    console: Console, evaluation: Mapping[str, Any], before: Mapping[str, Any] | None = None, where: str = ""
) -> None:
    """Accuracy (or agreement, or output error) against T, one column per step."""
    ann = evaluation["ann_accuracy"]
    title = f"{where}{evaluation['samples']} samples of {escape(evaluation['data'])}"
    if ann is not None:
        title += f", ANN {ann:.2f} %"
    _say(console, title)
    table = Table()
    table.add_column("T", justify="right")
    columns = [
        ("no bias, %", None if before is None else before["accuracy"], 100),
        ("accuracy, %", evaluation["accuracy"], 100),
        ("agrees with ANN, %", evaluation["agreement"], 100),
        ("output error", evaluation["output_gap"], 1),
    ]
    shown = [(name, values, kind) for name, values, kind in columns if values is not None]
    if not shown:
        _say(console, "without labels, or scores of classes, and without the ANN nothing can be said of its accuracy")
    for name, _, _ in shown:
        table.add_column(name, justify="right")
    steps = max((len(values) for _, values, _ in shown), default=0)
    for t in shown_steps(steps):
        cells = [f"{values[t]:.2f}" if kind == 100 else f"{values[t]:.3f}" for _, values, kind in shown]
        table.add_row(str(t + 1), *cells)
    if shown:
        console.print(table)
    kind, _, start = evaluation["readout"].partition(":")
    if kind == "delayed":
        _say(console, f"readout: mean over the steps after the first {start}; rows up to T = {start} are plain means")
    if evaluation["early_exit"] is not None:
        _say(console, _exited(evaluation["early_exit"]))
    rates = [site["rate"] for site in evaluation["sites"].values() if site["rate"] is not None]  # of a JSON: not finite
    if rates:
        _say(console, f"firing rate: mean {sum(rates) / len(rates):.3f}, highest site {max(rates):.3f}")
    if evaluation["counts"] is not None:
        _say(console, _counted(evaluation["counts"]))


def _exited(early: Mapping[str, Any]) -> str:
    """Accuracy and steps with an early exit."""
    accuracy = "" if early["accuracy"] is None else f"accuracy {early['accuracy']:.2f} %, "
    return f"early exit at margin {early['margin']:g}: {accuracy}{early['mean_steps']:.2f} steps on average"


def _counted(counts: Mapping[str, Any]) -> str:
    """Events and synaptic operations after the last step."""
    events, binary, synops = (counts[name][-1] for name in ("events", "binary_spikes", "synops"))
    dense = counts["dense_synops"]
    ratio = f" ({synops / dense:.2f} x the ANN's MACs there)" if dense else ""
    return (
        f"events per neuron: {events:.3f} in T = {len(counts['events'])} steps ({binary:.3f} binary spikes), "
        f"{synops:.4g} SynOps per sample{ratio}"
    )


def print_energy(console: Console, energy: Mapping[str, Any] | None) -> None:
    """What it costs beside the ANN after the last step, and plainly where it costs more."""
    if energy is None or energy["ratio"] is None:
        return
    mac, ac = energy["constants"]["mac_pj"], energy["constants"]["ac_pj"]
    macs, acs, added = (energy[name][-1] for name in ("macs", "acs", "neuron_additions"))
    _say(
        console,
        f"energy per sample at {mac:g} pJ a MAC and {ac:g} pJ an AC: {_joules(energy['snn_pj'][-1])} "
        f"({macs:.4g} MACs, {acs:.4g} ACs of spikes, {added:.4g} of neurons), "
        f"ANN {_joules(energy['ann_pj'])} ({energy['ann_macs']:.4g} MACs)",
    )
    _say(
        console,
        f"energy beside the ANN: {energy['ratio'][-1]:.2f} x ({energy['ratio_without_neurons'][-1]:.2f} x without the "
        f"neurons' own), in binary spikes {energy['binary_ratio'][-1]:.2f} x; beside an ANN of "
        f"{energy['bits'][-1]} bits {energy['quantised_ratio'][-1]:.2f} x",
    )
    if energy["uncounted"]:
        _say(console, f"not in these numbers, on either side: {', '.join(energy['uncounted'])}")
    if energy["verdict"]:
        _say(console, f"[bold yellow]{energy['verdict']}[/]")


def _joules(pj: float) -> str:
    """An energy in a unit that suits it."""
    for unit, size in (("mJ", 1e9), ("uJ", 1e6), ("nJ", 1e3)):
        if pj >= size:
            return f"{pj / size:.3g} {unit}"
    return f"{pj:.3g} pJ"


def shown_steps(steps: int) -> list[int]:
    """Steps of a table, from 0: every one up to 16, then powers of two and the last."""
    if steps <= 16:
        return list(range(steps))
    powers = {2**i - 1 for i in range(steps.bit_length()) if 2**i <= steps}
    return sorted(powers | {steps - 1})


def print_sites(console: Console, report: Mapping[str, Any]) -> None:
    """One row per site: thresholds, troubled channels, what is clipped, firing rate, gap before and after."""
    table = Table(title="sites; gaps at T in percent of theta", title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("site", overflow="fold")
    after = (report["evaluation"] or {"sites": {}})["sites"]
    before = (report["evaluation_without_bias"] or {"sites": {}})["sites"]
    compared = ("no bias,\ngap",) if before else ()
    for name in ("C", "theta", "dead, silent\nsaturated", "clipped\n%", "rate", *compared, "gap"):
        table.add_column(name, justify="right", no_wrap=True)
    for site in report["sites"]:
        low, high = site["threshold"]
        theta = f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"
        own, old, activation = after.get(site["name"]), before.get(site["name"]), site["activation"]
        table.add_row(
            escape(site["name"]),
            str(site["channels"]),
            theta,
            f"{_or_dash(site['dead_channels'])} {_or_dash((own or {}).get('silent_channels'))} "
            f"{_or_dash((activation or {}).get('saturated_channels'))}",
            "" if activation is None else f"{100 * activation['clipped']:.2f}",
            "" if own is None or own["rate"] is None else f"{own['rate']:.3f}",
            *((_last(old),) if before else ()),
            _last(own),
        )
    console.print(table)


def _say(console: Console, text: str) -> None:
    """One line, which a terminal may wrap but nothing else does."""
    console.print(text, highlight=False, soft_wrap=True)


def _node(record: Mapping[str, Any]) -> str:
    """Operator and name; a name may hold brackets, which are no markup."""
    return escape(f"{record['op_type']} '{record['node']}'")


def or_not_finite(value: float | None, form: str, factor: float = 1.0) -> str:
    """A number; in a report that was read, one that was not finite is None."""
    return "not finite" if value is None else format(factor * value, form)


def _last(activity: Mapping[str, Any] | None) -> str:
    """Gap at T, in percent of theta."""
    curve = None if activity is None else activity["gap_in_theta"]
    return "" if curve is None else or_not_finite(curve[-1], ".2f", 100)


def _or_dash(count: int | None) -> str:
    return "-" if count is None else str(count)


def print_inspection(console: Console, report: Mapping[str, Any], verbose: bool = False) -> None:
    """Summary of a dry run; with `verbose` every node, else counts by class and operator."""
    _say(console, f"[bold]{escape(report['source'])}[/], opset {report['opset']}, {report['nodes_before']} nodes")
    changes = ", ".join(f"{name} {count}" for name, count in report["normalisation"].items()) or "none"
    _say(console, f"normalisation: {changes}")
    table = Table(title=f"{len(report['nodes'])} nodes", title_justify="left")
    if verbose:
        for name in ("node", "op", "class"):
            table.add_column(name)
        for node in report["nodes"]:
            table.add_row(escape(node["name"]), node["op_type"], node["class"])
    else:
        table.add_column("class")
        table.add_column("nodes", justify="right")
        table.add_column("operators")
        by_class: dict[str, Counter[str]] = {}
        for node in report["nodes"]:
            by_class.setdefault(node["class"], Counter())[node["op_type"]] += 1
        for name, ops in by_class.items():
            table.add_row(name, str(sum(ops.values())), ", ".join(f"{op} {count}" for op, count in ops.most_common()))
    console.print(table)
    sites = Table(title=f"{len(report['sites'])} sites", title_justify="left")
    for name in ("site", "op", "C", "axis", "theta", "L", "ceiling"):
        sites.add_column(name, justify="left" if name in ("site", "op") else "right")
    for site in report["sites"]:
        theta = "" if site["threshold"] is None else f"{max(site['threshold']):.4g}"
        cells = [site["channels"], site["channel_axis"], theta, site["levels"], site["ceiling"]]
        sites.add_row(escape(site["name"]), site["op_type"], *("" if cell is None else str(cell) for cell in cells))
    console.print(sites)
    _print_left_out(console, report)
    for form, count in report["emitted_nodes"].items():
        if count is not None:
            _say(console, f"{form} form at T = {report['steps']}: {count} nodes")


def _print_left_out(console: Console, report: Mapping[str, Any]) -> None:
    """What of a network is not converted, and why."""
    for left in report["analog"]:
        _say(console, f"left analog: {_node(left)} ({escape(left['reason'])})")
    for refusal in report["refusals"]:
        _say(console, f"[bold red]refused[/] {_node(refusal)}: {escape(refusal['reason'])}")
    if report["nothing_to_convert"] is not None:
        _say(console, f"[bold red]refused[/]: {escape(report['nothing_to_convert'])}")


_SHOWN = 4  # names of nodes in a line


def print_nir(console: Console, report: Mapping[str, Any]) -> None:
    """What NIR cannot say of a network, what was written, and what it is worth."""
    _say(
        console,
        f"[bold]{escape(report['source'])}[/]: T = {report['steps']}, readout {report['readout']}, "
        f"neurons as {report['neuron']}",
    )
    places: dict[tuple[str, str, str | None], list[str]] = {}
    for loss in report["losses"]:
        places.setdefault((loss["what"], loss["why"], loss["nearest"]), []).append(loss["node"])
    for (what, why, nearest), nodes in places.items():
        shown = ", ".join(nodes[:_SHOWN]) + (f" and {len(nodes) - _SHOWN} more" if len(nodes) > _SHOWN else "")
        instead = "[bold red]refused[/]" if nearest is None else f"nearest: {escape(nearest)}"
        _say(console, f"NIR cannot say {escape(what)} ({escape(why)}); {instead}; at {escape(shown)}")
    if report["output"] is None:
        return
    if not report["losses"]:
        _say(console, "NIR says all of it")
    found = report["fidelity"]
    if found is not None:
        accuracy = "" if found["accuracy"] is None else f"accuracy {found['accuracy']:.2f} %"
        snn = "" if found["accuracy"] is None else f" (spiking network {found['snn_accuracy']:.2f} %), "
        agreement = "" if found["agreement"] is None else f"{found['agreement']:.2f} % of decisions equal, "
        _say(
            console,
            f"{found['samples']} samples of {escape(found['data'])} in {found['runtime']}: {accuracy}{snn}{agreement}"
            f"output error {found['output_gap']:.3g}",
        )
    if report["not_measured"] is not None:
        _say(console, f"[bold]not measured[/]: {escape(report['not_measured'])}")
    _say(console, f"wrote {escape(report['output'])}")

"""The tables of a page: cells as text, made of the report's numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.page.canvas import plain
from ftbc_onnx.report import or_not_finite, shown_steps
from ftbc_onnx.summary import has_biases

Report = Mapping[str, Any]

LISTED = 200
"""Rows of a list of nodes, at most: a page must stay one that can be read."""


@dataclass(frozen=True)
class Table:
    """A table; its first `texts` columns are text, the others numbers. Without `head` it is a list of names and values.

    Attributes:
        title: its caption.
        head: names of the columns.
        rows: cells.
        texts: columns that are text.
        words: what to know about it.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    words: str = ""


def facts(report: Report) -> Table:
    """What was converted, and how."""
    layered = report["synchronous"]
    rows = [
        ("network", plain(report["source"])),
        ("time steps", f"T = {report['steps']}"),
        ("neuron", report["neuron"]),
        ("thresholds", report["threshold"]),
        ("biases", _biases(report)),
        ("form", f"{report['form']}, {report['emitted_nodes']} nodes, opset {report['opset']}"),
        ("readout", report["readout"]),
        ("schedule", report["schedule"] + (f", a result takes {layered['latency']} steps" if layered else "")),
        ("verified", _verified(report["verification"])),
        *((f"{s['question']} chosen", _chosen(s)) for s in report["selections"]),
    ]
    return Table("What was done", (), rows, texts=2)


def _biases(report: Report) -> str:
    found = report["calibration"]
    if found is None:
        return "none were calibrated"
    gated = f", put to zero at {found['gated_sites']} of {len(report['sites'])} sites" if found["gated_sites"] else ""
    return (
        f"rule {report['rule']}, {found['samples']} samples in {found['batches']} batch(es), "
        f"{found['held_back']} more held back{gated}"
    )


def _chosen(selection: Mapping[str, Any]) -> str:
    trials = selection["trials"]
    tried = "; ".join(f"{t['what']}: output error {or_not_finite(t['error'], '.4f')}" for t in trials)
    return f"{trials[selection['chosen']]['what']} ({selection['why']} on {trials[0]['samples']} samples; {tried})"


def _verified(checked: Mapping[str, Any] | None) -> str:
    if checked is None:
        return "no"
    how = "equal to the last bit" if checked["bitwise"] else f"within {checked['largest_difference']:.1e}"
    fused = checked["fusion_difference"]
    once = "" if fused is None else f", once its numbers are in the layers (within {fused:.0e})"
    return f"against a NumPy run of the plan: {how}{once}"


def curves(report: Report) -> Table | None:
    """Accuracy, agreement, output error and cost after every step."""
    evaluation = report["evaluation"]
    if evaluation is None:
        return None
    before = report["evaluation_without_bias"] if has_biases(report) else None
    counts = evaluation["counts"]
    columns = [
        ("no bias, %", None if before is None else before["accuracy"], "{:.2f}"),
        ("accuracy, %", evaluation["accuracy"], "{:.2f}"),
        ("agrees with ANN, %", evaluation["agreement"], "{:.2f}"),
        ("output error", evaluation["output_gap"], "{:.4f}"),
        ("events per neuron", None if counts is None else counts["events"], "{:.3f}"),
        ("SynOps", None if counts is None else counts["synops"], "{:.3g}"),
    ]
    shown = [column for column in columns if column[1] is not None]
    rows = [[str(t + 1), *(form.format(v[t]) for _, v, form in shown)] for t in shown_steps(report["steps"])]
    ann = evaluation["ann_accuracy"]
    where = " (calibration data)" if report["evaluated_on"] == "calibration data" else ""
    words = f"{evaluation['samples']} samples of {plain(evaluation['data'])}{where}"
    words += "." if ann is None else f"; ANN {ann:.2f} %."
    if report["synchronous"]:
        words += " Layer-synchronous: only the last row has a meaning."
    early = evaluation["early_exit"]
    if early is not None:
        right = "" if early["accuracy"] is None else f"accuracy {early['accuracy']:.2f} %, "
        words += f" Early exit at margin {early['margin']:g}: {right}{early['mean_steps']:.2f} steps on average."
    return Table("After every step", ("T", *(name for name, _, _ in shown)), rows, texts=0, words=words)


def sites(report: Report) -> Table:
    """One row per site; a dash where nothing was measured."""
    after, before = (_of_sites(report, key) for key in ("evaluation", "evaluation_without_bias"))
    rows = []
    for number, site in enumerate(report["sites"], 1):
        own, old = after.get(site["name"], {}), before.get(site["name"], {})
        low, high = site["threshold"]
        activation = site["activation"] or {}
        rows.append(
            [
                f"{number}",
                plain(site["name"]),
                site["op_type"] + (", signed" if site["signed"] else ""),
                str(site["channels"]),
                f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}",
                _cell(own.get("rate"), "{:.3f}"),
                _cell((old.get("gap_in_theta") or [None])[-1], "{:.2f} %", 100),
                _cell((own.get("gap_in_theta") or [None])[-1], "{:.2f} %", 100),
                _cell(activation.get("clipped"), "{:.2f} %", 100),
                _cell(site["dead_channels"], "{}"),
                _cell(own.get("silent_channels"), "{}"),
                _cell(activation.get("saturated_channels"), "{}"),
            ]
        )
    head = ("#", "site", "operator", "C", "theta", "rate", "gap, no bias", "gap", "clipped", "dead", "silent")
    words = "Rate and gaps are of theta; C: channels; dead, silent and saturated are numbers of channels."
    return Table(f"At T = {report['steps']}", (*head, "saturated"), rows, texts=3, words=words)


def _of_sites(report: Report, key: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (report[key] or {"sites": {}})["sites"]
    return found


def _cell(value: Any, form: str, scale: float = 1) -> str:
    return "–" if value is None else form.format(value * scale)  # noqa: RUF001 - a dash


def nodes(report: Report) -> list[Table]:
    """Classes of nodes, what is no spike arithmetic, what stayed analog, what normalisation changed."""
    classes = [(name, str(count)) for name, count in report["node_classes"].items()]
    tables = [Table("Nodes by class", ("class", "nodes"), classes, words=_refusals(report))]
    if report["rate_exact"]:
        counted = Counter(node["op_type"] for node in report["rate_exact"]).most_common()
        words = "Exact for rates, but no spike arithmetic (--strict refuses them)."
        tables.append(Table("Applied to running means", ("operator", "nodes"), _pairs(counted), words=words))
    if report["analog"]:
        left = [(plain(r["node"]), r["op_type"], plain(r["reason"])) for r in report["analog"][:LISTED]]
        tables.append(Table(f"Left analog ({len(report['analog'])})", ("node", "operator", "reason"), left, texts=3))
    if report["normalisation"]:
        changed = _pairs(report["normalisation"].items())
        tables.append(Table("Normalisation of the ANN", ("pass", "changes"), changed))
    return tables


def _refusals(report: Report) -> str:
    analog = len(report["analog"])
    left = f"{analog} left analog by --include, --exclude or --until, listed below" if analog else "none left analog"
    return f"No node was refused, else there would be no conversion; {left}."


def _pairs(items: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(plain(name), str(value)) for name, value in items]


def cost(report: Report) -> Table | None:
    """Events and synaptic operations at T, and energy where it was estimated."""
    evaluation = report["evaluation"]
    if evaluation is None or evaluation["counts"] is None:
        return None
    counts = evaluation["counts"]
    dense, synops = counts["dense_synops"], counts["synops"][-1]
    rows = [
        ("neurons", f"{counts['neurons']:,.0f}"),
        ("events per neuron", f"{counts['events'][-1]:.3f}"),
        ("binary spikes per neuron", f"{counts['binary_spikes'][-1]:.3f}"),
        ("SynOps per sample", f"{synops:.4g}"),
        ("MACs of the ANN in the same nodes", f"{dense:.4g}"),
    ]
    if dense:
        rows.append(("SynOps per MAC", f"{synops / dense:.2f}"))
    rows += _flat(report.get("energy") or {})
    return Table(
        "Cost per sample at T", (), rows, texts=1, words="The first layer reads real numbers: it is in neither."
    )


def _flat(values: Mapping[str, Any], before: str = "energy") -> list[tuple[str, str]]:
    """Names and values of a record in a record, one below the other; curves by their last value."""
    rows = []
    for key, value in values.items():
        name = f"{before}: {plain(str(key)).replace('_', ' ')}"
        if isinstance(value, Mapping):
            rows += _flat(value, name)
        elif isinstance(value, float):
            rows.append((name, f"{value:.4g}"))
        elif isinstance(value, (list, tuple)):
            rows += [(name, f"{value[-1]:.4g}")] if value and isinstance(value[-1], (int, float)) else []
        elif value is not None:
            rows.append((name, plain(str(value))))
    return rows


def provenance(report: Report) -> Table:
    """Where everything comes from: digests, versions, options away from their defaults."""
    rows = [
        ("ftbc-onnx", report["version"]),
        ("onnxruntime", report["runtime"]),
        ("device", f"{report['device']} ({report['provider']})"),
        ("SHA-256 of the ANN", report["source_digest"]),
        ("calibration data", f"{plain(report['data'])}{' (random)' if report['random_data'] else ''}"),
        ("samples used", str(report["samples"])),
        ("digest of the data", report["data_digest"] or "none"),
        ("preprocessing", _given(report["preprocessing"])),
        ("options", _given(changed_options(report))),
    ]
    return Table("Provenance", (), rows, texts=2)


def changed_options(report: Report) -> dict[str, Any]:
    """Options that are not at their defaults."""
    defaults = ConvertConfig().as_dict()
    return {name: value for name, value in report["options"].items() if name not in defaults or value != defaults[name]}


def _given(options: Mapping[str, Any]) -> str:
    given = {name: value for name, value in options.items() if value is not None}
    return plain(", ".join(f"{name} = {json.dumps(value)}" for name, value in given.items())) or "defaults"


def command(report: Report) -> str:
    """What makes this report again: the command line, or the call from Python, files in it without their folders."""
    if report.get("command"):
        return plain(report["command"])
    given = {name: repr(value) for name, value in changed_options(report).items()}
    if report["evaluation"] is not None and report["evaluated_on"] != "calibration data":
        given["eval_data"] = _argument(report["evaluation"]["data"])
    if report["label_offset"]:
        given["label_offset"] = str(report["label_offset"])
    if report["preprocessing"]:
        values = (f"{name}={value!r}" for name, value in report["preprocessing"].items())
        given["preprocessing"] = f"ftbc_onnx.Preprocessing({', '.join(values)})"
    options = "".join(f", {name}={value}" for name, value in given.items())
    data = "None" if report["random_data"] else _argument(report["data"])
    return plain(f"ftbc_onnx.convert({report['source']!r}, {data}{options})")


def _argument(data: str) -> str:
    """A file or folder by name; what was in memory has none."""
    return {"arrays in memory": "arrays", "none": "None"}.get(data, repr(data))

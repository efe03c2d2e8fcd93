"""The page docs/accuracy.md and its figure, from the results of `accuracy.py`: nothing is measured here."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from real_data import markdown

Result = dict[str, Any]
STEPS = (1, 2, 4, 8, 16, 32)
THRESHOLDS = ("mse", "auto", "moments", "percentile", "max")
WHOLE = ("percentile", "max")
"""Thresholds that do not depend on T: the published rule does not look ahead, so its longest run holds the others."""

TRIALS = {
    "quantised": "What quantisation alone costs",
    "rules": "Gate, shrinkage, thresholds per tensor",
    "gains": "Gains",
    "compressed": "Compressed biases",
}

NOTES = {
    "quantised": "Integrate-and-fire with `--schedule synchronous`: a layer fires when all of its current has arrived, "
    "so this is\nthe ANN quantised to T levels per activation. What `if` loses beyond it, it loses to spikes "
    "that arrive unevenly.\n\n",
}

HEAD = """# Accuracy

Made by `tools/accuracy.py` from `docs/accuracy.jsonl`, one line per conversion:

```sh
python tools/accuracy.py --data FOLDER      # measures what is missing there, then writes this page
python tools/accuracy.py --write            # only writes it
```

Setting: onnxruntime on the CPU provider, 2 cores (nine conversions with T = 32 and other seeds than the first: one core
of another machine each; of those that compare rules and thresholds {on_gpu} on a GPU); accuracy and counts do not
depend on the load of the machine.

ResNet-20 is the plain-ReLU network for CIFAR-10 (ANN 91.5 % on 1,000 test images; one standard error near 90 % is 0.9
points, near 70 % 1.4). Calibration images are drawn from the training set (seed: which ones) and three of four are
fitted to, the fourth decides what is chosen. Where nothing is chosen all are fitted to: by the published rule with a
threshold that is named, and by `solve` with such a threshold and without a gate. Test images chose nothing. *No bias*
is the same network with every temporal bias zero, without gains, and with the ANN's layers. Every T has a conversion of
its own, but for the published rule with `percentile` and `max`, where neither looks ahead: a conversion with a longer T
holds the shorter ones, up to rounding. Where both ran on a CPU they are 0.5 points apart at most: T = 32 runs as a
loop, fewer steps are fused (with `--form loop` T = 4 gave the four accuracies of T = 32; a script of the day).
Differential coding around a signed group or multi-threshold neurons was measured before a correction: a mean that
rounds to a little below 0 was taken for a spike that is owed. Of four conversions done again (both neurons, T = 4 and
8, seed 0; a script of the day) the last step differs by 0.1 points at most, any other by 0.4, events by 0.1 %. The
rules and thresholds at T = 32, but for `solve` with `mse` and `paper` with `percentile` and `max`, have it.

"""


def write_page(results: Sequence[Result], folder: Path, order: Sequence[str] = ()) -> None:
    """Write accuracy.md and accuracy.png into `folder`; rows of neurons in this order, then as they were measured."""
    parts: defaultdict[str, list[Result]] = defaultdict(list)
    places = {label: place for place, label in enumerate(order)}
    for result in sorted(results, key=lambda r: places.get(r["case"]["label"], len(places))):
        parts[result["case"]["part"]].append(result)
    text = HEAD.format(on_gpu=sum(r.get("device", "cpu") != "cpu" for r in results if r["case"]["part"] == "grid"))
    if parts["neurons"]:
        draw(parts["neurons"] + parts["default"], folder / "accuracy.png")
        text += _neurons(parts["neurons"])
    if parts["refit"]:
        text += _refit(parts["refit"], parts["neurons"])
    if parts["default"]:
        text += _defaults(parts["default"])
    if parts["grid"]:
        text += _grid(parts["grid"] + parts["neurons"])
    for part, title in TRIALS.items():
        if parts[part]:
            text += f"## {title}\n\nResNet-20.\n\n{NOTES.get(part, '')}{markdown(_choices(parts[part]))}\n\n"
    if parts["samples"]:
        text += _samples(parts["samples"], parts["neurons"])
    (folder / "accuracy.md").write_text(text.rstrip() + "\n", encoding="utf-8")


def _neurons(results: Iterable[Result]) -> str:
    by_label: defaultdict[str, defaultdict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        by_label[result["case"]["label"]][result["case"]["steps"]].append(result)
    tables = {
        "Accuracy with temporal biases, % (mean over seeds, +- their spread where there are several)": _accuracy,
        "Without biases, %": lambda rs: _mean(r["no_bias"][-1] for r in rs),
        "Events per neuron in T steps (binary spikes, an event of k units counted as popcount(k))": lambda rs: (
            f"{np.mean([r['events'][-1] for r in rs]):.2f} ({np.mean([r['binary_spikes'][-1] for r in rs]):.2f})"
        ),
        "Synaptic operations per image, in units of the ANN's MACs in the same layers": lambda rs: _mean(
            (r["synops"][-1] / r["dense_synops"] for r in rs), "{:.2f}"
        ),
    }
    text = "## Neurons on ResNet-20\n\nThresholds `mse`, rule `solve`, 256 calibration images.\n\n"
    for title, cell in tables.items():
        rows = [
            {"neuron": label, **{f"T={t}": cell(found[t]) if t in found else "" for t in STEPS}}
            for label, found in by_label.items()
        ]
        text += f"{title}:\n\n{markdown(rows)}\n\n"
    return text + "![accuracy against events per neuron](accuracy.png)\n\n"


def _refit(results: Iterable[Result], plain: Iterable[Result]) -> str:
    """Layers fitted again beside the ANN's: a pair of rows per neuron and number of calibration samples."""
    cells: defaultdict[tuple[str, int], defaultdict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    beside: defaultdict[str, defaultdict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for r in results:
        cells[r["case"]["label"], r["case"]["samples"]][r["case"]["steps"]].append(r)
    for r in plain:
        beside[r["case"]["label"]][r["case"]["steps"]].append(r)
    rows = []
    for (label, samples), found in cells.items():
        named = [("fitted", samples, found)]
        if label not in {row["neuron"] for row in rows}:
            named.insert(0, ("those of the ANN", 256, beside[label]))
        for layers, count, by_steps in named:
            steps = {f"T={t}": _accuracy(by_steps[t]) if by_steps.get(t) and t in found else "" for t in STEPS[:-1]}
            rows.append({"neuron": label, "layers": layers, "images": count, **steps})
    return (
        "## Layers fitted again\n\nResNet-20 with `--refit` (decision 36), otherwise as above: mean over seeds, +- "
        f"their spread.\n\n{markdown(rows)}\n\n"
    )


def _accuracy(results: Sequence[Result]) -> str:
    values = [r["accuracy"][-1] for r in results]
    spread = f" +- {np.std(values, ddof=1):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _mean(values: Iterable[float], form: str = "{:.1f}") -> str:
    return form.format(np.mean(list(values)))


def _defaults(results: Iterable[Result]) -> str:
    rows = [
        {
            "network": r["case"]["network"],
            "T": r["case"]["steps"],
            "seed": r["case"]["seed"],
            "images": r["images"],
            "ANN": f"{r['ann']:.1f}",
            "chosen": r["neuron"],
            "s": f"{r['seconds']:.0f}",
            "no bias": f"{r['no_bias'][-1]:.1f}",
            **{f"t={t}": f"{r['accuracy'][t - 1]:.1f}" if t <= r["case"]["steps"] else "" for t in STEPS},
        }
        for r in sorted(results, key=lambda r: (r["case"]["network"], r["case"]["steps"], r["case"]["seed"]))
    ]
    return (
        "## Default options\n\n`ftbc-onnx convert MODEL -T T --calib-data ...`, nothing else: neuron, thresholds and "
        "biases are chosen on calibration\nimages. Column t is the accuracy if that network is stopped after t steps; "
        "s: seconds for the whole conversion with\nboth evaluations, on a machine that did other work too.\n\n"
        f"{markdown(rows)}\n\n"
    )


def _grid(results: Sequence[Result]) -> str:
    """A table per T: a row for a neuron and a rule, a column per threshold."""
    labels = dict.fromkeys(r["case"]["label"] for r in results)
    seeds: defaultdict[tuple[int, str, str, str], dict[int, Result]] = defaultdict(dict)
    for r in sorted(results, key=lambda r: -r["case"]["steps"]):  # what ran with this T itself comes last, and counts
        case = r["case"]
        rule, threshold = case["options"].get("rule", "solve"), case["options"]["threshold"]
        whole = rule == "paper" and threshold in WHOLE
        for t in [t for t in STEPS if t <= case["steps"]] if whole else [case["steps"]]:
            until = {name: r[name] and r[name][:t] for name in ("accuracy", "no_bias")}
            seeds[t, case["label"], rule, threshold][case["seed"]] = until
    tables: defaultdict[int, defaultdict[tuple[str, str], dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for (steps, label, rule, threshold), by_seed in seeds.items():
        found = list(by_seed.values())
        plain = [r["no_bias"][-1] for r in found if r["no_bias"] is not None]
        tables[steps][label, rule][threshold] = _accuracy(found) + (f" [{_mean(plain)}]" if plain else "")
    text = (
        "## Rules and thresholds\n\nResNet-20: accuracy (of several seeds their mean +- spread, and how many), "
        "and in brackets without biases, where that was\njudged too. *paper* is the published rule (alpha 0.4) "
        "with 384 calibration images in batches of 128 (288 of them are fitted\nto with `auto`, all with the other "
        "thresholds); *solve* has 256, of which 192 are fitted to.\n\n"
    )
    for steps, cells in sorted(tables.items()):
        columns = [name for name in THRESHOLDS if any(name in row for row in cells.values())]
        rows = [
            {"neuron": label, "rule": rule, **{name: cells[label, rule].get(name, "") for name in columns}}
            for label in labels
            for rule in ("paper", "solve")
            if (label, rule) in cells and (len(cells[label, rule]) > 1 or (label, "paper") in cells)
        ]
        if rows:
            text += f"T = {steps}:\n\n{markdown(rows)}\n\n"
    return text


def _samples(results: Sequence[Result], neurons: Iterable[Result]) -> str:
    """A row per neuron and T, a column per number of calibration samples, with those of the neurons' own tables."""
    cells: defaultdict[tuple[str, int], defaultdict[int, list[Result]]] = defaultdict(lambda: defaultdict(list))
    rows, without = {(r["case"]["label"], r["case"]["steps"]) for r in results}, []
    for r in (*results, *neurons):
        case = r["case"]
        if (row := (case["label"], case["steps"])) not in rows:
            continue
        cells[row][case["samples"]].append(r)
        if any(s["trials"][s["chosen"]]["what"] == "no biases" for s in r["selections"]):
            without.append(f"{case['label']} with {case['samples']} images (seed {case['seed']})")
    counts = sorted({count for found in cells.values() for count in found})
    table = [
        {"neuron": label, "T": steps, **{str(n): _accuracy(found[n]) if n in found else "" for n in counts}}
        for (label, steps), found in cells.items()
    ]
    return (
        "## Calibration samples\n\nResNet-20, thresholds `mse`, rule `solve`: accuracy by the number of calibration "
        "images (three of four are\nfitted to, in batches of 128), mean over seeds, +- their spread.\n\n"
        f"{markdown(table)}\n\n"
        + (f"The images held back chose no biases for {', '.join(without)}.\n\n" if without else "")
    )


def _choices(results: Iterable[Result]) -> list[dict[str, Any]]:
    """A row per neuron, T and options, over all seeds."""
    rows: defaultdict[tuple[str, int, str], list[Result]] = defaultdict(list)
    for r in results:
        case = r["case"]
        options = {k: v for k, v in case["options"].items() if k not in ("neuron", "levels", "coding")}
        rows[case["label"], case["steps"], ", ".join(f"{k}={v}" for k, v in options.items())].append(r)
    return [
        {
            "neuron": label,
            "T": steps,
            "options": options,
            "accuracy": _accuracy(found),
            "no bias": _mean(r["no_bias"][-1] for r in found),
        }
        for (label, steps, options), found in rows.items()
    ]


def draw(results: Iterable[Result], path: Path) -> None:
    """Accuracy against events per neuron, a line per neuron."""
    mpl.use("Agg")
    lines: defaultdict[str, dict[int, tuple[float, float]]] = defaultdict(dict)
    for r in results:
        case = r["case"]
        ours = case["part"] in ("neurons", "default") and case["network"].startswith("cifar10_resnet20_torch")
        if ours and case["seed"] == 0:
            lines[case["label"]][case["steps"]] = (r["events"][-1], r["accuracy"][-1])
    figure, axes = plt.subplots(figsize=(8, 5))
    markers = "osD^v<>pP*Xh"
    axes.set_prop_cycle(color=[*mpl.colormaps["tab10"].colors, "black", "navy"])
    for marker, (label, points) in zip(markers, lines.items(), strict=False):
        steps = sorted(points)
        x, y = zip(*(points[t] for t in steps), strict=True)
        axes.plot(x, y, marker=marker, markersize=5, linewidth=1, label=label)
    axes.axhline(91.5, color="black", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.annotate("ANN", (axes.get_xlim()[0], 91.5), fontsize=8, xytext=(3, 3), textcoords="offset points")
    axes.set_xlabel("events per neuron in T steps")
    axes.set_ylabel("accuracy, % (1,000 test images)")
    axes.set_title("ResNet-20, CIFAR-10: accuracy against events, T doubling along a curve from 1 on")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)

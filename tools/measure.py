"""Measure conversions of real pretrained networks, and print the tables of docs/measured.md.

    python tools/measure.py --data FOLDER [--only resnet20 --only timing ...] [--json OUT]

FOLDER is described in `real_data.py`. Calibration images are the first of the training set; test images judge and
choose nothing. Other networks and neurons: `accuracy.py`.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
from real_data import Row, cifar, markdown
from rich.console import Console

from ftbc_onnx import convert
from ftbc_onnx.early_exit import decisions, relative_margin, steps_used
from ftbc_onnx.graph.emit.calibration import emit_calibration, old_bias_name
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.files import load
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import make_rule
from ftbc_onnx.runtime import Session
from ftbc_onnx.window import Window

ROOT = Path(__file__).resolve().parent.parent

IF = {"neuron": "if", "gate": False}
"""Integrate-and-fire, calibrated on all samples: nothing is chosen."""


def _rows(what: str, result: Any, steps: tuple[int, ...]) -> list[Row]:
    report = result.report
    after, before = report["evaluation"], report["evaluation_without_bias"]
    calibration = report["calibration"] or {"samples": 0, "batches": 0}
    common = {"network": what, "images": after["samples"], "ANN": after["ann_accuracy"]}
    verified = report["verification"]["bitwise"]
    return [
        {**common, "row": "no bias", **{f"T={t}": before["accuracy"][t - 1] for t in steps}},
        {
            **common,
            "row": f"{report['rule']}, {calibration['batches']} batch(es), {calibration['samples']} images",
            **{f"T={t}": after["accuracy"][t - 1] for t in steps},
            "bitwise": verified,
        },
    ]


def resnet20(data: Path) -> list[Row]:
    """Plain ReLU ResNet-20, both exports: percentile 99 per tensor, T = 8."""
    calibration, _ = cifar(data, "train", 384)
    test = cifar(data, "test", 1000)
    rows: list[Row] = []
    for export in ("torchscript", "dynamo"):
        for rule, samples, batch in (("paper", 384, 128), ("solve", 128, 128), ("solve", 384, 128)):
            result = convert(
                data / f"models/cifar10_resnet20_{export}.onnx",
                calibration[:samples],
                eval_data=test,
                steps=8,
                threshold="percentile",
                percentile=99.0,
                per_channel=False,
                rule=rule,
                **IF,
                alpha=0.4,
                calib_samples=samples,
                batch_size=batch,
            )
            found = _rows(f"ResNet-20, {export}", result, tuple(range(1, 9)))
            rows += found if rule == "paper" else found[1:]
    return rows


def mse(data: Path) -> list[Row]:
    """Plain ReLU ResNet-20 with thresholds by least squared error per channel."""
    calibration, _ = cifar(data, "train", 384)
    path = data / "models/cifar10_resnet20_torchscript.onnx"
    result = convert(path, calibration[:256], eval_data=cifar(data, "test", 1000), steps=8, threshold="mse", **IF)
    return _rows("ResNet-20, mse", result, tuple(range(1, 9)))


def qcfs(data: Path) -> list[Row]:
    """QCFS ResNet-20 (L = 8), both exports: one calibration at T = 16, shorter T as its prefixes."""
    calibration, _ = cifar(data, "train", 600)
    rows: list[Row] = []
    for export in ("torchscript", "dynamo"):
        for images in (400, 1000):
            for rule, samples, batch in (("paper", 600, 200), ("solve", 256, 256)):
                result = convert(
                    data / f"models/cifar10_resnet20_qcfs8_{export}.onnx",
                    calibration[:samples],
                    eval_data=cifar(data, "test", images),
                    steps=16,
                    rule=rule,
                    **IF,
                    alpha=0.4,
                    calib_samples=samples,
                    batch_size=batch,
                )
                found = _rows(f"QCFS ResNet-20, {export}", result, (1, 2, 4, 8, 16))
                rows += found if rule == "paper" else found[1:]
    return rows


def digits(_: Path) -> list[Row]:
    """The shipped digits networks with integrate-and-fire, T = 8."""
    rows: list[Row] = []
    for name in ("digits_relu", "digits_qcfs4"):
        models = ROOT / "models"
        result = convert(
            models / f"{name}.onnx",
            models / "digits_calibration.npz",
            eval_data=models / "digits_test.npz",
            steps=8,
            threshold="mse",
            **IF,
        )
        rows += _rows(name, result, (1, 2, 4, 8))
    return rows


@cache
def _curves(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Running outputs [8, n, classes] and labels: ResNet-20 on the last 600 test images, and digits."""
    images, labels = cifar(data, "test", 1000)
    with np.load(ROOT / "models/digits_test.npz") as arrays:
        easy = arrays["image"], arrays["label"]
    path, calibration = data / "models/cifar10_resnet20_torchscript.onnx", cifar(data, "train", 128)[0]
    shared: dict[str, Any] = {"steps": 8, "threshold": "mse", "gate": False, "running_mean": True}
    digits_data = ROOT / "models/digits_calibration.npz"
    results = {
        "ResNet-20, signed, none": (path, calibration, "signed", "none", (images[400:], labels[400:])),
        "ResNet-20, signed, solve": (path, calibration, "signed", "solve", (images[400:], labels[400:])),
        "digits_relu, if, solve": (ROOT / "models/digits_relu.onnx", digits_data, "if", "solve", easy),
    }
    curves = {}
    for what, (model, few, neuron, rule, (x, y)) in results.items():
        session = Session(convert(model, few, neuron=neuron, rule=rule, **shared).model)
        (name,) = (name for name in session.output_names if name.endswith("/running_mean"))
        feed = load(model).model.graph.input[0].name
        parts = [session.run({feed: x[i : i + 40]}, [name])[name] for i in range(0, len(x), 40)]
        curves[what] = np.concatenate(parts, axis=1).astype(np.float64), y
    return curves


def readout(data: Path) -> list[Row]:
    """Accuracy at T when the first t0 steps are left out."""
    rows: list[Row] = []
    for what, (means, labels) in _curves(data).items():
        sums = np.concatenate([0 * means[:1], means * np.arange(1, 9)[:, None, None]])
        for steps in (2, 4, 8):
            row: Row = {"network": what, "images": len(labels), "T": steps}
            for start in range(8):
                right = ((sums[steps] - sums[start]).argmax(1) == labels) if start < steps else None
                row[f"t0={start}"] = "" if right is None else float(100 * right.mean())
            rows.append(row)
    return rows


def early_exit(data: Path) -> list[Row]:
    """Accuracy and average steps at several margins; beside it every sample after that many steps (interpolated)."""
    rows: list[Row] = []
    for what, (means, labels) in _curves(data).items():
        plain = [float(100 * (row.argmax(1) == labels).mean()) for row in means]
        for margin in (0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0):
            used = steps_used(means, margin, Window())
            rows.append(
                {
                    "network": what,
                    "images": len(labels),
                    "M": margin,
                    "steps": float(used.mean()),
                    "accuracy": float(100 * (decisions(means, used) == labels).mean()),
                    "all samples after as many steps": float(np.interp(used.mean(), range(1, 9), plain)),
                    "T = 8": plain[-1],
                }
            )
    return rows


def margins(data: Path) -> list[Row]:
    """Early exit by the margin or by the lead, at equal steps: 1,000 training images that calibrated nothing."""
    images, labels = cifar(data, "train", 3000)
    path = data / "models/cifar10_resnet20_torchscript.onnx"
    model = convert(path, images[:128], neuron="signed", steps=8, threshold="mse", gate=False, running_mean=True).model
    session = Session(model)
    (name,) = (name for name in session.output_names if name.endswith("/running_mean"))
    feed, labels = model.graph.input[0].name, labels[2000:]
    means = np.concatenate([session.run({feed: images[i : i + 100]}, [name])[name] for i in range(2000, 3000, 100)], 1)
    plain = [float(100 * (row.argmax(1) == labels).mean()) for row in means]
    margin = relative_margin(means)
    rows: list[Row] = []
    for what, clear in (("margin", margin), ("lead", margin * np.arange(1, 9)[:, None])):
        row: Row = {"stops by": what}
        for steps in (3, 4, 5, 6):
            used = _stopping_after(clear, steps)
            row[f"{steps} steps"] = float(100 * (decisions(means, used) == labels).mean())
        rows.append(row)
    return [*rows, {"stops by": "none: all samples there", **{f"{t} steps": plain[t - 1] for t in (3, 4, 5, 6)}}]


def _stopping_after(clear: np.ndarray, steps: float) -> np.ndarray:
    """Steps of each sample, [T, B] -> [B], at the bound that makes them `steps` on average."""
    low, high = 0.0, float(clear.max())
    used = np.zeros(clear.shape[1], np.int64)
    for _ in range(40):
        bound = (low + high) / 2
        over = clear > bound
        used = np.where(over.any(0), over.argmax(0) + 1, len(clear))
        low, high = (bound, high) if used.mean() < steps else (low, bound)
    return used


def timing(data: Path) -> list[Row]:
    """Calibration of ResNet-20 at T = 8 on one batch of 128, as ratios to one run of the emitted SNN on it."""
    source = load(data / "models/cifar10_resnet20_torchscript.onnx")
    network = find_network(normalise(source.model).model)
    x, _ = cifar(data, "train", 128)
    feeds = {network.view.inputs[0].name: x}
    plan = SpikingPlan(source.digest, network.sites, 8, "if", {s.name: np.full(s.channels, 2.0) for s in network.sites})
    old = {old_bias_name(site.name): plan.biases[site.name] for site in plan.sites}
    models = {"SNN": (emit_unrolled(network, plan).model, feeds), "ANN": (network.view.model, feeds)}
    for name in ("paper", "solve"):
        rule = make_rule(name, 0.4)
        assert rule is not None
        models[name] = (emit_calibration(network, plan, rule), {**feeds, **old})
    opened, runs = {}, {name: [] for name in models}
    sessions = {}
    for name, (model, _feeds) in models.items():
        start = time.perf_counter()
        sessions[name] = Session(model)
        opened[name] = time.perf_counter() - start
    for name, (_model, fed) in models.items():  # in blocks: threads of a session spin for a while after a run
        for turn in range(6):
            start = time.perf_counter()
            sessions[name].run(fed)
            if turn:
                runs[name].append(time.perf_counter() - start)
    base = statistics.median(runs["SNN"])
    whole = base + opened["SNN"]
    return [
        {
            "graph": name,
            "nodes": len(models[name][0].graph.node),
            "opening, s": opened[name],
            "run, s (median of 5)": statistics.median(times),
            "run / SNN run": statistics.median(times) / base,
            "opening + run / the SNN's": (statistics.median(times) + opened[name]) / whole,
        }
        for name, times in runs.items()
    ]


PARTS: dict[str, Callable[[Path], list[Row]]] = {
    "resnet20": resnet20,
    "mse": mse,
    "qcfs": qcfs,
    "digits": digits,
    "readout": readout,
    "early_exit": early_exit,
    "margins": margins,
    "timing": timing,
}


@click.command()
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of images and networks."
)
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Parts to measure [default: all].")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows here as well.")
def main(data: Path, only: tuple[str, ...], target: Path | None) -> None:
    """Measure, and print Markdown tables."""
    console = Console(stderr=True)
    found: dict[str, list[Row]] = {}
    for name in only or PARTS:
        start = time.perf_counter()
        found[name] = PARTS[name](data)
        console.print(f"{name}: {time.perf_counter() - start:.0f} s, load {os.getloadavg()[0]:.1f}", highlight=False)
        print(f"\n## {name}\n\n{PARTS[name].__doc__}\n\n{markdown(found[name])}", flush=True)
        if target is not None:
            target.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

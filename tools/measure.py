"""Measure conversions of real pretrained networks, and print the tables of docs/measured.md.

    python tools/measure.py --data FOLDER [--only resnet20 --only timing ...] [--json OUT]

FOLDER holds CIFAR-10 as lossless WebP grids (``cifar10_train_0.webp``: 100 x 100 images of 32 x 32, row by row;
``cifar10_test.webp``: 10 x 100), labels as ``cifar10_{train,test}_labels.npy``, folders ``imagenet_sample`` and
``imagenet_val`` of images with ``labels.csv``, and the networks in ``models/``. Calibration images are the first of the
training set; test images judge and choose nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console

from ftbc_onnx import Preprocessing, convert
from ftbc_onnx.data import open_data
from ftbc_onnx.graph.emit.calibration import emit_calibration, old_bias_name
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.files import input_specs, load
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import make_rule
from ftbc_onnx.runtime import Session

ROOT = Path(__file__).resolve().parent.parent
CIFAR_MEAN, CIFAR_STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
Row = dict[str, Any]


def cifar(data: Path, part: str, images: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of CIFAR-10, normalised, [n, 3, 32, 32], and their labels [n]."""
    name = "cifar10_test.webp" if part == "test" else "cifar10_train_0.webp"
    grid = np.asarray(Image.open(data / name).convert("RGB"))
    rows = grid.shape[0] // 32
    pixels = grid.reshape(rows, 32, 100, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)[:images]
    x = (pixels.astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), np.load(data / f"cifar10_{part}_labels.npy")[:images]


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
                calibration,
                eval_data=test,
                steps=8,
                threshold="percentile",
                percentile=99.0,
                per_channel=False,
                rule=rule,
                alpha=0.4,
                calib_samples=samples,
                batch_size=batch,
            )
            found = _rows(f"ResNet-20, {export}", result, tuple(range(1, 9)))
            rows += found if rule == "paper" else found[1:]
    return rows


def defaults(data: Path) -> list[Row]:
    """Plain ReLU ResNet-20 with the default options (thresholds by least squared error per channel)."""
    calibration, _ = cifar(data, "train", 384)
    path = data / "models/cifar10_resnet20_torchscript.onnx"
    result = convert(path, calibration, eval_data=cifar(data, "test", 1000), steps=8)
    return _rows("ResNet-20, defaults", result, tuple(range(1, 9)))


def qcfs(data: Path) -> list[Row]:
    """QCFS ResNet-20 (L = 8), both exports: one calibration at T = 16, shorter T as its prefixes."""
    calibration, _ = cifar(data, "train", 600)
    rows: list[Row] = []
    for export in ("torchscript", "dynamo"):
        for images in (400, 1000):
            for rule, samples, batch in (("paper", 600, 200), ("solve", 256, 256)):
                result = convert(
                    data / f"models/cifar10_resnet20_qcfs8_{export}.onnx",
                    calibration,
                    eval_data=cifar(data, "test", images),
                    steps=16,
                    rule=rule,
                    alpha=0.4,
                    calib_samples=samples,
                    batch_size=batch,
                )
                found = _rows(f"QCFS ResNet-20, {export}", result, (1, 2, 4, 8, 16))
                rows += found if rule == "paper" else found[1:]
    return rows


def mobilenet(data: Path) -> list[Row]:
    """MobileNet v1 0.25 (NHWC, Clip): integrate-and-fire, default thresholds, T = 8 and 32."""
    preprocessing = Preprocessing(resize=128, crop=128, scale=2 / 255, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0))
    result = convert(
        data / "models/mobilenet_v1_0.25_128_tf2onnx.onnx",
        data / "imagenet_sample",
        eval_data=data / "imagenet_val",
        preprocessing=preprocessing,
        label_offset=1,
        steps=32,
        batch_size=100,
        calib_samples=100,
    )
    return _rows("MobileNet v1 0.25", result, (1, 4, 8, 16, 32))


def squeezenet(data: Path) -> list[Row]:
    """SqueezeNet 1.1 (Concat, MaxPool, BGR input): default options, T = 32, the first 100 validation images."""
    preprocessing = Preprocessing(crop=224, scale=1.0, mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0), color="bgr")
    path = data / "models/squeezenet1_1_caffe.onnx"
    specs = input_specs(load(path).model)

    def read(folder: str, samples: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = open_data(data / folder, specs, preprocessing).subset(range(samples))
        batch = next(chosen.batches(samples))
        return batch.feeds["data"], batch.labels

    result = convert(
        path,
        read("imagenet_sample", 100)[0],
        eval_data=read("imagenet_val", 100),
        steps=32,
        batch_size=20,
        calib_samples=100,
    )
    return _rows("SqueezeNet 1.1", result, (1, 2, 4, 8, 16, 32))


def vit(data: Path) -> list[Row]:
    """The vision transformer (MNIST), both exports: default options, T = 32, the first 300 test digits."""
    train, test = np.load(data / "mnist_train.npz"), np.load(data / "mnist_test.npz")

    def prepare(images: np.ndarray) -> np.ndarray:
        return (images.astype(np.float32) / 255)[:, None]

    rows: list[Row] = []
    for export in ("torchscript", "dynamo"):
        result = convert(
            data / f"models/mnist_vit_{export}.onnx",
            prepare(train["x"][:256]),
            eval_data=(prepare(test["x"][:300]), test["y"][:300].astype(np.int64)),
            steps=32,
            batch_size=64,
        )
        rows += _rows(f"ViT, {export}", result, (1, 2, 4, 8, 16, 32))
    return rows


def digits(_: Path) -> list[Row]:
    """The shipped digits networks with the default options, T = 8."""
    rows: list[Row] = []
    for name in ("digits_relu", "digits_qcfs4"):
        models = ROOT / "models"
        result = convert(
            models / f"{name}.onnx",
            models / "digits_calibration.npz",
            eval_data=models / "digits_test.npz",
            steps=8,
        )
        rows += _rows(name, result, (1, 2, 4, 8))
    return rows


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
    for turn in range(6):
        for name, (_model, fed) in models.items():
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
    "defaults": defaults,
    "qcfs": qcfs,
    "mobilenet": mobilenet,
    "squeezenet": squeezenet,
    "vit": vit,
    "digits": digits,
    "timing": timing,
}


def markdown(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    heads = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(_cell(row.get(head, "")) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


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

"""Measure accuracy: neurons, rules and thresholds against T, events and SynOps; write docs/accuracy.md and its figure.

    python tools/accuracy.py --data FOLDER [--only neurons --only rules ...] [--results FILE] [--jobs N]
    python tools/accuracy.py --write            # the page and the figure, from the results that there are

Every conversion is a line of the results file, and what is there is not done again: stop it and start it as you like.
FOLDER is described in `real_data.py`. Calibration images come from the training sets (seed s: another draw of them);
test images judge, and choose nothing. `--jobs 2` measures two cases at a time with one thread each, which on two cores
does about 1.4 times as much in the same time; the numbers are the same, but for the seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
from accuracy_page import STEPS, THRESHOLDS, WHOLE, write_page
from real_data import MOBILENET, SQUEEZENET, cifar, digits, imagenet, mnist
from rich.console import Console
from rich.progress import Progress

from ftbc_onnx import convert
from ftbc_onnx.runtime import CPU

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "accuracy.jsonl"

RESNET = "cifar10_resnet20_torchscript"
NEURONS: dict[str, dict[str, Any]] = {
    "if": {"neuron": "if"},
    "signed": {"neuron": "signed"},
    "signed-st": {"neuron": "signed-st"},
    "group 4": {"neuron": "group", "levels": 4},
    "signed-group 4": {"neuron": "signed-group", "levels": 4},
    "signed-group 8": {"neuron": "signed-group", "levels": 8},
    "signed-group 15": {"neuron": "signed-group", "levels": 15},
    "multi-threshold 4": {"neuron": "multi-threshold", "levels": 4},
    "differential signed-st": {"neuron": "signed-st", "coding": "differential"},
    "differential signed-group 4": {"neuron": "signed-group", "levels": 4, "coding": "differential"},
    "differential multi-threshold 4": {"neuron": "multi-threshold", "levels": 4, "coding": "differential"},
}


@dataclass(frozen=True)
class Case:
    """One conversion.

    Attributes:
        part: which table it belongs to.
        network: name of the ONNX file.
        label: what the row is called.
        steps: T.
        seed: which calibration images.
        samples: how many of them.
        options: of `ftbc_onnx.ConvertConfig`.
    """

    part: str
    network: str
    label: str
    steps: int
    seed: int = 0
    samples: int = 256
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What is the same for the same case."""
        return json.dumps(asdict(self), sort_keys=True)


def _neuron(part: str, label: str, steps: int, seed: int = 0, *, samples: int = 256, **options: Any) -> Case:
    return Case(part, RESNET, label, steps, seed, samples, {"threshold": "mse", **NEURONS[label], **options})


SEEDS = (0, 1, 2)
PUBLISHED: dict[str, Any] = {"rule": "paper", "calib_samples": 384, "batch_size": 128}
"""The published rule, with a bit less data than its 600 to 1,000 images."""

REFIT = {"if": (1, 2, 4, 8, 16), "signed-st": (2, 4, 8), "signed-group 4": (1, 2)}
"""Neurons for which layers are fitted again, and the T."""

COUNTS = ("events", "binary_spikes", "synops", "dense_synops")

NETWORKS = {
    RESNET: 256,
    "cifar10_resnet20_dynamo": 256,
    "mobilenet_v1_0.25_128_tf2onnx": 200,
    "mnist_vit_torchscript": 256,
    "mnist_vit_dynamo": 256,
    "squeezenet1_1_caffe": 100,
}
"""Networks for the default options, and their calibration samples."""


def cases() -> Iterator[Case]:
    """Every case, what matters most first."""
    yield from (Case("default", RESNET, "default", t) for t in (1, 2, 4))
    yield from (
        Case("default", network, "default", t, samples=samples)
        for t in (8, 32)
        for network, samples in NETWORKS.items()
    )
    yield from (Case("default", RESNET, "default", t, seed) for seed in SEEDS for t in (4, 2, 1, 8))
    yield from (
        _neuron("refit", label, t, seed, refit=True) for seed in SEEDS for label, steps in REFIT.items() for t in steps
    )
    yield from (_neuron("refit", label, 4, samples=1024, refit=True) for label in ("if", "signed-st"))
    yield from (_neuron("neurons", label, t, seed) for seed in SEEDS for label in NEURONS for t in STEPS if t <= 8)
    yield from (_neuron("neurons", label, t) for t in (16, 32) for label in NEURONS)
    for seed in SEEDS:
        yield from (_neuron("quantised", "if", t, seed, schedule="synchronous") for t in (1, 2, 4, 8, 16))
        for label in ("if", "signed-group 4"):
            yield from _choices(label, seed)
        yield from (_neuron("compressed", "signed-st", 8, seed, compress_bias=on) for on in (False, True))
    yield from (_neuron("neurons", label, t, seed) for t in (16, 32) for label in NEURONS for seed in SEEDS)
    yield from (case for seed in SEEDS for label in NEURONS for case in _published(label, STEPS[-1], seed, WHOLE))
    yield from (case for t in STEPS for seed in SEEDS for label in NEURONS for case in _grid(label, t, seed))


def _grid(label: str, steps: int, seed: int) -> Iterator[Case]:
    """Every rule with every threshold, but for `solve` with `mse`, which is among the neurons, and `WHOLE` (all T)."""
    yield from (_neuron("grid", label, steps, seed, threshold=name) for name in THRESHOLDS if name != "mse")
    yield from _published(label, steps, seed, [name for name in THRESHOLDS if name not in WHOLE])


def _published(label: str, steps: int, seed: int, thresholds: Iterable[str]) -> Iterator[Case]:
    """The published rule with each of these thresholds."""
    yield from (_neuron("grid", label, steps, seed, threshold=name, **PUBLISHED) for name in thresholds)


def _choices(label: str, seed: int) -> Iterator[Case]:
    """Gate, gain, sharing of thresholds and calibration samples for one neuron at T = 4."""
    yield _neuron("rules", label, 4, seed, gate=False)
    yield _neuron("rules", label, 4, seed, gate=False, shrink=2.0)
    yield from (_neuron("gains", label, 4, seed, gain=on) for on in (False, True))
    yield _neuron("rules", label, 4, seed, per_channel=False)
    options = {"threshold": "mse", **NEURONS[label]}
    counts = (32, 64, 128, 512, 1024)  # 256 is among the neurons
    yield from (Case("samples", RESNET, label, 4, seed, count, options) for count in counts)


def run(
    case: Case,
    data: Path,
    models: Mapping[str, Path] | None = None,
    device: str = "auto",
    threads: int | None = None,
    **unnamed: Any,
) -> dict[str, Any]:
    """Convert and judge; the figures of the case.

    Args:
        case: what to measure.
        data: the folder.
        models: networks that are not in the folder, by name.
        device: where onnxruntime runs.
        threads: of its sessions.
        **unnamed: options that do not make another case of it: `compare`, `counting`.
    """
    model = (models or {}).get(case.network, data / "models" / f"{case.network}.onnx")
    options = {
        "calib_samples": case.samples,
        "steps": case.steps,
        "device": device,
        "threads": threads,
        **unnamed,
        **case.options,
    }
    offset = 0
    batch: int | None = None
    count = options["calib_samples"]
    rng = np.random.default_rng(case.seed)
    if case.network.startswith("digits"):
        (images, _), test = digits("calibration"), digits("test")
    elif case.network.startswith("cifar10"):
        images = cifar(data, "train", 10000)[0][np.sort(rng.choice(10000, count, replace=False))]
        test = cifar(data, "test", 1000)
    elif case.network.startswith("mnist"):
        images = mnist(data, "train", 5000)[0][np.sort(rng.choice(5000, count, replace=False))]
        test = mnist(data, "test", 1000)
    elif case.network.startswith("mobilenet"):
        images = imagenet(data, model, MOBILENET, "imagenet_sample", count)[0]
        test, offset, batch = imagenet(data, model, MOBILENET, "imagenet_val", 400), 1, 50
    else:
        images = imagenet(data, model, SQUEEZENET, "imagenet_sample", count)[0]
        test, batch = imagenet(data, model, SQUEEZENET, "imagenet_val", 400), 10
    start = time.perf_counter()
    result = convert(
        model, images, eval_data=test, label_offset=offset, verify=False, **{"batch_size": batch, **options}
    )
    report = result.report
    after, before = report["evaluation"], report["evaluation_without_bias"] or {"accuracy": None}
    counts = after["counts"] or dict.fromkeys(COUNTS)
    return {
        "case": asdict(case),
        "ann": after["ann_accuracy"],
        "images": after["samples"],
        "accuracy": after["accuracy"],
        "no_bias": before["accuracy"],
        "agreement": after["agreement"],
        **{name: counts[name] for name in COUNTS},
        "neuron": report["neuron"],
        "threshold": report["threshold"],
        "selections": report["selections"],
        "device": report["device"],
        "seconds": round(time.perf_counter() - start, 1),
        "load": round(os.getloadavg()[0], 1),
    }


def judged(case: Case, **where: Any) -> dict[str, Any]:
    """The figures of a case: of the many that only compare rules and thresholds, accuracy alone."""
    brief = case.part == "grid"
    return run(case, compare=not brief, counting=not brief, **where)


def read(results: Path) -> list[dict[str, Any]]:
    """What was measured before."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def measure(cases: Iterable[Case], results: Path, measured: Callable[..., dict[str, Any]], jobs: int = 1) -> None:
    """Measure what is not in the results file yet, each case once; a line is added as soon as it is there.

    Args:
        cases: what to measure.
        results: the file; lines are appended.
        measured: measures a case, with so many `threads`.
        jobs: cases at a time, each in a process and with its share of the cores.

    Raises:
        RuntimeError: a case failed; those that were running are kept, no more were begun.
    """
    done = {json.dumps(row["case"], sort_keys=True) for row in read(results)}
    wanted = {case.key: case for case in cases}
    todo = [case for key, case in wanted.items() if key not in done]
    threads = None if jobs == 1 else max(CPU.cores // jobs, 1)
    waiting, running, failed = iter(todo), dict[Future[dict[str, Any]], Case](), list[RuntimeError]()
    with (
        Progress(console=Console(stderr=True)) as bar,
        ProcessPoolExecutor(jobs, get_context("spawn")) as pool,
    ):
        task = bar.add_task("conversions", total=len(todo))
        while True:
            if not failed:  # never more than can run at once: a case that was begun is kept, whatever happens
                new = list(islice(waiting, jobs - len(running)))
                running.update({pool.submit(measured, case, threads=threads): case for case in new})
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                case = running.pop(future)
                bar.update(task, advance=1, description=f"{case.network} {case.label} T={case.steps}")
                try:
                    row = future.result()
                except Exception as error:
                    failed.append(RuntimeError(f"{error} (in {case})"))
                    continue
                with results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    if failed:
        raise failed[0]


def measure_or_stop(cases: Iterable[Case], results: Path, *how: Any) -> None:
    """`measure` for a command line.

    Raises:
        click.ClickException: a case failed; what was measured is kept.
    """
    results.parent.mkdir(parents=True, exist_ok=True)
    try:
        measure(cases, results, *how)
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Folder of images and networks.")
@click.option("--only", multiple=True, help="Parts to measure [default: all].")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where the figures are kept.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cases at a time.")
@click.option("--device", default="auto", show_default=True, help="Where onnxruntime runs: auto, cpu, cuda or cuda:N.")
@click.option("--write", is_flag=True, help="Only write the page and the figure.")
def main(data: Path | None, only: tuple[str, ...], *, results: Path, jobs: int, device: str, write: bool) -> None:
    """Measure what is missing, then write the page."""
    if not write:
        if data is None:
            raise click.UsageError("--data is needed to measure")
        chosen = (case for case in cases() if not only or case.part in only)
        measure_or_stop(chosen, results, partial(judged, data=data, device=device), jobs)
    write_page(read(results), ROOT / "docs", list(NEURONS))


if __name__ == "__main__":
    main()

"""Reproduce the published gains: networks trained for conversion, with the published rule and with ours.

    python tools/reproduce.py --data FOLDER [--network FILE.onnx ...] [--only ROW ...]  # measures what is missing
    python tools/reproduce.py --write                                     # only writes docs/reproduced.md, as each does

FOLDER is described in `real_data.py`. Every conversion is a line of docs/reproduced.jsonl; what is there is not done
again. Calibration images come from the training set (seed s: another draw of them), test images judge and choose
nothing. Convolutional QCFS networks state their thresholds, and neither the published rule nor `solve` looks ahead, so
one conversion with T = 32 gives the whole curve of their integrate-and-fire neurons; whatever is chosen by T has a
conversion for every T.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from accuracy import SEEDS, STEPS, Case, measure_or_stop, read, run
from real_data import markdown

from ftbc_onnx.inspection import inspect_model

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "reproduced.jsonl"

PUBLISHED = {"neuron": "if", "rule": "paper", "alpha": 0.4, "batch_size": 200, "gate": False}
"""The published rule: alpha 0.4, batches of 200; where thresholds are not stated, a quarter is held back for them."""
LABELS = {
    "no bias": "integrate-and-fire, no bias",
    "published": "published rule (alpha 0.4, 5 x 200 images)",
    "published-750": "published rule (alpha 0.4, 3 x 200 + 150 images)",
    "solve": "integrate-and-fire, rule solve",
    "solve-192": "integrate-and-fire, rule solve, 192 images",
    "dual": "signed (dual threshold), rule solve",
    "binary": "integrate-and-fire (`--neuron if`)",
    "refit": "integrate-and-fire, layers fitted again (`--refit`)",
    "default": "default options",
    "best": "signed group of 15 levels",
}
MEASURED = tuple(label for label in LABELS if label not in ("no bias", "published-750", "solve-192"))
"""Rows that have a conversion of their own to be run."""

COMPARED = ("published", "solve", "dual", "binary")
"""Rows whose networks are also judged without biases."""
GAINS = ("no bias", "published", "published-750", "solve", "solve-192")
CLOSED = "% of the gap to the ANN that the published rule closes"
FROM_PAPERS = {
    "cifar10_resnet20_qcfs8": (
        92.79,
        {1: 40.96, 2: 53.49, 4: 73.11, 8: 88.50, 16: 92.32, 32: 92.92},
        {1: 58.84, 2: 70.87, 4: 83.59, 8: 90.39, 16: 92.50, 32: 92.93},
    ),
    "cifar10_resnet20_qcfs4": (
        90.72,
        {1: 63.89, 2: 73.29, 4: 83.38, 8: 89.82, 16: 91.32, 32: 91.69},
        {1: 66.87, 2: 76.91, 4: 85.48, 8: 89.95, 16: 91.14, 32: 91.52},
    ),
}
"""An independent reproduction of FTBC: accuracy of the ANN, without and with biases. Other weights (trained on 50,000
images), 10,000 test images."""
GROUPS = {"cifar10_resnet20_qcfs8": {1: "81.1", 2: "88.4", 4: "90.9", 8: "91.9"}}
"""An independent reproduction of group neurons (2402.19061) of 8 members on QCFS, L = 8."""


def cases(networks: Sequence[str]) -> Iterator[Case]:
    """Every case, what matters most first: T up to 8 with every seed, then the long runs, seed by seed."""
    trained = [name for name in networks if not name.startswith("digits")]
    for seed in SEEDS:
        for network in trained:
            if "clipped" in network:
                yield from (_dual(network, t, seed) for t in STEPS if t <= 8)
            elif states_thresholds(network):  # one conversion gives every T
                yield from (_published(network, 8 if seed else 32, seed), _solve(network, 8 if seed else 32, seed))
            else:
                yield from (_published(network, t, seed) for t in STEPS if t <= 8)
            yield from (_default(network, t, seed) for t in STEPS if t <= 8)
            yield from (_best(network, t, seed) for t in STEPS if t <= 4)
            if "resnet20_qcfs" in network:
                yield from (_refit(network, t, seed) for t in STEPS if t <= 8)
    for network in (name for name in networks if name.startswith("digits")):
        yield from (Case("reproduced", network, "binary", t, options={"neuron": "if"}) for t in STEPS)
        yield from (made(network, t, 0) for made in (_refit, _default, _best) for t in STEPS)
    for seed in SEEDS:
        for network in trained:
            if "clipped" in network:
                yield from (_dual(network, t, seed) for t in (16, 32))
            elif states_thresholds(network):
                yield _published(network, 32, seed)
            else:
                yield from (_published(network, t, seed) for t in (16, 32))
            yield from (_best(network, t, seed) for t in (8, 16, 32))
            yield from (_default(network, t, seed) for t in (16, 32))


def judged(case: Case, **where: Any) -> dict[str, Any]:
    """The figures of a case: nothing is counted, and without biases only those are judged whose row says it."""
    found = run(case, compare=case.label in COMPARED, counting=False, **where)
    return {**found, "network_sha256": digest_of(where["models"][case.network])}


def digest_of(file: Path) -> str:
    """sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_networks(paths: Mapping[str, Path], results: Sequence[dict[str, Any]]) -> None:
    """Refuse a file whose name does not say what it is, or under whose name another one was measured, or may have been.

    Raises:
        click.UsageError: one is refused.
    """
    for name, path in paths.items():
        if not name.startswith(("cifar10", "digits")):
            raise click.UsageError(f"'{path}': a network is called cifar10_... or digits_..., after its images")
        rows = [row for row in results if row["case"]["network"] == name]
        known = {row["network_sha256"] for row in rows if "network_sha256" in row}
        if rows and known != {digest_of(path)}:
            raise click.UsageError(f"'{path}' is not the network that was measured as '{name}': call it something else")
        if name.startswith("cifar10"):
            stated = all(site["levels"] for site in inspect_model(path)["sites"])
            if stated != states_thresholds(name):
                which = "are all" if stated else "are not all"
                raise click.UsageError(f"'{path}': its activations {which} QCFS, its name says otherwise: rename it")


def states_thresholds(network: str) -> bool:
    """Whether all sites of a network of this name do: those before the products of a transformer are no QCFS."""
    return "qcfs" in network and "vit" not in network


def _published(network: str, steps: int, seed: int) -> Case:
    return Case("reproduced", network, "published", steps, seed, 1000, PUBLISHED)


def _solve(network: str, steps: int, seed: int) -> Case:
    return Case("reproduced", network, "solve", steps, seed, 256, {"neuron": "if", "gate": False, "gain": False})


def _dual(network: str, steps: int, seed: int) -> Case:
    return Case("reproduced", network, "dual", steps, seed, 256, {"neuron": "signed", "rule": "solve"})


def _default(network: str, steps: int, seed: int) -> Case:
    return Case("reproduced", network, "default", steps, seed)


def _best(network: str, steps: int, seed: int) -> Case:
    return Case("reproduced", network, "best", steps, seed, options={"neuron": "signed-group", "levels": 15})


def _refit(network: str, steps: int, seed: int) -> Case:
    return Case("reproduced", network, "refit", steps, seed, options={"neuron": "if", "refit": True})


def write_page(results: Sequence[dict[str, Any]], target: Path) -> None:
    """Write docs/reproduced.md."""
    by_network: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_network[result["case"]["network"]].append(result)
    text = HEAD
    for network, found in by_network.items():
        text += f"## {network}\n\nANN {found[0]['ann']:.1f} % of {found[0]['images']} test images.\n\n"
        text += markdown(_rows(network, found)) + "\n\n"
    target.write_text(text.rstrip() + "\n", encoding="utf-8")


HEAD = """# Reproduced

Made by `tools/reproduce.py` from `docs/reproduced.jsonl`: networks that were trained for conversion (`models/`), with
the published rule and with ours, on the 1,000 test images (of the digits 360); mean of the calibration seeds, +- their
spread, and how many there are. *s*: seconds for a conversion with both evaluations, mean over the conversions of the
row on 2 CPU cores that did other work too, for which some were suspended; those that ran on a GPU, several at a time,
or without the second evaluation are left out.

The published rule takes 5 batches of 200 training images. Where activations state no thresholds, a quarter of the
images is held back to choose them, which leaves three batches of 200 and one of 150. Rows that say so of networks that
do state them are older: a quarter was held back there, too (of the 256 images of `solve`, 64).

One standard error is 0.9 points near 90 % and 1.6 near 50 %. Judge by the gain over the same network's row without
biases, since accuracy at small T depends strongly on the checkpoint. Published rows are from an independent
reproduction: trained on 50,000 images (ours: 30,000) for 300 epochs (ours: up to 96), other weights, 10,000 test
images, calibrated on 5 x 200 images with alpha 0.4 as here. The row of group neurons is from a reproduction, too; the
accuracy of its ANN is not known. There is no published table for the other networks that was made in a comparable
setting.

Five networks are too large for this repository, or of no use beyond this table. They were trained on a GPU by
`models/train.py` as those of `models/`, but for: ResNet-34 (QCFS, L = 8) 42 epochs; ResNet-18 and VGG-16 (linear
layers of 512; QCFS, L = 4) 60 of 120 and 80 of 116 epochs, then 16 at a rate of 0.03 and 0.01; MobileNetV2 (ReLU6) 18
epochs at a rate of 0.05; the ViT (128 wide, 6 blocks; QCFS, L = 8, in its feed-forward layers) 64 epochs of AdamW at a
rate of 0.001, weight decay 0.05, thresholds from 4.

Four of them were trained a second time (`..._again`): ResNet-34 and the ViT by the same command (on a GPU the same seed
does not give the same weights), ResNet-18 and VGG-16 for 40 and 50 epochs from scratch. Rows that ran on a GPU, of the
second ResNet-18, VGG-16 and ViT and of MobileNetV2, had cuDNN's algorithms chosen by heuristics and not by trial. There
are three ResNet-20 with QCFS, L = 8: two trained from scratch by one command but for the seed, and one
(`..._qcfs8_torchscript`) fine-tuned from a network with plain ReLU for 4 epochs (SGD at 0.03, crop and flip). These
tables show how much of a gain is the checkpoint's ([decision 33](decisions/0033-training.md)).

The weights of the first trainings of VGG-16, ResNet-18 and the ViT are gone, and of both ResNet-34: their tables stay
as they are, with one seed or none for some rows of T = 8 and more; those of the second trainings are whole. A third
ResNet-34 (`..._large`) was trained and converted on 2 CPU cores. It has the layout for images of 224 x 224 (`--large`),
which leaves one pixel of 32 x 32, and had 12 epochs of AdamW (rate 0.001, weight decay 0.05, thresholds from 4) with
crop and flip alone; so its ANN is the weakest. Without biases its last stage takes hundreds of steps to follow the ANN:
of 24 test images (ANN 79 %) 17, 58 and 83 % are right after 81, 161 and 281 steps (a script of the day), one class is
given up to T = 32.

"""


def _rows(network: str, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_label: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        label = result["case"]["label"]
        by_label["published-750" if label == "published" and not states_thresholds(network) else label].append(result)
    curves = {label: _curve(by_label[label], "accuracy") for label in LABELS if label in by_label}
    plain = next((k for k in (("published-750", "published"), ("dual",), ("binary",)) if set(k) & set(curves)), ())
    rows = []
    if plain:
        curves = {"no bias": _curve([r for label in plain for r in by_label.get(label, ())], "no_bias"), **curves}
    for label, curve in curves.items():
        name = "signed (dual threshold), no bias" if label == "no bias" and plain == ("dual",) else LABELS[label]
        row: dict[str, Any] = {"row": name, **_cells({t: _cell(values) for t, values in curve.items()})}
        timed = [r for r in by_label.get(label, ()) if r.get("device", "cpu") == "cpu" and r["no_bias"] is not None]
        seconds = [r["seconds"] for r in timed]
        row["s"] = f"{np.mean(seconds):.0f}" if seconds else ""
        rows.append(row)
    published = next((label for label in ("published", "published-750") if label in curves), None)
    if published is not None:
        means = {label: {t: float(np.mean(v)) for t, v in curves[label].items()} for label in GAINS if label in curves}
        before = means.pop("no bias")
        for label, found in means.items():
            gain = {t: f"{found[t] - before[t]:+.1f}" for t in found}
            rows.append({"row": f"gain of {LABELS[label]}", **_cells(gain)})
        rows.append({"row": CLOSED, **_cells(_closed(results[0]["ann"], before, means[published]))})
    recipe = network.partition("_seed")[0]
    if recipe in FROM_PAPERS:
        ann, before, after = FROM_PAPERS[recipe]
        rows.append({"row": f"published: no bias (ANN {ann})", **_cells({t: f"{before[t]:.1f}" for t in before})})
        rows.append({"row": "published: with biases", **_cells({t: f"{after[t]:.1f}" for t in after})})
        rows.append({"row": f"published: {CLOSED}", **_cells(_closed(ann, before, after))})
    if recipe in GROUPS:
        rows.append({"row": "published: group neurons of 8 members", **_cells(GROUPS[recipe])})
    return rows


def _closed(ann: float, before: Mapping[int, float], after: Mapping[int, float]) -> dict[int, str]:
    """Percent of the gap to the ANN that biases close, where it is 2 points or more."""
    gaps = {t: ann - before[t] for t in after}
    return {t: f"{100 * (after[t] - before[t]) / gap:.0f}" for t, gap in gaps.items() if gap >= 2}


def _cells(values: Mapping[int, str]) -> dict[str, str]:
    return {**{f"T={t}": values.get(t, "") for t in STEPS}, "s": ""}


def _curve(results: Sequence[dict[str, Any]], what: str) -> dict[int, list[float]]:
    """Accuracy by T, one number per seed: along the curve, where the conversion does not depend on T."""
    found: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for result in sorted(results, key=lambda r: r["case"]["steps"]):
        steps, seed = result["case"]["steps"], result["case"]["seed"]
        label, network = result["case"]["label"], result["case"]["network"]
        whole = label.startswith(("published", "solve")) and states_thresholds(network)
        for t in [t for t in STEPS if t <= steps] if whole else [steps]:
            found[t][seed] = result[what][t - 1]
    return {t: list(by_seed.values()) for t, by_seed in found.items()}


def _cell(values: list[float]) -> str:
    spread = f" +- {np.std(values, ddof=1):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Folder of images and networks.")
@click.option(
    "--network",
    "files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Networks cifar10_*.onnx or digits_*.onnx, with qcfs in the name of those that are [default: of models/].",
)
@click.option("--seeds", type=click.IntRange(1, 3), default=3, show_default=True, help="Calibration seeds.")
@click.option("--only", multiple=True, type=click.Choice(MEASURED), help="Rows to measure [default: all].")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=RESULTS,
    help="Where the figures are kept; the page is beside them.",
)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Cases at a time.")
@click.option("--device", default="auto", show_default=True, help="Where onnxruntime runs: auto, cpu, cuda or cuda:N.")
@click.option("--write", is_flag=True, help="Only write the page.")
def main(
    data: Path | None,
    files: tuple[Path, ...],
    *,
    seeds: int,
    only: tuple[str, ...],
    results: Path,
    jobs: int,
    device: str,
    write: bool,
) -> None:
    """Measure what is missing, then write the page."""
    if not write:
        if data is None:
            raise click.UsageError("--data is needed to measure")
        paths = {
            path.stem: path
            for path in files or sorted((ROOT / "models").glob("*.onnx"), key=lambda path: "digits" not in path.stem)
        }
        check_networks(paths, read(results))
        chosen = (c for c in cases(list(paths)) if c.seed < seeds and (not only or c.label in only))
        measure_or_stop(chosen, results, partial(judged, data=data, models=paths, device=device), jobs)
    elif not results.exists():
        raise click.UsageError(f"'{results}' does not exist: nothing to write")
    write_page(read(results), results.with_suffix(".md"))


if __name__ == "__main__":
    main()

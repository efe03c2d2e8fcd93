"""How the cost of a spiking network grows with T, with the batch, and with the depth of the ANN.

    python tools/scaling.py [--rows FILE]     # measures, then draws docs/scaling.svg
    python tools/scaling.py --draw            # draws from the rows that are there

ResNet-20 to -56 of `models/` with random weights, integrate-and-fire neurons, on the CPU. Every point is measured in a
process of its own, `REPEATS` times, the middle one counts; nothing else should run. Exponents are slopes of straight
lines through the upper half of a curve.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from benchmark_networks import export, feeds_of, open_network
from real_data import markdown

from ftbc_onnx.graph.emit import emit
from ftbc_onnx.runtime import Session

DOCS = Path(__file__).resolve().parent.parent / "docs"
ROWS, FIGURE = DOCS / "scaling.jsonl", DOCS / "scaling.svg"
SHAPE = (3, 32, 32)
BATCHES = (1, 4, 16, 64, 256)
POINTS = {
    "T": [{"T": 2**i, "batch": 8, "depth": 20, "form": form} for form in ("fused", "loop") for i in range(8)],
    "batch": [{"T": 4, "batch": b, "depth": 20, "form": form} for form in ("fused", "ann") for b in BATCHES],
    "depth": [{"T": 8, "batch": 8, "depth": d, "form": form} for form in ("fused", "ann") for d in (20, 32, 44, 56)],
}
"""What is varied, and its points."""

REPEATS = 3

LABELS = {"fused": "SNN, fused", "loop": "SNN, loop", "ann": "ANN"}


def measure(point: dict[str, Any], path: Path) -> dict[str, float]:
    """Seconds of a run and of opening the file, for one point."""
    network, plan = open_network(path, point["T"])
    model = network.view.model if point["form"] == "ann" else emit(network, plan, point["form"]).model
    start = time.perf_counter()
    session = Session(model)
    opened = time.perf_counter() - start
    feeds = feeds_of(network, SHAPE, point["batch"])
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 4 or (time.perf_counter() - begun < 1.5 and len(times) < 50):
        start = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - start)
    return {"run, s": statistics.median(times[1:]), "creation, s": opened}


def exponent(rows: list[dict[str, Any]], axis: str, what: str) -> float:
    """The slope of log(cost) over log(what is varied), of the upper half of the points."""
    points = sorted((row[axis], row[what]) for row in rows)
    upper = points[len(points) // 2 - (len(points) % 2 == 0) :]
    slope, _ = np.polyfit(*np.log(np.array(upper)).T, 1)
    return float(slope)


def draw(rows: list[dict[str, Any]], target: Path) -> None:
    """One panel per axis, both axes logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415 (only where it is drawn)

    mpl.use("svg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    mpl.rcParams.update({"svg.hashsalt": "scaling", "font.size": 9})
    panels = [("T", "run, s"), ("T", "creation, s"), ("batch", "run, s"), ("depth", "run, s")]
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 3.4), layout="constrained")
    for panel, (axis, what) in zip(axes, panels, strict=True):
        for form in dict.fromkeys(row["form"] for row in rows if row["axis"] == axis):
            found = sorted((r[axis], r[what]) for r in rows if (r["axis"], r["form"]) == (axis, form))
            slope = exponent([r for r in rows if (r["axis"], r["form"]) == (axis, form)], axis, what)
            panel.plot(*zip(*found, strict=True), marker="o", label=f"{LABELS[form]}: exponent {slope:.2f}")
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=what)
        ticks = sorted({row[axis] for row in rows if row["axis"] == axis})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(target, metadata={"Date": None})


def table(rows: list[dict[str, Any]]) -> str:
    """Exponents of every curve."""
    found = []
    for axis, form in dict.fromkeys((row["axis"], row["form"]) for row in rows):
        curve = sorted((r for r in rows if (r["axis"], r["form"]) == (axis, form)), key=lambda r: r[axis])
        ends = f"{curve[0]['run, s'] * 1e3:.1f} to {curve[-1]['run, s'] * 1e3:.1f}"
        found.append(
            {
                "against": axis,
                "of": LABELS[form],
                "from, to": f"{curve[0][axis]} to {curve[-1][axis]}",
                "run, ms": ends,
                "exponent of the run": exponent(curve, axis, "run, s"),
                "creation, s": f"{curve[0]['creation, s']:.2f} to {curve[-1]['creation, s']:.2f}",
                "exponent of creation": exponent(curve, axis, "creation, s"),
            }
        )
    return markdown(found)


@click.command()
@click.option("--rows", type=click.Path(path_type=Path), default=ROWS, show_default=True, help="Where rows are kept.")
@click.option("--draw", "only_draw", is_flag=True, help="Draw from the rows that are there.")
@click.option("--point", help="One point, as JSON: what the others are measured with.")
@click.option("--path", type=click.Path(path_type=Path), help="The network of that point.")
def main(*, rows: Path, only_draw: bool, point: str | None, path: Path | None) -> None:
    """Measure, draw, and print the exponents."""
    if point is not None and path is not None:
        click.echo(json.dumps(measure(json.loads(point), path)))
        return
    if not only_draw:
        found, half = [], rows.with_suffix(".part")
        with tempfile.TemporaryDirectory() as folder:
            for axis, points in POINTS.items():
                for asked in points:
                    name = f"resnet{asked['depth']}"
                    network = export(name, SHAPE, Path(folder) / f"{name}.onnx")
                    command = [sys.executable, __file__, "--point", json.dumps(asked), "--path", str(network)]
                    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(REPEATS)]
                    rows_of = [json.loads(run.stdout) for run in runs]
                    middle = {what: statistics.median(row[what] for row in rows_of) for what in rows_of[0]}
                    found.append({"axis": axis, **asked, **middle})
                    click.echo(found[-1], err=True)
                    half.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        half.replace(rows)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    draw(lines, FIGURE)
    click.echo(table(lines))


if __name__ == "__main__":
    main()

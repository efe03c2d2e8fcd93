"""Convert networks of libraries, with random weights and data: does the graph go through, as the function it is?

    python tools/libraries.py FOLDER          # every .onnx in it, as `export_libraries.py` writes them
    python tools/libraries.py                 # only writes docs/libraries.md, as the other does

What docs/libraries.jsonl has is not converted again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click
from accuracy import read
from real_data import markdown

from ftbc_onnx import FtbcError, convert

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "libraries.jsonl"
OPTIONS: dict[str, Any] = {
    "steps": 4,
    "neuron": "signed-group",
    "levels": 15,
    "rule": "none",
    "threshold": "max",
    "random_data": True,
    "calib_samples": 8,
}
"""Cheap to find: what is looked at is the graph, and not how few steps will do."""


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where the figures are kept.")
def main(folder: Path | None, results: Path) -> None:
    """Convert every ONNX file of a folder, and write the page."""
    rows = read(results)
    done = {row["file"] for row in rows}
    for file in sorted(folder.glob("*.onnx")) if folder else []:
        if file.stem not in done:
            row = measure(file)
            rows.append(row)
            with results.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            click.echo(f"{file.stem}: {row['refused'] or ('equal' if row['bitwise'] else 'not equal')}")
    results.with_suffix(".md").write_text(page(rows), encoding="utf-8")


def measure(file: Path) -> dict[str, Any]:
    """Convert a file; what its row of the table is made from."""
    begun = time.perf_counter()
    try:
        report = convert(file, **OPTIONS).report
    except FtbcError as error:
        return {"file": file.stem, "refused": str(error)}
    return {
        "file": file.stem,
        "refused": None,
        **{name: report[name] for name in ("neurons", "node_classes", "form")},
        "sites": len(report["sites"]),
        "bitwise": report["verification"]["bitwise"],
        "gap": report["evaluation"]["output_gap"],
        "seconds": round(time.perf_counter() - begun, 1),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """docs/libraries.md."""
    shown = [_shown(row) for row in sorted(rows, key=lambda row: row["file"])]
    equal = sum(row.get("bitwise", False) for row in rows)
    return HEAD.format(
        count=len(rows), equal=equal, refused=sum(bool(row["refused"]) for row in rows), **OPTIONS
    ) + markdown(shown)


HEAD = """# Networks of libraries

With random weights: does the graph go through, and is what is emitted the function that it should be? Made by
`tools/libraries.py` from docs/libraries.jsonl, with standard normal numbers for images; accuracy is measured
[elsewhere](accuracy.md). The files are of `tools/export_libraries.py` with timm 1.0.31 and torchvision 0.28 (PyTorch
2.13, images of 64 x 64 pixels), Keras 3.15 (PyTorch as backend; VGG16 with 32 x 32) and Paddle 3.3.1 (paddle2onnx 2.1;
alexnet with 224 x 224 and inception_v3 with 96 x 96).

{count} files: {refused} refused, and {equal} equal to a NumPy run of their plan to the last bit. *gap*: mean difference
to the ANN's outputs, in units of their mean size, after one step and after {steps}, with {levels} levels up to the
largest activation and no biases, which are cheap to find. *on means*: nodes that are applied to running means
([what that is](coverage.md)).

"""


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    library, rest = row["file"].split("_", 1)
    network, exporter = rest.rsplit("_", 1)
    named = {"network": network, "library": library, "exporter": exporter}
    if row["refused"]:
        return {**named, "equal": row["refused"]}
    return {
        **named,
        "sites": row["sites"],
        "neurons": f"{row['neurons'] / 1000:.0f} k",
        "nodes": sum(row["node_classes"].values()),
        "on means": row["node_classes"].get("rate-exact", 0),
        "form": row["form"],
        "equal": "yes" if row["bitwise"] else "no",
        "gap, t = 1": row["gap"][0] if row["gap"] else "not finite",
        f"gap, t = {OPTIONS['steps']}": row["gap"][-1] if row["gap"] else "not finite",
    }


if __name__ == "__main__":
    main()

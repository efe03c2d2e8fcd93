"""``ftbc-onnx sweep``: many conversions of one network, and which of them to take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ftbc_onnx.cli.options import common, data_options, scope_options
from ftbc_onnx.cli.screen import log, print_json, progress_bars, report_console, set_up_logging
from ftbc_onnx.cli.values import preprocessing_of
from ftbc_onnx.config import check_positive
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.runtime import CPU
from ftbc_onnx.sweep import Grid, Processes, Serial, SweepResult, Workers, run_sweep
from ftbc_onnx.sweep.on_ray import RayWorkers
from ftbc_onnx.sweep.pareto import share


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-T", "--steps", default="1,2,4,8", show_default=True, help="Numbers of time steps.")
@click.option("--neuron", default="auto", show_default=True, help="Neurons: auto, if, signed-group, ...")
@click.option("--levels", help="Levels per step, of neurons that take a number.")
@click.option("--rule", default="solve", show_default=True, help="Rules: solve, paper, none.")
@click.option("--threshold", default="auto", show_default=True, help="Thresholds: auto, mse, moments, percentile, max.")
@click.option("--calib-data", required=True, help="Calibration data, of which a quarter is held back and judges.")
@click.option("--calib-samples", type=int, default=512, show_default=True, help="Calibration samples used, at most.")
@click.option("--eval-data", help="Evaluation data with labels: shown beside, and without any say in what is best.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    help="Where results are kept [default: MODEL.sweep.jsonl beside MODEL].",
)
@click.option("--workers", type=int, help="Processes [default: as many as --threads and the cores it may use allow].")
@click.option("--threads", type=int, default=1, show_default=True, help="Of onnxruntime, per conversion.")
@click.option("--ray", is_flag=True, help="Use Ray: a cluster of its own on this machine (extra 'ray').")
@click.option("--ray-address", help="Use the Ray cluster there: auto, HOST:PORT, ray://HOST:PORT.")
@click.option("--gpus", type=float, default=0.0, show_default=True, help="GPUs per conversion in the Ray cluster.")
@scope_options
@data_options
@common
def sweep(
    *,
    model: Path,
    calib_data: str,
    calib_samples: int,
    eval_data: str | None,
    results: Path | None,
    label_offset: int,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert MODEL once for every combination of the lists, and say which to take. Lists are separated by commas.

    What is done is kept in the results file: after an interruption, the same command goes on.

    \b
    Examples:
      ftbc-onnx sweep model.onnx --calib-data calib.npz -T 1,2,4,8 --neuron if,signed-group --rule solve,paper
      ftbc-onnx sweep model.onnx --calib-data calib.npz --eval-data test.npz --neuron signed-group --levels 4,8
      ftbc-onnx sweep model.onnx --calib-data calib.npz --ray-address auto --gpus 1
    """
    set_up_logging(verbose, quiet)
    preprocessing = preprocessing_of(options)
    given = [options.pop(name) for name in ("steps", "neuron", "rule", "threshold", "levels")]
    grid = Grid.parse(*given)
    count, ray, address, gpus = (options.pop(name) for name in ("workers", "ray", "ray_address", "gpus"))
    with _workers(count, ray, address, gpus, options) as workers, progress_bars(quiet or as_json) as progress:
        result = run_sweep(
            model,
            calib_data,
            grid,
            eval_data=eval_data,
            results=results or model.with_name(f"{model.stem}.sweep.jsonl"),
            workers=workers,
            preprocessing=preprocessing,
            calib_samples=calib_samples,
            label_offset=label_offset,
            progress=progress,
            **options,
        )
    if as_json:
        print_json(result.as_dict())
    else:
        print_sweep(report_console(), result)
    for point, error in result.failed:
        log.error("%s: %s", point, error)
    if result.failed:
        raise result.failed[0][1]


@contextmanager
def _workers(
    count: int | None, ray: bool, address: str | None, gpus: float, options: dict[str, Any]
) -> Iterator[Workers]:
    """Those who do it, until it is done; in a Ray cluster, ``auto`` is the device that a task is given."""
    threads = options["threads"]
    check_positive("threads", threads)
    if count is not None:
        check_positive("workers", count)
    if gpus and not (ray or address):
        raise ConfigError("--gpus goes with --ray or --ray-address")
    workers: Workers
    if ray or address:
        if count is not None and address:
            raise ConfigError("--workers goes without --ray-address: the cluster has as many as it has")
        if options["device"] == "auto":
            options["device"] = "cuda" if gpus else "cpu"
        workers = RayWorkers(address, None if count is None else count * threads, threads, gpus)
    else:
        count = count or max(CPU.cores // threads, 1)
        workers = Serial() if count == 1 else Processes(count)
    try:
        yield workers
    finally:
        workers.stop()


_NARROW = 100  # columns up to which cells stand close


def print_sweep(console: Console, result: SweepResult) -> None:
    """One row per point, best first; a star where no other point is better."""
    records = result.records
    if not records:
        return
    held = records[0]["held_back"]
    quality = "right,\n%" if held["accuracy"] is not None else "agrees,\n%"
    evaluated = records[0]["evaluation"]
    judged = evaluated is not None and share(evaluated) is not None
    ann = "" if held["ann_accuracy"] is None else f", ANN {held['ann_accuracy']:.2f} %"
    table = Table(
        title=f"{escape(records[0]['source'])}: {len(records)} points on {held['samples']} calibration samples held "
        f"back from all of them{ann}",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0) if console.width > _NARROW else 0,
    )
    table.add_column("", no_wrap=True)
    table.add_column("T", justify="right", no_wrap=True)
    table.add_column("neuron", overflow="fold", min_width=6)
    for name in ("rule", "threshold"):
        table.add_column(name, no_wrap=True)
    numbers = [quality, "output\nerror", "spikes", "SynOps", "energy,\nx ANN", "ms"]
    if judged:
        numbers.append("eval.,\n%")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for record, good in zip(records, result.on_front, strict=True):
        table.add_row("*" if good else "", *_cells(record), style=None if good else "dim")
    console.print(table)
    lines = [
        "*: no other point is as good with fewer spikes, SynOps and steps; only samples held back decide that",
        "spikes: binary ones per neuron over T steps; energy: by binary spikes; ms: of a sample, a rough measure, "
        "as other conversions run beside it",
    ]
    if evaluated is not None and not judged:
        lines.append("evaluation: the output is no row of scores, so nothing is said of it on those data")
    elif evaluated is not None:
        what = "accuracy" if evaluated["accuracy"] is not None else "agreement with the ANN"
        ann = "" if evaluated["ann_accuracy"] is None else f", ANN {evaluated['ann_accuracy']:.2f} %"
        lines.append(f"evaluation: {what} on {evaluated['samples']} samples{ann}, without any say in the choice")
    if result.path is not None:
        lines.append(f"{len(records)} results in {result.path}, {result.resumed} of them from before")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _cells(record: Mapping[str, Any]) -> Iterator[str]:
    point, chosen, held, evaluated = (record[name] for name in ("point", "chosen", "held_back", "evaluation"))
    yield str(point["steps"])
    yield f"auto: {chosen['neuron']}" if point["neuron"] == "auto" else chosen["neuron"]
    yield point["rule"]
    yield point["threshold"]
    right = share(held)
    yield "" if right is None else f"{right:.2f}"
    yield "not finite" if held["output_error"] is None else f"{held['output_error']:.4f}"
    yield f"{held['binary_spikes']:.3f}"
    yield f"{held['synops']:.4g}"
    yield f"{held['binary_energy_pj'] / held['ann_energy_pj']:.2f}" if held["ann_energy_pj"] else ""
    yield f"{1000 * record['seconds_per_sample']:.3g}"
    if evaluated is not None and (right := share(evaluated)) is not None:
        yield f"{right:.2f}"

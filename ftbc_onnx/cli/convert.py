"""``ftbc-onnx convert``: convert, calibrate, verify, evaluate, write."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ftbc_onnx.cli.options import (
    common,
    data_options,
    early_exit_option,
    energy_options,
    labels_option,
    method_options,
    output_options,
    scope_options,
)
from ftbc_onnx.cli.screen import print_json, progress_bars, report_console, set_up_logging
from ftbc_onnx.cli.values import labelled, preprocessing_of, refuse_without
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.page import check_libraries, check_page, write_page
from ftbc_onnx.pipeline import convert as convert_model
from ftbc_onnx.pipeline import default_output
from ftbc_onnx.report import print_conversion
from ftbc_onnx.shell import joined
from ftbc_onnx.whole import check_target


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Where to write [default: MODEL.snn_T8.onnx beside MODEL]."
)
@click.option("-T", "--steps", type=int, default=8, show_default=True, help="Number of time steps.")
@click.option(
    "--calib-data", help="Calibration data: .npz, .npy, a folder of images or of npz, or script.py[:function]."
)
@click.option("--calib-samples", type=int, default=256, show_default=True, help="Calibration samples used, at most.")
@click.option(
    "--random-data", is_flag=True, help="Calibrate on random data (a dry run; marked in the report and the file)."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random data.")
@click.option("--eval-data", help="Evaluation data with labels: accuracy of the ANN and after every step.")
@labels_option
@early_exit_option
@energy_options
@method_options
@output_options
@click.option(
    "--running-mean", is_flag=True, help="Also give the output after every step, as OUTPUT/running_mean [T, ...]."
)
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Compare the result with a NumPy run of its plan."
)
@click.option(
    "--compare/--no-compare", default=True, show_default=True, help="Evaluate the network without biases, too."
)
@click.option(
    "--counting/--no-counting",
    default=True,
    show_default=True,
    help="Count events and synaptic operations in the evaluation.",
)
@click.option(
    "--report", "page", type=click.Path(path_type=Path), help="Also write the report as an HTML page to this file."
)
@click.option("--strict", is_flag=True, help="Refuse a network with operators that are no spike arithmetic.")
@scope_options
@data_options
@common
def convert(
    *,
    model: Path,
    output: Path | None,
    calib_data: str | None,
    eval_data: str | None,
    labels: Path | None,
    threshold: str | None,
    percentile: float | None,
    label_offset: int,
    page: Path | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Convert MODEL, calibrate its temporal biases, and write a spiking network.

    \b
    Examples:
      ftbc-onnx convert resnet.onnx -T 8 --calib-data train_images/ --eval-data val.npz
      ftbc-onnx convert model.onnx -T 4 --calib-data calib.npz --rule paper --alpha 0.5
      ftbc-onnx convert model.onnx --calib-data calib.npz --eval-data test.npz --report report.html
      ftbc-onnx convert qcfs.onnx -T 8                  (a QCFS model states its own thresholds)
    """
    set_up_logging(verbose, quiet)
    preprocessing = preprocessing_of(options)
    if calib_data is not None and options["random_data"]:
        raise ConfigError(f"--random-data goes without --calib-data '{calib_data}': leave one of them out")
    config = _config_of(threshold, percentile, options)
    judged = bool(calib_data or eval_data or config.random_data)
    refuse_without(["alpha"], config.rule == "paper", f"--rule paper, not with {config.rule}")
    refuse_without(["energy_mac", "energy_ac"], config.counting, "--counting")
    refuse_without(["energy_mac", "energy_ac"], judged, "--calib-data or --eval-data: nothing is counted without")
    refuse_without(["label_offset"], eval_data is not None, "--eval-data")
    target = output or default_output(model, config.steps)
    if target.is_file() and model.exists() and target.samefile(model):
        raise ConfigError(f"--output '{target}' is the input itself: choose another name")
    check_target(target, "--output", ".onnx")
    if page is not None:
        check_libraries()
        check_page(page, "--report")
        if page.resolve() == target.resolve():
            raise ConfigError(f"--report '{page}' is the name of the converted model: choose another")
    with progress_bars(quiet or as_json) as progress:
        result = convert_model(
            model,
            calib_data,
            eval_data=labelled(eval_data, labels),
            preprocessing=preprocessing,
            config=config,
            label_offset=label_offset,
            progress=progress,
        )
    written = result.save(target)
    report = {**result.report, "command": joined(["ftbc-onnx", *sys.argv[1:]]), "output": str(written)}
    if page is not None:
        write_page(report, page)
    if as_json:
        print_json(report)
    else:
        console = report_console()
        print_conversion(console, report, verbose)
        for path in (written, page):
            if path is not None:
                size = f"{path.stat().st_size / 1e6:.2f} MB"
                console.print(f"wrote {path} ({size})", highlight=False, soft_wrap=True, markup=False)


def _config_of(threshold: str | None, percentile: float | None, options: dict[str, Any]) -> ConvertConfig:
    """The options of a conversion; one that goes with another is refused without it."""
    if percentile is not None:
        if threshold not in (None, "percentile"):
            raise ConfigError(f"--percentile goes with --threshold percentile, not with {threshold}")
        options["percentile"] = percentile
    return ConvertConfig.from_options({"threshold": threshold, **options})

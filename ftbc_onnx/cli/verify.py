"""``ftbc-onnx verify``: whether a converted file computes what its plan says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ftbc_onnx.cli.options import common, preprocessing_options
from ftbc_onnx.cli.screen import print_json, report_console, set_up_logging
from ftbc_onnx.cli.values import preprocessing_of
from ftbc_onnx.config import check_positive
from ftbc_onnx.report import print_verification
from ftbc_onnx.verify import SAMPLES, verify_file


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--ann", type=click.Path(path_type=Path), required=True, help="The ANN it was made from.")
@click.option("--data", help="Samples to run: .npz, .npy, a folder, or script.py[:function] [default: random numbers].")
@click.option(
    "--samples",
    type=int,
    default=SAMPLES,
    show_default=True,
    help="Samples compared (or a fixed batch).",
)
@click.option(
    "--original",
    type=click.Path(path_type=Path),
    help="The file as convert wrote it, if MODEL is what another tool has made of it: outputs are compared.",
)
@preprocessing_options
@common
def verify(
    *,
    model: Path,
    ann: Path,
    data: str | None,
    samples: int,
    original: Path | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare a converted MODEL with a NumPy run of its plan, on the CPU (exit code 7 if it differs).

    \b
    Examples:
      ftbc-onnx verify model.snn_T8.onnx --ann model.onnx
      ftbc-onnx verify optimised.onnx --original model.snn_T8.onnx --ann model.onnx --data calib.npz --samples 16
    """
    set_up_logging(verbose, quiet)
    check_positive("--samples", samples)
    preprocessing = preprocessing_of(options)
    result = verify_file(model, ann, data, original=original, preprocessing=preprocessing, samples=samples)
    if as_json:
        print_json(result.as_dict())
    else:
        print_verification(report_console(), result.as_dict())

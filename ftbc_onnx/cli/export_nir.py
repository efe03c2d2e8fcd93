"""``ftbc-onnx export-nir``: a converted file as a NIR graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ftbc_onnx.cli.options import common, converted_data_options
from ftbc_onnx.cli.screen import print_json, progress_bars, report_console, set_up_logging
from ftbc_onnx.cli.values import preprocessing_of, refuse_without
from ftbc_onnx.errors import ModelError
from ftbc_onnx.nir.export import export_nir as export
from ftbc_onnx.report import print_nir


@click.command("export-nir")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write [default: MODEL.nir].")
@click.option(
    "--ann",
    type=click.Path(path_type=Path),
    help="The ANN it was made from [default: the file of its name beside MODEL].",
)
@click.option("--lossy", is_flag=True, help="Write what comes nearest where NIR cannot say something.")
@click.option(
    "--soft-reset",
    is_flag=True,
    help="Write neurons as loops of I, Threshold and Scale, which say the soft reset; few runtimes import these.",
)
@click.option("--eval-data", help="Data to run the NIR file on, beside MODEL: accuracy, equal decisions, output error.")
@click.option("--samples", type=int, help="Samples used, at most.")
@converted_data_options
@common
def export_nir(*, model: Path, output: Path | None, verbose: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Write a converted MODEL as a graph of NIR, the Neuromorphic Intermediate Representation.

    What NIR cannot say is listed, and without --lossy nothing is written then (exit code 3).

    \b
    Examples:
      ftbc-onnx export-nir digits_snn.onnx --ann digits.onnx --soft-reset
      ftbc-onnx export-nir digits_snn.onnx --ann digits.onnx --lossy --eval-data test.npz
    """
    set_up_logging(verbose, quiet)
    refuse_without(["label_offset", "samples"], options["eval_data"] is not None, "--eval-data")
    preprocessing = preprocessing_of(options)
    with progress_bars(quiet or as_json) as progress:
        report = export(model, output, preprocessing=preprocessing, progress=progress, **options)
    if as_json:
        print_json(report)
    else:
        print_nir(report_console(), report)
    if report["output"] is None:
        raise ModelError(_refusal(report))


def _refusal(report: dict[str, Any]) -> str:
    """Why nothing was written, and what to do."""
    hopeless = [loss for loss in report["losses"] if loss["nearest"] is None]
    what = ", ".join(dict.fromkeys(loss["what"] for loss in hopeless or report["losses"]))
    if hopeless:
        return f"nothing was written: NIR has nothing that comes near {what} (listed with the reasons)"
    loop = any(loss["what"] == "soft reset" for loss in report["losses"])
    return (
        f"nothing was written: NIR cannot say {what} (listed with the reasons); use --lossy for what comes nearest"
        + (", or --soft-reset, which says soft reset and initial membrane by a loop of primitives" if loop else "")
    )

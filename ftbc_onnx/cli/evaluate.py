"""``ftbc-onnx evaluate``: accuracy of a converted file after every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ftbc_onnx.cli.options import common, converted_data_options, early_exit_option, energy_options, labels_option
from ftbc_onnx.cli.screen import print_json, progress_bars, report_console, set_up_logging
from ftbc_onnx.cli.values import labelled, preprocessing_of
from ftbc_onnx.energy import Constants, energy_of
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.report import print_curve, print_energy
from ftbc_onnx.summary import doubts, unlike


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--eval-data", required=True, help="Evaluation data with labels: .npz, .npy, a folder, or script.py[:function]."
)
@click.option(
    "--ann", type=click.Path(path_type=Path), help="The ANN it was made from: its accuracy, agreement and gaps."
)
@labels_option
@click.option("--samples", type=int, help="Samples used, at most.")
@early_exit_option
@energy_options
@converted_data_options
@common
def evaluate(
    *,
    model: Path,
    eval_data: str,
    labels: Path | None,
    ann: Path | None,
    samples: int | None,
    early_exit: float | None,
    energy_mac: float,
    energy_ac: float,
    batch_size: int | None,
    device: str,
    label_offset: int | None,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Accuracy of a converted MODEL after every step. Data are prepared as in its calibration, but for options given.

    \b
    Examples:
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data test.npz
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data val_images/ --ann model.onnx
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data test.npz --early-exit 4
    """
    set_up_logging(verbose, quiet)
    constants = Constants(energy_mac, energy_ac)
    with progress_bars(quiet or as_json) as progress:
        result, used = evaluate_file(
            model,
            labelled(eval_data, labels),
            ann=ann,
            preprocessing=preprocessing_of(options),
            batch_size=batch_size,
            samples=samples,
            device=device,
            label_offset=label_offset,
            early_exit=early_exit,
            progress=progress,
        )
    energy = None if result.counts is None else energy_of(result.counts, constants).as_dict()
    evaluation = result.as_dict()
    sentences = [*doubts(result.ann_accuracy), *unlike(evaluation)]
    if as_json:
        print_json({**evaluation, "energy": energy, "device": used, "summary": sentences})
    else:
        console = report_console()
        console.print(f"device {used}", highlight=False)
        print_curve(console, evaluation)
        print_energy(console, energy)
        if energy is None:
            sentences.insert(0, "events, SynOps and energy are not counted in the folded form: convert in another form")
        for sentence in sentences:
            console.print(sentence, highlight=False, soft_wrap=True)

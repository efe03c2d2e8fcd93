"""``ftbc-onnx diagnose``: where a converted network parts from its ANN, and what to try."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ftbc_onnx.batching import static_batch
from ftbc_onnx.cli.options import common, preprocessing_options, run_options
from ftbc_onnx.cli.screen import log, print_json, progress_bars, report_console, set_up_logging
from ftbc_onnx.cli.values import preprocessing_of
from ftbc_onnx.diagnosis import READ, SAMPLES, diagnose_file
from ftbc_onnx.errors import ConfigError, FtbcError
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.remedies import remedies, to_try, verdict
from ftbc_onnx.report_diagnosis import print_diagnosis
from ftbc_onnx.selection import Trial
from ftbc_onnx.spiking_file import read_spiking
from ftbc_onnx.trials import MOST, split_off, try_changes, with_neuron


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--ann", type=click.Path(path_type=Path), required=True, help="The ANN it was made from.")
@click.option("--data", required=True, help="Data to look at: .npz, .npy, a folder, or script.py[:function].")
@click.option("--samples", type=int, default=SAMPLES, show_default=True, help="Samples used, at most.")
@click.option(
    "--try", "tries", is_flag=True, help=f"Convert again with what is suggested ({MOST} at most); takes --calib-data."
)
@click.option("--calib-data", help="Calibration data for --try; a part of them is held back and judges.")
@preprocessing_options
@run_options
@common
def diagnose(
    *,
    model: Path,
    ann: Path,
    data: str,
    samples: int,
    tries: bool,
    calib_data: str | None,
    batch_size: int | None,
    device: str,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say where a converted MODEL parts from its ANN, site by site, and what to try.

    \b
    Examples:
      ftbc-onnx diagnose model.snn_T8.onnx --ann model.onnx --data calib.npz
      ftbc-onnx diagnose model.snn_T8.onnx --ann model.onnx --data calib.npz --try --calib-data calib.npz
      ftbc-onnx diagnose model.snn_T8.onnx --ann model.onnx --data images/ -v     (every site and step)
    """
    set_up_logging(verbose, quiet)
    if tries and calib_data is None:
        raise ConfigError("--try converts again, for which calibration data are needed: add --calib-data")
    if calib_data is not None and not tries:
        raise ConfigError("--calib-data goes with --try, which converts again")
    preprocessing = preprocessing_of(options)
    file = read_spiking(model)
    calibration = None
    if calib_data is not None:  # known to fit before the diagnosis begins
        specs, most = input_specs(file.original(ann).model), READ * file.options.calib_samples
        calibration = file.open(calib_data, preprocessing, "calibration", specs, most)
        split_off(calibration, static_batch(specs) or 1)
    with progress_bars(quiet or as_json) as progress:
        diagnosis = diagnose_file(
            model,
            ann,
            data,
            preprocessing=preprocessing,
            batch_size=batch_size,
            samples=samples,
            device=device,
            progress=lambda done: progress("diagnosis", done, max(done, samples)),
        )
        converted = with_neuron(file.options, file.plan)
        found = remedies(diagnosis, converted, binary=file.options.binary)
        trials: tuple[Trial, ...] = ()
        failed: BaseException | None = None
        wanted = to_try(found, MOST)
        if tries and not wanted:
            log.warning("--try: there is nothing to try, since nothing is suggested that a conversion could change")
        elif tries:
            try:
                trials = try_changes(wanted, replace(converted, device=device), ann, calibration, progress=progress)
            except (FtbcError, KeyboardInterrupt) as error:  # the diagnosis is there, and took as long
                failed = error
    if as_json:
        report = {
            **diagnosis.as_dict(),
            "verdict": verdict(diagnosis),
            "remedies": [remedy.as_dict() for remedy in found],
            "trials": [asdict(trial) for trial in trials],
        }
        print_json(report)
    else:
        print_diagnosis(report_console(), diagnosis, found, trials, verbose)
    if failed is not None:
        raise failed

"""The command line: ``convert``, ``inspect``, ``evaluate``. Data go to stdout, everything else to stderr.

Exit codes are those of `ftbc_onnx.errors`: 0 success, 2 options, 3 model, 4 data, 5 calibration, 6 device,
7 verification, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ftbc_onnx.cli_options import (
    common,
    data_options,
    early_exit_option,
    method_options,
    output_options,
    scope_options,
)
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import ConfigError, FtbcError, ModelError
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.images import Preprocessing
from ftbc_onnx.inspection import inspect_model
from ftbc_onnx.pipeline import convert as convert_model
from ftbc_onnx.pipeline import default_output
from ftbc_onnx.report import print_conversion, print_curve, print_inspection
from ftbc_onnx.runtime import conflicting_packages

log = logging.getLogger("ftbc_onnx")


def main() -> None:
    """Entry point of ``ftbc-onnx``: one line and an exit code for every error that is not a bug."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        _fail("interrupted: nothing was written", 130)
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # of click 8.2 and newer
            click.echo(error.format_message(), err=True)
            sys.exit(ConfigError.exit_code)
        _fail(f"{error.format_message()} (see ftbc-onnx --help)", ConfigError.exit_code)
    except FtbcError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted: nothing was written", 130)
    except BrokenPipeError:
        sys.exit(0)


def _fail(message: str, code: int) -> None:
    click.echo(f"ftbc-onnx: error: {message}", err=True)
    sys.exit(code)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ftbc-onnx", prog_name="ftbc-onnx")
def cli() -> None:
    """Convert a trained ANN in ONNX into a spiking network in ONNX that plain onnxruntime runs.

    \b
    Examples:
      ftbc-onnx inspect model.onnx
      ftbc-onnx convert model.onnx --calib-data images/ --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data test.npz
    """


@cli.command()
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
@early_exit_option
@method_options
@output_options
@click.option(
    "--running-mean", is_flag=True, help="Also give the output after every step, as OUTPUT/running_mean [T, ...]."
)
@click.option(
    "--verify/--no-verify", default=True, show_default=True, help="Compare the result with a NumPy run of its plan."
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
    threshold: str | None,
    percentile: float | None,
    label_offset: int,
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
      ftbc-onnx convert qcfs.onnx -T 8                  (a QCFS model states its own thresholds)
    """
    _set_up_logging(verbose, quiet)
    preprocessing = _preprocessing(options)
    if threshold is None:
        threshold = "auto" if percentile is None else "percentile"
    if percentile is not None:
        if threshold != "percentile":
            raise ConfigError(f"--percentile goes with --threshold percentile, not with {threshold}")
        options["percentile"] = percentile
    options["readout"] = options["readout"] or ("mean" if options["readout_from"] is None else "delayed")
    config = ConvertConfig.from_options({"threshold": threshold, **options})
    target = output or default_output(model, config.steps)
    _check_target(target, model)
    with _progress(quiet or as_json) as progress:
        result = convert_model(
            model,
            calib_data,
            eval_data=eval_data,
            preprocessing=preprocessing,
            config=config,
            label_offset=label_offset,
            progress=progress,
        )
    written = result.save(target)
    if as_json:
        click.echo(json.dumps({**result.report, "output": str(written)}, indent=1))
    else:
        console = Console(emoji=False)
        print_conversion(console, result.report, verbose)
        console.print(
            f"wrote {written} ({written.stat().st_size / 1e6:.2f} MB)", highlight=False, soft_wrap=True, markup=False
        )


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-T", "--steps", type=int, default=8, show_default=True, help="Number of time steps, for the node count.")
@scope_options
@common
def inspect(*, model: Path, verbose: bool, quiet: bool, as_json: bool, **options: Any) -> None:
    """Show what a conversion of MODEL would do: classes of nodes, sites, refusals (exit code 3 if there are any).

    \b
    Examples:
      ftbc-onnx inspect model.onnx
      ftbc-onnx inspect model.onnx -v          (every node)
      ftbc-onnx inspect model.onnx --json
    """
    _set_up_logging(verbose, quiet)
    report = inspect_model(model, ConvertConfig(**options))
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        print_inspection(Console(emoji=False), report, verbose)
    if report["refusals"]:
        sys.exit(ModelError.exit_code)


@cli.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--eval-data", required=True, help="Evaluation data with labels: .npz, .npy, a folder, or script.py[:function]."
)
@click.option(
    "--ann", type=click.Path(path_type=Path), help="The ANN it was made from: its accuracy, agreement and gaps."
)
@click.option("--samples", type=int, help="Samples used, at most.")
@early_exit_option
@data_options
@common
def evaluate(
    *,
    model: Path,
    eval_data: str,
    ann: Path | None,
    samples: int | None,
    early_exit: float | None,
    batch_size: int | None,
    device: str,
    label_offset: int,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Accuracy of a converted MODEL after every step. Preprocessing is what it was calibrated with, unless given.

    \b
    Examples:
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data test.npz
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data val_images/ --ann model.onnx
      ftbc-onnx evaluate model.snn_T8.onnx --eval-data test.npz --early-exit 4
    """
    _set_up_logging(verbose, quiet)
    with _progress(quiet or as_json) as progress:
        result, used = evaluate_file(
            model,
            eval_data,
            ann=ann,
            preprocessing=_preprocessing(options),
            batch_size=batch_size,
            samples=samples,
            device=device,
            label_offset=label_offset,
            early_exit=early_exit,
            progress=lambda done: progress("evaluation", done, max(done, samples or done)),
        )
    if as_json:
        click.echo(json.dumps({**result.as_dict(), "device": used}, indent=1))
    else:
        console = Console(emoji=False)
        console.print(f"device {used}", highlight=False)
        print_curve(console, result.as_dict())


def _check_target(target: Path, model: Path) -> None:
    """Refuse a target that could not be written, before any long work."""
    if target.is_dir():
        raise ConfigError(f"--output '{target}' is a folder: give the name of a file")
    if target.exists() and model.exists() and target.samefile(model):
        raise ConfigError(f"--output '{target}' is the input itself: choose another name")
    if target.exists() and target.suffix.lower() != ".onnx":  # the data, or the input's weights
        raise ConfigError(f"--output '{target}' exists and is no .onnx file: choose another name")
    if not target.parent.is_dir():
        raise ConfigError(f"the folder of --output '{target}' does not exist: create it first")


def _preprocessing(options: dict[str, Any]) -> Preprocessing | None:
    """Take the options of preprocessing out of `options`; None if none was given."""
    given = {name: options.pop(name) for name in ("mean", "std", "scale", "resize", "crop", "layout", "color")}
    if all(value is None for value in given.values()):
        return None
    return Preprocessing(
        resize=_size("--resize", given["resize"]),
        crop=_size("--crop", given["crop"]),
        scale=None if given["scale"] is None else _number("--scale", given["scale"]),
        mean=_numbers("--mean", given["mean"]),
        std=_numbers("--std", given["std"]),
        layout=given["layout"],
        color=given["color"],
    )


def _number(option: str, text: str) -> float:
    try:
        above, _, below = text.partition("/")
        return float(above) / (float(below) if below else 1.0)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"{option} '{text}' is no number (1/255 and 0.0039 are)") from None


def _numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    return None if text is None else tuple(_number(option, part.strip()) for part in text.split(","))


def _size(option: str, text: str | None) -> int | tuple[int, int] | None:
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) == 1:
        return sides[0]
    if len(sides) == 2:
        return sides[0], sides[1]
    raise ConfigError(f"{option} '{text}' is no size: give a side (224) or HEIGHTxWIDTH (224x192)")


def _set_up_logging(verbose: bool, quiet: bool) -> None:
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    log.handlers[:] = [handler]
    log.setLevel(level)
    warning = conflicting_packages()
    if warning:
        log.warning(warning)


@contextmanager
def _progress(off: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, if it is a terminal; a function to call with (stage, done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=off or not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance

"""The options of the commands, in groups: each a decorator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from ftbc_onnx.config import BUDGETS, FORMS, FUSE, READOUTS, RULES, SMOOTH, THRESHOLDS
from ftbc_onnx.energy import AC, MAC
from ftbc_onnx.neurons import CODINGS, NEURONS, SCHEDULES
from ftbc_onnx.preprocessing import Resample

F = TypeVar("F", bound=Callable[..., Any])

_NUMBERS = "numbers separated by commas, one per channel"


def _all(*options: Callable[[F], F]) -> Callable[[F], F]:
    """One decorator for several options, in the order in which --help lists them."""

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def common(command: F) -> F:
    """How much is said, and how."""
    return _all(
        click.option("--json", "as_json", is_flag=True, help="The whole report as JSON on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Errors only on stderr, no progress bars."),
        click.option("-v", "--verbose", is_flag=True, help="More detail."),
    )(command)


def scope_options(command: F) -> F:
    """Which activations are converted."""
    return _all(
        click.option(
            "--include",
            multiple=True,
            help="Convert only what matches: an operator type, or a regex on node names.",
        ),
        click.option("--exclude", multiple=True, help="Leave what matches analog (goes before --include)."),
        click.option("--until", help="Name of a node: behind it the network stays analog, on the mean."),
        click.option(
            "--smooth",
            type=click.Choice(SMOOTH),
            default="spiking",
            show_default=True,
            help="Behind functions that are no rectifiers: neurons of both signs, or their values as they are.",
        ),
    )(command)


def preprocessing_options(command: F) -> F:
    """How data are prepared."""
    return _all(
        click.option(
            "--preprocessor",
            type=click.Path(path_type=Path),
            help="Images: Hugging Face's preprocessor_config.json, or timm's config.json, or their folder; the options "
            "below go before what it says.",
        ),
        click.option("--mean", help=f"Subtracted per channel: {_NUMBERS}."),
        click.option("--std", help=f"Divided by per channel, after --mean: {_NUMBERS}."),
        click.option("--scale", help="Factor on raw values, before --mean (1/255 for images unless given)."),
        click.option("--resize", help="Images: shorter side, or HEIGHTxWIDTH."),
        click.option("--crop", help="Images: central crop, side or HEIGHTxWIDTH, after --resize."),
        click.option(
            "--resample", type=click.Choice(get_args(Resample)), help="Images: filter of --resize [default: bilinear]."
        ),
        click.option(
            "--layout", type=click.Choice(["NCHW", "NHWC"]), help="Layout of the arrays given, if not the model's."
        ),
        click.option("--color", type=click.Choice(["rgb", "bgr", "gray"]), help="Images: order of the channels."),
    )(command)


def run_options(command: F) -> F:
    """How much runs at a time, and where."""
    return _all(
        click.option("--batch-size", type=int, help="Samples per run [default: 128 at most]."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    )(command)


def data_options(command: F) -> F:
    """How data are read and fed, and where things run."""
    text = "Added to every label (1: class 0 is background)."
    return _data_options(click.option("--label-offset", type=int, default=0, show_default=True, help=text))(command)


def converted_data_options(command: F) -> F:
    """The same for a network that remembers how it was calibrated."""
    text = "Added to every label [default: what was added in the conversion]."
    return _data_options(click.option("--label-offset", type=int, help=text))(command)


def _data_options(label_offset: Callable[[F], F]) -> Callable[[F], F]:
    return _all(preprocessing_options, label_offset, run_options)


def output_options(command: F) -> F:
    """How time is laid out, and how the output is read from the steps."""
    return _all(
        click.option(
            "--form",
            type=click.Choice(FORMS),
            default="auto",
            show_default=True,
            help="A copy of the network per time step, the same with thresholds and biases in the layers (fused), time "
            "in the batch, one Loop over time, or one step whose state the caller keeps; auto: what runs fastest on "
            "the device, a loop if there are many nodes.",
        ),
        click.option(
            "--fuse",
            type=click.Choice(FUSE),
            multiple=True,
            default=FUSE,
            show_default=True,
            help="What the fused form puts into the layers (repeatable).",
        ),
        click.option("--opset", type=int, help="ONNX opset to write, from 13 on [default: the model's own]."),
        click.option("--float16", is_flag=True, help="Layers with weights in float16; neurons stay in float32."),
        click.option(
            "--steps-input",
            is_flag=True,
            help="With --form loop: the number of steps is an input, ftbc/steps, T where it is not fed.",
        ),
        click.option(
            "--readout",
            type=click.Choice(READOUTS),
            help="The output is the mean over all steps, or over those from --readout-from on [default: mean].",
        ),
        click.option("--readout-from", type=int, help="Steps left out at the beginning, for --readout delayed."),
    )(command)


def labels_option(command: F) -> F:
    """Where the labels are, if not in the evaluation data."""
    return click.option(
        "--labels",
        type=click.Path(path_type=Path),
        help="Labels of --eval-data: .npy, .npz, or for images .csv (columns file,label; other files are left out).",
    )(command)


def early_exit_option(command: F) -> F:
    """Where the evaluation stops samples early."""
    return click.option(
        "--early-exit",
        type=float,
        help="Margin M above which a sample stops early (try 2 to 8): accuracy and average steps are reported.",
    )(command)


def energy_options(command: F) -> F:
    """What operations cost."""
    return _all(
        click.option(
            "--energy-mac",
            type=float,
            default=MAC,
            show_default=True,
            help="pJ of a multiplication with an addition, for the energy in the report (45 nm).",
        ),
        click.option("--energy-ac", type=float, default=AC, show_default=True, help="pJ of an addition."),
    )(command)


def method_options(command: F) -> F:
    """Neurons, thresholds and biases."""
    return _all(
        click.option(
            "--threshold",
            type=click.Choice(THRESHOLDS),
            help="How theta is found where the model does not state it [default: auto].",
        ),
        click.option("--percentile", type=float, help="For --threshold percentile [default: 99.9]."),
        click.option(
            "--per-channel/--per-tensor",
            default=True,
            show_default=True,
            help="One theta per channel, or per tensor.",
        ),
        click.option(
            "--neuron",
            type=click.Choice(["auto", *NEURONS]),
            default="auto",
            show_default=True,
            help="Neuron; auto: chosen for the budget, on calibration samples held back.",
        ),
        click.option("--levels", type=int, help="Levels per step [default: 4, of binary neurons 1]; of auto: at most."),
        click.option(
            "--coding",
            type=click.Choice(CODINGS),
            default="rate",
            show_default=True,
            help="What the spikes of a named neuron say.",
        ),
        click.option(
            "--budget",
            type=click.Choice(BUDGETS),
            default="accuracy",
            show_default=True,
            help="What --neuron auto looks for: few levels, few events, or the best with --levels.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(SCHEDULES),
            default="asynchronous",
            show_default=True,
            help="Sites fire at every step, or layer by layer: a quantised network.",
        ),
        click.option("--binary", is_flag=True, help="--neuron auto keeps to spikes of 0 and theta."),
        click.option(
            "--rule", type=click.Choice(RULES), default="solve", show_default=True, help="How biases are found."
        ),
        click.option("--alpha", type=float, default=0.4, show_default=True, help="Step of --rule paper."),
        click.option(
            "--gate/--no-gate",
            default=None,
            help="Keep a site's biases only where they hold on samples held back [default: with solve].",
        ),
        click.option(
            "--gain/--no-gain",
            default=None,
            help="Look for a factor per channel on the spikes [default: with solve, one level and samples held back].",
        ),
        click.option(
            "--refit", is_flag=True, help="Fit the layers to the spikes that they read: for few levels and few steps."
        ),
        click.option("--compress-bias", is_flag=True, help="Store four vectors per channel instead of T biases."),
        click.option(
            "--shrink",
            type=float,
            default=0.0,
            show_default=True,
            help="Put biases below so many standard errors to 0 (2, for example); calibrates in eight batches.",
        ),
    )(command)

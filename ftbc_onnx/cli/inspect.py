"""``ftbc-onnx inspect``: what a conversion would do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from ftbc_onnx.cli.options import common, scope_options
from ftbc_onnx.cli.screen import print_json, report_console, set_up_logging
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import ModelError
from ftbc_onnx.inspection import inspect_model
from ftbc_onnx.report import print_inspection


@click.command()
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
    set_up_logging(verbose, quiet)
    report = inspect_model(model, ConvertConfig(**options))
    if as_json:
        print_json(report)
    else:
        print_inspection(report_console(), report, verbose)
    if report["refusals"] or report["nothing_to_convert"] is not None:
        sys.exit(ModelError.exit_code)

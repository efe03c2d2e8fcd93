"""``ftbc-onnx report``: what a conversion reported, as a page, as pictures, or in the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from ftbc_onnx.cli.screen import report_console
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.page import check_page, write_page, write_pictures
from ftbc_onnx.report import print_conversion

NEEDED = {
    "a report": ("source", "steps", "summary", "sites", "evaluation", "evaluation_without_bias", "calibration"),
    "a site": ("name", "channels", "threshold", "dead_channels", "activation", "signed"),
    "a measured site": ("rate", "rate_range", "silent_channels", "gap_in_theta"),
}
"""Names without which a record is of another kind, or of another version."""


@click.command()
@click.argument("report", type=click.File("rb"))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the page to this .html file.")
@click.option("--png", type=click.Path(path_type=Path, file_okay=False), help="Write the figures to this folder.")
@click.option("-v", "--verbose", is_flag=True, help="More detail in the terminal.")
def report(*, report: BinaryIO, output: Path | None, png: Path | None, verbose: bool) -> None:
    """Show REPORT, what `convert --json` printed (- reads it from stdin): tables here, or a page and pictures.

    \b
    Examples:
      ftbc-onnx convert model.onnx --calib-data calib.npz --eval-data test.npz --json > report.json
      ftbc-onnx report report.json
      ftbc-onnx report report.json -o report.html --png figures/
    """
    if output is not None:
        check_page(output, "--output")
    with _of_this_version(report.name):
        read = read_report(report)
        if output is not None:
            write_page(read, output)
            click.echo(f"wrote {output}")
        if png is not None:
            for path in write_pictures(read, png):
                click.echo(f"wrote {path}")
        if output is None and png is None:
            print_conversion(report_console(), read, verbose)


@contextmanager
def _of_this_version(name: str) -> Iterator[None]:
    """One line for a report that lacks something, or has it in another shape than this version writes."""
    try:
        yield
    except UnicodeError:  # of a terminal, not of the report
        raise
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"'{name}' is no report of a conversion by this version ({type(error).__name__}: {error}): "
            "give what ftbc-onnx convert --json prints"
        ) from error


def read_report(file: BinaryIO) -> dict[str, Any]:
    """The report in a JSON file, in UTF-8 or as PowerShell writes what is redirected (UTF-16, or with a mark in front).

    Raises:
        ConfigError: it is something else.
    """
    hint = "give what ftbc-onnx convert --json printed"
    try:
        read = json.load(file)
    except ValueError as error:  # no JSON, or not even text
        raise ConfigError(f"'{file.name}' is no JSON: {hint}") from error
    _check("a report", read, file.name)
    for site in read["sites"]:
        _check("a site", site, file.name)
        for key in ("evaluation", "evaluation_without_bias"):
            if read[key] is not None:
                _check("a measured site", read[key]["sites"].get(site["name"], {}), file.name)
    return dict(read)


def _check(kind: str, record: Any, name: str) -> None:
    missing = [key for key in NEEDED[kind] if not isinstance(record, Mapping) or key not in record]
    if missing:
        raise ConfigError(
            f"'{name}' is no report of a conversion by this version ({kind} without '{missing[0]}'): "
            "give what ftbc-onnx convert --json prints"
        )

"""The command line: one module per command. Data go to stdout, everything else to stderr.

Exit codes are those of `ftbc_onnx.errors`: 0 success, 2 options, 3 model, 4 data, 5 calibration, 6 device,
7 verification, 130 interrupted.
"""

from __future__ import annotations

import errno
import sys

import click

from ftbc_onnx.cli.convert import convert
from ftbc_onnx.cli.diagnose import diagnose
from ftbc_onnx.cli.evaluate import evaluate
from ftbc_onnx.cli.export_nir import export_nir
from ftbc_onnx.cli.inspect import inspect
from ftbc_onnx.cli.report import report
from ftbc_onnx.cli.sweep import sweep
from ftbc_onnx.cli.verify import verify
from ftbc_onnx.errors import ConfigError, FtbcError, InterruptError, ModelError

INTERRUPTED = "interrupted: nothing is half-written, and nothing is kept to go on with: run the same command again"


def main() -> None:
    """Entry point of ``ftbc-onnx``: one line and an exit code for every error that is not a bug."""
    if hasattr(sys.stdout, "reconfigure"):  # a name that the terminal, or a file on Windows, has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        cli.main(standalone_mode=False, windows_expand_args=False)  # a pattern of --exclude names no files
    except click.exceptions.Abort:
        _fail(INTERRUPTED, InterruptError.exit_code)
    except click.ClickException as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # of click 8.2 and newer
            click.echo(error.format_message(), err=True)
            sys.exit(ConfigError.exit_code)
        _fail(f"{error.format_message()} (see ftbc-onnx --help)", ConfigError.exit_code)
    except FtbcError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail(INTERRUPTED, InterruptError.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        if sys.platform == "win32" and error.errno == errno.EINVAL and error.filename is None:
            sys.exit(0)  # how Windows says that the pipe is closed
        _fail(f"{error.strerror or error}" + (f": '{error.filename}'" if error.filename else ""), ModelError.exit_code)
    except MemoryError as error:
        _fail(f"out of memory: {error}", ConfigError.exit_code)


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
      ftbc-onnx report report.json -o report.html
    """


for command in (convert, inspect, evaluate, verify, diagnose, report, sweep, export_nir):
    cli.add_command(command)

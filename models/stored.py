"""Files of these scripts: written in one go, to a folder that is looked at before the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click


def check_target(path: Path) -> None:
    """Refuse a file that could not be written, before any long work.

    Raises:
        click.UsageError: its folder does not exist or takes no files, or no file can be called so.
    """
    if not path.parent.is_dir():
        raise click.UsageError(f"the folder of -o '{path}' does not exist: create it first")
    if not os.access(path.parent, os.W_OK):
        raise click.UsageError(f"the folder of -o '{path}' takes no files: choose another")
    try:
        _beside(path).unlink(missing_ok=True)
    except OSError as error:
        raise click.UsageError(f"-o '{path}' cannot be written: {error.strerror}") from None


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is to stand at `path`: a file beside it, which then takes its name.

    Whatever is raised, Ctrl-C too, the file beside it is gone and `path` as it was.

    Raises:
        click.ClickException: the disk is full, for example.
    """
    half = _beside(path)
    try:
        yield half
        half.replace(path)
    except OSError as error:
        raise click.ClickException(f"'{path}' cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # that it cannot be there either
            half.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".part")

"""Files of these scripts: read without running what is in them, and written whole or not at all."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from torch.serialization import safe_globals


def _scalar_of(module: str) -> Callable[..., Any]:
    """What makes a number of NumPy, under the name that it has in files of NumPy 1 or 2."""

    def scalar(*arguments: Any) -> Any:
        return np.float64(0).__reduce__()[0](*arguments)

    scalar.__module__, scalar.__qualname__ = module, "scalar"
    return scalar


SAFE = [
    *(argparse.Namespace, np.dtype, _scalar_of("numpy.core.multiarray"), _scalar_of("numpy._core.multiarray")),
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
]
"""What a file may hold beside tensors and plain values: options of argparse, numbers of NumPy. None of it runs code."""


def load(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU.

    Raises:
        ValueError: the file is none of that, is damaged, or holds something that would have to be run.
    """
    try:
        with safe_globals(SAFE):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ValueError(f"'{path}' cannot be read: {error.strerror}") from None
    except Exception as error:  # of a damaged file, or of one of another kind, it may be any
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise ValueError(f"'{path}' holds a {found[1]}, which is not read: save net.state_dict()") from None
        raise ValueError(f"'{path}' is damaged, or not what torch.save writes: name another file") from None


def load_trained(path: Path) -> dict[str, Any]:
    """A checkpoint of `train.py`.

    Raises:
        ValueError: the file is none.
    """
    state = load(path)
    if not is_trained(state):
        raise ValueError(f"'{path}' is no checkpoint of models/train.py: see models/checkpoints.py")
    check_finite(path, state["weights"])
    return state


def is_trained(state: Any) -> bool:
    """Whether this is a checkpoint of `train.py`."""
    return isinstance(state, dict) and all(isinstance(state.get(key), dict) for key in ("settings", "weights"))


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError where a tensor holds something that is no number."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not torch.isfinite(tensor).all():
            raise ValueError(f"'{path}': '{name}' is not finite: take a checkpoint from before training diverged")


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

"""Data from a script: ``script.py[:function]``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ftbc_onnx.errors import DataError

_NAME = "ftbc_onnx_script"
"""What a data script is called as a module, while it runs."""


def script_of(what: Any) -> tuple[Path, str] | None:
    """File and function when `what` names an existing .py file, with or without `:function`."""
    text = os.fspath(what) if isinstance(what, (str, os.PathLike)) else ""
    file, _, function = text.rpartition(":")
    for name, wanted in ((text, "data"), (file, function)):
        if name.endswith(".py") and Path(name).is_file():
            return Path(name), wanted
    return None


def call(file: Path, function: str, where: str) -> Any:
    """What `function` of the script `file` returns; DataError when there is no such function."""
    module = ModuleType(_NAME)
    module.__file__ = str(file)
    sys.modules[_NAME] = module
    exec(compile(file.read_bytes(), str(file), "exec"), module.__dict__)  # leaves no __pycache__ beside it
    made = vars(module).get(function)
    if not callable(made):
        raise DataError(f"{where}: no function {function!r}: define it, or name another as {file.name}:NAME")
    return made()


@contextmanager
def running(file: Path) -> Iterator[None]:
    """While a script and its generators run: its folder can be imported from, and it is a module itself."""
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.modules.pop(_NAME, None)

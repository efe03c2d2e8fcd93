"""Files written whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ftbc_onnx.errors import ConfigError


def check_target(target: Path, option: str, suffix: str, *others: str) -> None:
    """Refuse a file that could not be written, before any long work.

    Args:
        target: where to write.
        option: that it was given with, for the message.
        suffix: what such files end with; another kind of file is not replaced.
        others: what they may end with, too.

    Raises:
        ConfigError: it is a folder, stands in no folder, or would replace something of another kind.
    """
    if target.is_dir():
        raise ConfigError(f"{option} '{target}' is a folder: give the name of a file")
    if target.exists() and target.suffix.lower() not in (suffix, *others):
        raise ConfigError(f"{option} '{target}' exists and is no {suffix} file: choose another name")
    if not target.parent.is_dir():
        raise ConfigError(f"the folder of {option} '{target}' does not exist: create it first")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is to stand at `path`: in a temporary folder beside it, from which it is then renamed.

    Files beside it in that folder go first. Whatever is raised, Ctrl-C too, the folder is gone and `path` as it was.
    The folder is none of `tempfile`, whose folders are private: on Windows a file keeps that when it is renamed.
    """
    folder = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        partial = folder / path.name
        yield partial
        for part in sorted(folder.iterdir(), key=lambda p: p == partial):
            os.replace(part, path.with_name(part.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)

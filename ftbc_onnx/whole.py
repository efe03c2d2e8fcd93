"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write what is to stand at `path`: in a temporary folder beside it, from which it is then renamed.

    Files beside it in that folder go first. Whatever is raised, Ctrl-C too, the folder is gone and `path` as it was.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        partial = Path(folder) / path.name
        yield partial
        for part in sorted(Path(folder).iterdir(), key=lambda p: p == partial):
            os.replace(part, path.with_name(part.name))

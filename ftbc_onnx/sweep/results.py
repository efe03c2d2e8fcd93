"""The results file: one JSON object per line, appended when a point is done, so that an interruption loses no point.

A record has a ``key``, a digest of all that its numbers depend on: the network, the data, the options and the versions.
A sweep takes from the file what has its keys and leaves the rest alone, so one file may hold many networks. A last line
that was cut off by an interruption is removed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftbc_onnx.errors import ConfigError

Record = dict[str, Any]

_BEGINNING = b'{"key": "'  # of every record, so of one that was cut off


def key_of(what: Mapping[str, Any]) -> str:
    """Digest of plain JSON types, the same whatever their order."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


class ResultsFile:
    """The records of a file, by key; without a path they are kept in memory only."""

    def __init__(self, path: Path | None) -> None:
        """Read what is there.

        Raises:
            ConfigError: the file cannot be read or written, or is no results file.
        """
        self.path = path
        self.records: dict[str, Record] = {}
        if path is None:
            return
        try:
            with path.open("a+b") as file:
                file.seek(0)
                kept = self._read(file.read())
                if file.tell() > kept:
                    file.truncate(kept)
        except OSError as error:
            raise ConfigError(f"--results '{path}' cannot be used: {error.strerror}") from error

    def add(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns."""
        self.records[record["key"]] = record
        if self.path is not None:
            with self.path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def _read(self, content: bytes) -> int:
        """Take the records; returns the number of bytes that are whole lines."""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise ConfigError(
                    f"--results '{self.path}', line {number}, is no result of a sweep: give another file"
                ) from None
        torn = content[whole:]
        if not (torn.startswith(_BEGINNING) or _BEGINNING.startswith(torn)):
            raise ConfigError(f"--results '{self.path}' is no file of a sweep: give another file")
        return whole

"""Which activations are converted: include and exclude by regular expressions, and a node behind which nothing is.

A pattern that is the name of an operator type (``Relu``, ``Clip|Relu``) speaks of operators, any other of node names
(found anywhere in the name). What is said of a name goes before what is said of an operator type, and that before the
rest; on one level exclude goes before include. With any include, what nothing includes is left out.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ftbc_onnx.errors import ConfigError


@dataclass(frozen=True)
class Scope:
    """Patterns to include and to exclude, and the node behind which the network stays analog on the mean."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    until: str | None = None

    def __post_init__(self) -> None:
        for pattern in (*self.include, *self.exclude):
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"'{pattern}' is no regular expression: {error}") from error

    def check(self, activations: Sequence[tuple[str, str]], nodes: Sequence[str]) -> None:
        """See that every pattern and name speaks of something.

        Args:
            activations: (name, operator type) of everything that could be converted.
            nodes: names of all nodes.

        Raises:
            ConfigError: one does not; the nearest name is suggested.
        """
        names = [name for name, _ in activations]
        for pattern in (*self.include, *self.exclude):
            if not any(_of_type(pattern, *a) or _of_name(pattern, *a) for a in activations):
                known = [*names, *dict.fromkeys(op for _, op in activations)]
                raise ConfigError(f"'{pattern}' matches no activation of the model{_nearest(pattern, known)}")
        if self.until is not None and self.until not in nodes:
            raise ConfigError(f"the model has no node '{self.until}'{_nearest(self.until, nodes)}")

    def takes(self, name: str, op_type: str) -> bool:
        """Whether an activation is to be converted."""
        for matches in (_of_name, _of_type):
            if any(matches(pattern, name, op_type) for pattern in self.exclude):
                return False
            if any(matches(pattern, name, op_type) for pattern in self.include):
                return True
        return not self.include


def _of_type(pattern: str, name: str, op_type: str) -> bool:  # noqa: ARG001 - the same form as _of_name
    return re.fullmatch(pattern, op_type) is not None


def _of_name(pattern: str, name: str, op_type: str) -> bool:
    return not _of_type(pattern, name, op_type) and re.search(pattern, name) is not None


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, 1, 0.4)
    return f": did you mean '{near[0]}'?" if near else ": see `ftbc-onnx inspect -v` for the names"

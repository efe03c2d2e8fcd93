"""What a neuron or a calibration rule needs of the graph it is written into.

Neurons and rules state their algebra as calls on a `Sink`; the graph builder is one. So they need neither onnx
nor any knowledge of how time is laid out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np


class Sink(Protocol):
    """Takes nodes in the order in which they are computed."""

    def op(self, op_type: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node of the default ONNX domain with one output; returns the output's name."""
        ...

    def constant(self, value: np.ndarray | float, name: str | None = None) -> str:
        """Name of an initializer holding `value` (float32 when a Python float); equal ones are shared."""
        ...

    def mean(self, x: str, axes: tuple[int, ...] | None, out: str | None = None) -> str:
        """Mean over `axes`, which stay as axes of length 1; over everything, as shape [1], if None."""
        ...

    def repeat(self, count: int, carried: Sequence[str], body: Callable[[Sequence[str]], Sequence[str]]) -> list[str]:
        """Run `body` `count` times on float32 tensors: it takes their names and returns the names of the next ones."""
        ...

"""What a calibration rule states: what happens in the graph at one site and step, and between batches outside it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ftbc_onnx.graph.emit.calibration import Probe


class CalibrationRule(Protocol):
    """How a gap becomes a bias."""

    name: str

    def emit(self, probe: Probe) -> str:
        """Write the rule for one site and step; returns the name of the new bias."""
        ...

    def combine(self, old: np.ndarray, new: np.ndarray, seen: int, samples: int) -> np.ndarray:
        """The biases [T, C] after a batch.

        Args:
            old: before the batch.
            new: what the graph gave for the batch.
            seen: samples before this batch.
            samples: samples of this batch.
        """
        ...

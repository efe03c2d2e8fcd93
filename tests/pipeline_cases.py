"""What the tests of the whole conversion have in common: a quick one, and what tells that work was begun."""

from __future__ import annotations

from typing import Any

import pytest
from networks import inputs, residual

from ftbc_onnx import convert, pipeline, planning
from ftbc_onnx.pipeline import ConversionResult

QUICK: dict[str, Any] = {"steps": 3, "calib_samples": 16}
PLAIN: dict[str, Any] = {"neuron": "if", "gate": False}
"""Nothing is chosen on samples held back (with a threshold that is named)."""


def quick(model: Any = None, data: Any = None, **options: Any) -> ConversionResult:
    """Convert `residual` (or a model) in three steps on 16 samples."""
    return convert(residual() if model is None else model, inputs(16) if data is None else data, **{**QUICK, **options})


def working(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is recorded if any work is begun: statistics, calibration, emission."""
    begun: list[str] = []
    stages = (
        (planning, "collect_statistics"),
        (planning, "calibrate"),
        *((pipeline, name) for name in ("emit", "verify", "run_ann")),
    )
    for room, name in stages:
        monkeypatch.setattr(room, name, lambda *_, name=name, **__: begun.append(name))
    return begun

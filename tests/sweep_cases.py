"""What the tests of sweeps have in common: a small grid, a network and data, and what a clock leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import inputs, residual

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.sweep import Grid, SweepResult, run_sweep, tasks
from ftbc_onnx.sweep.tasks import Material

SMALL = Grid(steps=(1, 3), neurons=("if", "group"), levels=(2, 4), rules=("solve",), thresholds=("mse",))
CONFIG = ConvertConfig(steps=3, neuron="group", threshold="mse", verify=False, form="loop", threads=1, device="cpu")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(residual(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def labelled(path: Path, samples: int, seed: int) -> Path:
    """Samples for `residual`, with labels."""
    np.savez(path, x=inputs(samples, seed), labels=np.random.default_rng(seed).integers(0, 3, samples))
    return path


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    return labelled(tmp_path / "calib.npz", 40, 1)


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return labelled(tmp_path / "eval.npz", 50, 2)


def lasting(result: SweepResult) -> list[dict[str, Any]]:
    """The records without what a clock gave."""
    clock = ("seconds", "seconds_per_sample")
    return [{name: value for name, value in record.items() if name not in clock} for record in result.records]


def material_of(net: Path, calib: Any, judged: Any = None) -> Material:
    return Material(str(net), calib, judged, None, 512, 0)


@pytest.fixture
def alone(net: Path, calib: Path, judged: Path, monkeypatch: pytest.MonkeyPatch) -> SweepResult:
    """One after another, evaluated in four shards."""
    monkeypatch.setattr(tasks, "SHARD", 15)
    return run_sweep(net, str(calib), SMALL, eval_data=str(judged))

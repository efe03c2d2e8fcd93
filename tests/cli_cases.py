"""What the tests of the command line have in common: calls, refusals in one line, a small network and its data."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from helpers import numbers
from networks import CALIBRATION, RELU, residual

from ftbc_onnx import cli, pipeline


class Call(NamedTuple):
    code: int
    out: str
    err: str


Caller = Callable[..., Call]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Caller:
    """`ftbc-onnx ARGUMENTS` in this process, with its output piped: exit code, stdout, stderr."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: object) -> Call:
        monkeypatch.setattr(sys, "argv", ["ftbc-onnx", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Call(code, *capsys.readouterr())

    return run


@pytest.fixture
def ann(tmp_path: Path) -> Path:
    """`residual` in a file."""
    onnx.save(residual(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """16 samples for it, with labels."""
    np.savez(tmp_path / "data.npz", x=numbers(16, 2, 4, 4), labels=np.arange(16) % 3)
    return tmp_path / "data.npz"


def run_module(*arguments: object, encoding: str = "utf-8") -> Call:
    """`python -m ftbc_onnx ARGUMENTS` in a process of its own, whose stdout and stderr have this encoding."""
    command = [sys.executable, "-m", "ftbc_onnx", *map(str, arguments)]
    there = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, encoding=encoding, env=there, timeout=120, check=False)
    return Call(done.returncode, done.stdout, done.stderr)


def fails(call: Call, code: int, *parts: object) -> str:
    """It failed with this code, nothing on stdout, and one line on stderr that holds every part."""
    assert call.code == code, call
    assert call.out == ""
    (line,) = call.err.splitlines()
    assert line.startswith("ftbc-onnx: error: ")
    for part in parts:
        assert str(part) in line, line
    return line


@pytest.fixture(scope="module")
def snn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snn") / "snn.onnx"
    pipeline.convert(RELU, CALIBRATION, steps=3, calib_samples=64).save(path)
    return path

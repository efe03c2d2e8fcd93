"""At a terminal: progress bars with the time left, and Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers
from networks import residual

from ftbc_onnx.cli.screen import progress_bars

pty = pytest.importorskip("pty", reason="pseudo-terminals are a matter of Unix")

STAGES = ("ANN", "thresholds", "choices", "biases", "evaluation", "evaluation without bias")


class Terminal:
    """A process whose stderr is a pseudo-terminal."""

    def __init__(self, *arguments: object, columns: int = 120) -> None:
        self._master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns)}
        command = [sys.executable, "-m", "ftbc_onnx", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave, env=environment)
        os.close(slave)
        self.seen, self._raw = "", b""

    def read(self, until: str | None = None) -> bool:
        """Read until a pattern has appeared (True), or the process closes its end (False)."""
        while until is None or not re.search(until, self.seen):
            try:
                piece = os.read(self._master, 4096)
            except OSError:  # on Linux this is the end
                return False
            if not piece:
                return False
            self._raw += piece
            self.seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._raw.decode(errors="replace"))  # without colours
        return True

    def close(self) -> int:
        self.read()
        os.close(self._master)
        return self.process.wait(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A network and data on which every stage takes some tenths of a second, and an older result."""
    onnx.save(residual(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=numbers(4000, 2, 4, 4), labels=np.arange(4000) % 3)
    (tmp_path / "old.onnx").write_bytes(b"an older result")
    return tmp_path


def arguments(folder: Path, *more: object) -> list[object]:
    """Of a conversion in a thousand batches."""
    data = folder / "data.npz"
    sizes = ("--calib-samples", 4000, "--batch-size", 4, "-T", 2, "--neuron", "if", "--threshold", "max", "--no-gate")
    return ["convert", folder / "net.onnx", "--calib-data", data, "--eval-data", data, *sizes, *more]


def test_every_long_stage_shows_the_time_left(folder: Path) -> None:
    data = folder / "data.npz"
    sizes = ("--calib-samples", 128, "--batch-size", 4, "-T", 2)
    terminal = Terminal("convert", folder / "net.onnx", "--calib-data", data, "--eval-data", data, *sizes)
    assert terminal.close() == 0, terminal.seen
    for stage in STAGES:
        assert re.search(rf"{stage} [^\n]*\d+/\d+[^\n]* \d+:\d\d left", terminal.seen), stage


def test_evaluate_knows_the_end(folder: Path) -> None:
    Terminal("convert", folder / "net.onnx", "--calib-data", folder / "data.npz", "-T", 2, "-q").close()
    network = folder / "net.snn_T2.onnx"
    command = ("evaluate", network, "--eval-data", folder / "data.npz", "--ann", folder / "net.onnx")
    terminal = Terminal(*command, "--batch-size", 4)
    assert terminal.close() == 0, terminal.seen
    for stage in ("ANN", "evaluation"):
        assert re.search(rf"{stage} [^\n]* \d+/4000[^\n]* \d+:\d\d left", terminal.seen), stage


@pytest.mark.parametrize("option", ["-q", "--json"])
def test_no_bars_where_they_are_not_wanted(folder: Path, option: str) -> None:
    small = ("--calib-samples", 32, "--batch-size", 4)
    command = ("convert", folder / "net.onnx", "--calib-data", folder / "data.npz", "-T", 2, *small, option)
    terminal = Terminal(*command)
    assert terminal.close() == 0
    assert terminal.seen == ""


def test_time_left_is_the_mean_of_the_batches_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is moved by hand."""
    import io

    from rich import progress
    from rich.console import Console

    from ftbc_onnx.cli import screen

    now = 0.0
    out = io.StringIO()
    monkeypatch.setattr(
        screen, "Console", lambda **_: Console(file=out, force_terminal=True, width=100, get_time=lambda: now)
    )
    monkeypatch.setattr(progress.Progress, "start", lambda _: None)  # no thread that draws
    with progress_bars(False) as advance:
        bars = advance.__closure__
        assert bars is not None
        drawn = next(cell.cell_contents for cell in bars if isinstance(cell.cell_contents, progress.Progress))

        def left() -> str:
            page = Console(file=io.StringIO(), width=100)
            page.print(drawn.get_renderable())
            found = re.search(r"(\d+:\d\d) left", page.file.getvalue())
            return found[1] if found else ""

        advance("biases", 0, 8)
        assert left() == ""
        now = 30.0
        advance("biases", 2, 8)
        assert left() == "1:30"
        now = 45.0
        assert left() == "1:15"
        advance("biases", 3, 8)
        assert left() == "1:15"
        now = 200.0
        assert left() == "0:00"
        advance("biases", 8, 8)
        assert left() == ""


@pytest.mark.parametrize("stage", ["ANN", "thresholds", "biases", "evaluation"])
def test_ctrl_c_leaves_everything_as_it_was(folder: Path, stage: str) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    terminal = Terminal(*arguments(folder, "-o", folder / "old.onnx"))
    assert terminal.read(until=rf"{stage} [^\n]*left"), terminal.seen
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.close() == 130, terminal.seen
    last = terminal.seen.rstrip().splitlines()[-1]
    assert "ftbc-onnx: error: interrupted: nothing is half-written" in last
    assert last.endswith("run the same command again")
    assert "Traceback" not in terminal.seen
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("moment", ["ftbc_onnx.graph.files._write", "os.replace"])
def test_ctrl_c_while_the_file_is_written(folder: Path, moment: str) -> None:
    """The signal comes when the new file is complete under its temporary name, or just before it is renamed."""
    module, _, name = moment.rpartition(".")
    code = (
        f"import os, signal, sys, ftbc_onnx.cli, {module} as where\n"
        f"true = where.{name}\n"
        "def interrupted(*a):\n"
        f"    {'true(*a); ' if name == '_write' else ''}os.kill(os.getpid(), signal.SIGINT)\n"
        f"where.{name} = interrupted\n"
        "ftbc_onnx.cli.main()\n"
    )
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    small = ("--calib-samples", "32", "-T", "2", "-o", str(folder / "old.onnx"))
    command = ["convert", str(folder / "net.onnx"), "--calib-data", str(folder / "data.npz"), *small]
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 130, (done, time.monotonic() - started)
    (line,) = done.stderr.split("\n")[-2:-1]
    assert line.startswith("ftbc-onnx: error: interrupted: nothing is half-written")
    assert done.stdout == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

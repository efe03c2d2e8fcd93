"""`ftbc-onnx sweep`: what it prints, mistakes, and Ctrl-C."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers, parse
from networks import CALIBRATION, RELU, TEST
from rich.console import Console
from sweep_cases import calib, judged, net  # noqa: F401 - fixtures

from ftbc_onnx import cli
from ftbc_onnx.cli.sweep import _workers, print_sweep
from ftbc_onnx.sweep import SweepResult


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "ftbc_onnx", "sweep", *map(str, arguments)]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=300, check=False, env=environment
    )


def test_the_command(net: Path, calib: Path, judged: Path) -> None:
    given = (net, "--calib-data", calib, "--eval-data", judged, "-T", "1,3", "--neuron", "if", "--threshold", "mse")
    first = call(*given, "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert "net.onnx: 2 points on 10 calibration samples held back" in first.stdout
    assert "2 results in" in first.stdout
    assert " 0 of them from before" in first.stdout
    rows = [line for line in first.stdout.splitlines() if " if " in line and " mse " in line]
    assert len(rows) == 2
    assert rows[0].startswith(" * ")
    second = call(*given, "--json", "--workers", "1")
    found = json.loads(second.stdout)
    assert found["resumed"] == 2
    assert found["results"] == str(net.with_name("net.sweep.jsonl"))
    assert [point["pareto"] for point in found["points"]] == [row.startswith(" * ") for row in rows]


def test_labels_of_calibration_data_have_their_offset(net: Path, calib: Path, tmp_path: Path) -> None:
    """Samples held back judge by their labels, without evaluation data, too."""
    with np.load(calib) as found:
        arrays = dict(found)
    np.savez(tmp_path / "shifted.npz", **{**arrays, "labels": arrays["labels"] + 1})
    points = []
    for file, offset in ((calib, 0), (tmp_path / "shifted.npz", -1)):
        options = ("--label-offset", offset, "-T", 2, "--neuron", "if", "--threshold", "mse", "--workers", 1)
        done = call(net, "--calib-data", file, *options, "--results", tmp_path / f"{offset}.jsonl", "--json")
        assert done.returncode == 0, done.stderr
        points.append(json.loads(done.stdout)["points"][0]["held_back"])
    assert points[0]["accuracy"] == points[1]["accuracy"]
    assert points[0]["ann_accuracy"] == points[1]["ann_accuracy"] > 0


def test_outputs_that_are_not_finite_are_said(tmp_path: Path) -> None:
    text = """g (float[N,4] x) => (float[N,3,1] y) {
        a = MatMul(x, w) r = Relu(a) b = MatMul(r, v) l = Log(b) y = Unsqueeze(l, last) }"""
    onnx.save(parse(text, w=numbers(4, 5), v=numbers(5, 3), last=np.array([2])), tmp_path / "log.onnx")
    np.savez(tmp_path / "log.npz", x=numbers(48, 4))
    given = (tmp_path / "log.onnx", "--calib-data", tmp_path / "log.npz", "-T", "1,2", "--neuron", "if")
    done = call(*given, "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("not finite") == 2
    report = json.loads(call(*given, "--workers", "1", "--json").stdout)
    assert [record["held_back"]["output_error"] for record in report["points"]] == [None, None]


def test_of_a_network_that_does_not_classify_it_says_so(tmp_path: Path) -> None:
    text = (
        "g (float[N,4] x) => (float[N,1] y) <float[4,1] w = {1.0, -0.5, 0.25, 2.0}> { r = Relu(x)  y = MatMul(r, w) }"
    )
    onnx.save(parse(text), tmp_path / "net.onnx")
    np.save(tmp_path / "x.npy", numbers(32, 4))
    given = (tmp_path / "net.onnx", "--calib-data", tmp_path / "x.npy", "--eval-data", tmp_path / "x.npy", "-T", "2")
    done = call(*given, "--neuron", "if", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "evaluation: the output is no row of scores, so nothing is said of it" in done.stdout
    assert "eval.," not in done.stdout


def test_numbers_are_whole_at_80_columns() -> None:
    held = {"accuracy": 93.75, "agreement": 90.0, "output_error": 0.1234, "ann_accuracy": 100.0, "samples": 64}
    held |= {"binary_spikes": 0.895, "synops": 263.2, "binary_energy_pj": 5.0, "ann_energy_pj": 9.0}
    record = {
        "source": "net.onnx",
        "point": {"steps": 16, "neuron": "auto", "rule": "solve", "threshold": "percentile"},
        "chosen": {"neuron": "signed-group of 15 levels"},
        "held_back": held,
        "evaluation": {"samples": 48, "accuracy": 83.33, "agreement": 80.0, "ann_accuracy": 85.4},
        "seconds_per_sample": 0.0000187,
    }
    text = io.StringIO()
    print_sweep(Console(file=text, width=80), SweepResult((record,), (True,), (), 0, None))
    row = next(line for line in text.getvalue().splitlines() if line.startswith(" * "))
    assert len(row) <= 80
    for cell in ("16", "solve", "percentile", "93.75", "0.1234", "0.895", "263.2", "0.56", "0.0187", "83.33"):
        assert f" {cell}" in row


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (("-T", "1,b"), 2, "-T '1,b': 'b' is no whole number from 1"),
        (("--workers", "0"), 2, "workers is 0: it must be a whole number, at least 1"),
        (("--gpus", "1"), 2, "--gpus goes with --ray or --ray-address"),
        (("--ray-address", "auto", "--workers", "2"), 2, "--workers goes without --ray-address"),
        (("--device", "tpu"), 6, "unknown device 'tpu'"),
        (("--results", RELU), 2, "is no result of a sweep: give another file"),
    ],
)
def test_mistakes_are_one_line(
    net: Path,
    calib: Path,
    more: tuple[object, ...],
    code: int,
    message: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["ftbc-onnx", "sweep", *map(str, (net, "--calib-data", calib, *more))])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert message in line


@pytest.mark.parametrize(("allowed", "threads", "slots"), [(1, 1, 1), (3, 1, 3), (4, 2, 2), (1, 2, 1)])
def test_as_many_workers_as_cores_that_may_be_used(
    allowed: int, threads: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container, or under a scheduler of a cluster, these are fewer than the machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    with _workers(None, False, None, 0, {"threads": threads}) as workers:
        assert workers.slots == slots


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT for a group of processes")
def test_ctrl_c_and_on_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    given = (RELU, "--calib-data", CALIBRATION, "--eval-data", TEST, "--results", path, "--workers", "2")
    grid = ("-T", "1,2,3,4,5,6,7,8", "--neuron", "if,signed-group", "--threshold", "mse", "--rule", "solve,none")
    running = subprocess.Popen(
        command(*given, *grid), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not (path.exists() and path.read_bytes().count(b"\n") >= 2):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert "of 32 points are done" in err
    assert "the same command goes on" in err
    kept = path.read_bytes().count(b"\n")
    assert 2 <= kept < 32
    again = call(*given, "-T", "1", "--neuron", "if", "--threshold", "mse", "--rule", "solve,none", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["resumed"] >= 1

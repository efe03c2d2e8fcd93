"""Sweeps: the grid, the results file, the front, and the same numbers whoever does the work."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import numbers
from networks import CALIBRATION, RELU, TEST, inputs, residual

from ftbc_onnx import cli, pipeline
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import CalibrationError, ConfigError, DataError, DeviceError, InterruptError
from ftbc_onnx.sweep import Grid, Point, Processes, Serial, SweepResult, on_ray, pareto, run_sweep, tasks
from ftbc_onnx.sweep import run as run_module
from ftbc_onnx.sweep.results import ResultsFile, key_of
from ftbc_onnx.sweep.tasks import Material, Score, convert_point, evaluate_shard, merged, shards

SMALL = Grid(steps=(1, 3), neurons=("if", "group"), levels=(2, 4), rules=("solve",), thresholds=("mse",))


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


# the grid


def test_every_combination_once() -> None:
    grid = Grid.parse("1,2", "if, signed-group", "solve,paper", "mse", "4,8")
    points = grid.points()
    assert len(points) == len(set(points)) == 2 * (1 + 2) * 2
    assert Point(2, "if", None, "paper", "mse") in points  # binary: no levels
    assert Point(1, "signed-group", 8, "solve", "mse") in points
    assert Grid.parse("4", "auto", "none", "max").points() == [Point(4, "auto", None, "none", "max")]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("1,,2", "if", "solve", "mse"), "-T '1,,2' has an empty item"),
        (("", "if", "solve", "mse"), "-T '' has an empty item"),
        (("1,2.5", "if", "solve", "mse"), "-T '1,2.5': '2.5' is no whole number from 1"),
        (("0", "if", "solve", "mse"), "-T '0': '0' is no whole number from 1"),
        (("²", "if", "solve", "mse"), "is no whole number from 1"),
        (("4,4", "if", "solve", "mse"), "-T '4,4' has 4 twice"),
        (("4", "signd", "solve", "mse"), r"--neuron 'signd': 'signd' is unknown \(did you mean 'signed'\?\)"),
        (("4", "if", "solve;paper", "mse"), "--rule 'solve;paper': 'solve;paper' is unknown"),
        (("4", "if", "solve", "mse,mse"), "--threshold 'mse,mse' has mse twice"),
        (("4", "group", "solve", "mse", "4,x"), "--levels '4,x': 'x' is no whole number from 1"),
    ],
)
def test_lists_are_read_strictly(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid.parse(*given)


def test_a_point_that_is_no_conversion_is_named_before_any_work(net: Path, calib: Path, tmp_path: Path) -> None:
    grid = Grid(neurons=("if", "multi-threshold"), levels=(17,))
    with pytest.raises(ConfigError, match=r"grid point T = 8, multi-threshold of 17 levels, .*: levels is 17"):
        run_sweep(net, calib, grid, results=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


# the results file


def test_a_key_depends_on_values_and_not_on_their_order() -> None:
    assert key_of({"a": 1, "b": [2, None]}) == key_of({"b": [2, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


@pytest.mark.parametrize("torn", [b'{"key": "c", "po', b'{"key": "c"}', b"{"])
def test_a_torn_last_line_is_survived(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "r.jsonl"
    file = ResultsFile(path)
    file.add({"key": "a", "n": 1})
    file.add({"key": "b", "n": 2})
    path.write_bytes(path.read_bytes() + torn)
    again = ResultsFile(path)
    assert list(again.records) == ["a", "b"]
    again.add({"key": "d", "n": 4})
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["a", "b", "d"]
    assert ResultsFile(path).records == {k: {"key": k, "n": n} for k, n in (("a", 1), ("b", 2), ("d", 4))}


def test_nothing_but_a_torn_line(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_bytes(b'{"ke')
    assert ResultsFile(tmp_path / "r.jsonl").records == {}
    assert (tmp_path / "r.jsonl").read_bytes() == b""


@pytest.mark.parametrize(
    "content", ["file,label\na,1\n", '{"key": "a"}\nnonsense\n{"key": "b"}\n', "[1]\n", "no line end"]
)
def test_another_file_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"labels.csv.* is no .* of a sweep: give another file"):
        ResultsFile(path)
    assert path.read_text() == content


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be used: No such file or directory"):
        ResultsFile(tmp_path / "nowhere" / "r.jsonl")


# the front


def record(quality: float, spikes: float, synops: float, steps: int, accuracy: bool = True) -> dict[str, Any]:
    held = {
        "accuracy": quality if accuracy else None,
        "agreement": 50.0 if accuracy else quality,
        "output_error": 0.1,
        "binary_spikes": spikes,
        "synops": synops,
    }
    return {"key": f"{quality} {spikes} {synops} {steps}", "held_back": held, "point": {"steps": steps}}


@pytest.mark.parametrize("accuracy", [True, False])
def test_the_front_against_every_pair(accuracy: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        rows = [tuple(map(int, row)) for row in rng.integers(0, 4, (12, 4))]
        expected = []
        for q, a, b, t in rows:
            beaten = False
            for r, c, d, u in rows:
                no_worse = r >= q and c <= a and d <= b and u <= t
                better = r > q or c < a or d < b or u < t
                beaten = beaten or (no_worse and better)
            expected.append(not beaten)
        assert pareto.front([record(*row, accuracy=accuracy) for row in rows]) == expected
        assert any(expected)


def test_without_classes_the_output_error_counts() -> None:
    held = {"accuracy": None, "agreement": None, "output_error": 0.25}
    assert pareto.quality({"held_back": held}) == -0.25


def test_best_first() -> None:
    rows = [record(90, 1, 5, 2), record(95, 9, 9, 9), record(90, 7, 4, 8), record(90, 3, 5, 1)]
    assert [r["held_back"]["binary_spikes"] for r in pareto.best_first(rows)] == [9, 7, 3, 1]


# held back, evaluated


def material_of(net: Path, calib: Any, judged: Any = None) -> Material:
    return Material(str(net), calib, judged, None, 512, 0)


def convert_alone(material: Material, config: ConvertConfig) -> tasks.Converted:
    seen, held = material.calibration_parts()
    model = tasks.load(material.model).digest
    return convert_point(material, config, {"model": model, "seen": seen.digest(), "held": held.digest()})


CONFIG = ConvertConfig(steps=3, neuron="group", threshold="mse", verify=False, form="loop", threads=1, device="cpu")


def test_a_quarter_is_held_back_and_no_conversion_sees_it(net: Path, judged: Path) -> None:
    """Samples held back may be anything: what comes out is the same to the last byte."""
    x, labels = inputs(40, 1), np.arange(40) % 3
    seen, held = material_of(net, (x, labels)).calibration_parts()
    assert (len(seen), len(held)) == (30, 10)
    both = np.concatenate([next(part.batches(99)).feeds["x"] for part in (seen, held)])
    assert sorted(map(bytes, both)) == sorted(map(bytes, x))
    back = {sample.tobytes() for sample in next(held.batches(99)).feeds["x"]}
    other = x.copy()
    other[[sample.tobytes() in back for sample in x]] = numbers(10, 2, 4, 4, seed=9, scale=50)
    first, second = (convert_alone(material_of(net, (data, labels), judged), CONFIG) for data in (x, other))
    assert first.model == second.model
    assert first.record["held_back"]["output_error"] != second.record["held_back"]["output_error"]


def test_what_is_judged_is_what_is_held_back(net: Path, calib: Path) -> None:
    material = material_of(net, str(calib))
    seen, held = material.calibration_parts()
    expected = pipeline.convert(str(net), seen, eval_data=held, config=CONFIG).evaluation
    found = convert_alone(material, CONFIG).record["held_back"]
    assert found["samples"] == 10
    assert found["accuracy"] == expected.accuracy[-1]
    assert found["agreement"] == expected.agreement[-1]
    assert found["output_error"] == expected.output_gap[-1]
    assert found["synops"] == expected.counts.synops[-1]


def test_too_few_samples(net: Path) -> None:
    with pytest.raises(
        DataError, match=r"give 15 samples: a sweep holds back a quarter of them to judge, and takes at"
    ):
        run_sweep(net, inputs(15), SMALL)


def test_data_that_change_are_noticed(net: Path) -> None:
    class Chance:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            return np.random.default_rng().standard_normal((20, 2, 4, 4)).astype(np.float32)

    result = run_sweep(net, Chance(), SMALL)
    assert not result.records
    assert len(result.failed) == 6
    assert all("are not what they were when the sweep began" in str(error) for _, error in result.failed)


def test_shards_add_up_exactly(net: Path, calib: Path, judged: Path) -> None:
    material = material_of(net, str(calib), str(judged))
    model = convert_alone(material, CONFIG).model
    whole = evaluate_shard(material, model, CONFIG, 0, 50)
    parts = [evaluate_shard(material, model, CONFIG, *cut) for cut in ((0, 17), (17, 34), (34, 50))]
    assert merged(parts) == merged([whole])
    assert merged([whole])["accuracy"] == 100 * whole.right / 50
    assert whole.samples == 50
    assert 0 < whole.right < 50


def test_shards_cover_everything_in_whole_batches() -> None:
    for samples, static in ((1, 1), (1024, 1), (1025, 1), (5000, 7), (3000, 1500)):
        cuts = shards(samples, static)
        assert [i for start, stop in cuts for i in range(start, stop)] == list(range(samples))
        assert all((stop - start) % static == 0 for start, stop in cuts[:-1])
    assert merged([Score(4, 3, None, 2), Score(6, 1, None, None)]) == {
        "samples": 10,
        "accuracy": 40.0,
        "agreement": None,
        "ann_accuracy": None,
    }


def test_evaluation_data_take_no_part_in_the_front(net: Path, calib: Path, judged: Path) -> None:
    with np.load(judged) as file:
        x, labels = file["x"], file["labels"]
    one = run_sweep(net, str(calib), SMALL, eval_data=str(judged))
    turned = run_sweep(net, str(calib), SMALL, eval_data=(x, (labels + 1) % 3))
    none = run_sweep(net, str(calib), SMALL)
    assert one.on_front == turned.on_front == none.on_front
    points = [[r["point"] for r in result.records] for result in (one, turned, none)]
    assert points[0] == points[1] == points[2]
    held = [[r["held_back"] for r in result.records] for result in (one, turned, none)]
    assert held[0] == held[1] == held[2]
    accuracies = [[r["evaluation"]["accuracy"] for r in result.records] for result in (one, turned)]
    assert accuracies[0] != accuracies[1]
    assert {r["evaluation"] for r in none.records} == {None}


# the same numbers, whoever does it


@pytest.fixture
def alone(net: Path, calib: Path, judged: Path, monkeypatch: pytest.MonkeyPatch) -> SweepResult:
    """One after another, evaluated in four shards."""
    monkeypatch.setattr(tasks, "SHARD", 15)
    return run_sweep(net, str(calib), SMALL, eval_data=str(judged))


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_numbers_in_processes(net: Path, calib: Path, judged: Path, alone: SweepResult, count: int) -> None:
    workers = Processes(count)
    try:
        result = run_sweep(net, str(calib), SMALL, eval_data=str(judged), workers=workers)
    finally:
        workers.stop()
    assert len(result.records) == 6
    assert result.records[0]["evaluation"]["samples"] == 50
    assert lasting(result) == lasting(alone)
    assert result.on_front == alone.on_front


def test_the_same_numbers_in_a_ray_cluster(net: Path, calib: Path, judged: Path, alone: SweepResult) -> None:
    pytest.importorskip("ray")
    workers = on_ray.RayWorkers(cpus=2)
    try:
        assert workers.slots == 2
        result = run_sweep(net, str(calib), SMALL, eval_data=str(judged), workers=workers)
        with pytest.raises(DataError, match="are not what they were"):
            workers.submit(
                convert_point, material_of(net, str(calib)), CONFIG, dict.fromkeys(("model", "seen", "held"))
            ).result()
    finally:
        workers.stop()
    assert lasting(result) == lasting(alone)


def test_an_address_where_nobody_is() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", f"ray://127.0.0.1:{taken.getsockname()[1]}"):
            with pytest.raises(DeviceError, match=f"no Ray cluster answers at {address} "):
                on_ray._knock(address)
    with socket.create_server(("127.0.0.1", 0)) as there:
        on_ray._knock(f"127.0.0.1:{there.getsockname()[1]}")
    on_ray._knock("auto")


# interruptions, failures


class Watched(Serial):
    """Counts what it does; interrupted before a task."""

    def __init__(self, interrupted: int | None = None) -> None:
        self.done = 0
        self.interrupted = interrupted
        self.stopped = False

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        if self.done == self.interrupted:
            raise KeyboardInterrupt
        self.done += 1
        return super().submit(function, *arguments)

    def stop(self) -> None:
        self.stopped = True


def test_an_interruption_loses_no_point(
    net: Path, calib: Path, judged: Path, tmp_path: Path, alone: SweepResult
) -> None:
    path = tmp_path / "r.jsonl"
    first = Watched(interrupted=12)  # of 30: a conversion and four shards for each of six points
    with pytest.raises(InterruptError, match=r"interrupted: 2 of 6 points are done; .*r.jsonl has them, and the same"):
        run_sweep(net, str(calib), SMALL, eval_data=str(judged), results=path, workers=first)
    assert first.stopped
    assert len(path.read_text().splitlines()) == 2
    second = Watched()
    result = run_sweep(net, str(calib), SMALL, eval_data=str(judged), results=path, workers=second)
    assert (second.done, result.resumed) == (20, 2)
    assert lasting(result) == lasting(alone)
    third = Watched()
    assert lasting(run_sweep(net, str(calib), SMALL, eval_data=str(judged), results=path, workers=third)) == lasting(
        alone
    )
    assert third.done == 0


def test_other_networks_data_and_options_are_not_mixed_up(net: Path, calib: Path, judged: Path, tmp_path: Path) -> None:
    grid = Grid(steps=(2,), neurons=("if",), thresholds=("mse",))
    path = tmp_path / "r.jsonl"

    def again(model: Path = net, data: Any = str(calib), **more: Any) -> int:
        return run_sweep(model, data, more.pop("grid", grid), results=path, **more).resumed

    assert again() == 0
    assert again() == 1
    changed = residual()
    changed.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(numbers(4, 2, 3, 3), "w1"))
    onnx.save(changed, tmp_path / "other.onnx")
    assert again(model=tmp_path / "other.onnx") == 0
    assert again(data=str(judged)) == 0
    assert again(eval_data=str(judged)) == 0
    assert again(calib_samples=20) == 0
    assert again(threads=2) == 0
    assert again(coding="differential") == 0
    assert again(grid=Grid(steps=(3,), neurons=("if",), thresholds=("mse",))) == 0
    assert again() == 1
    assert len(ResultsFile(path).records) == 8


def test_a_point_that_fails_leaves_the_others(
    net: Path, calib: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any, config: ConvertConfig, **more: Any) -> Any:
        if config.steps == 3 and config.neuron == "if":
            raise CalibrationError("planted")
        return pipeline.convert(*arguments, config=config, **more)

    monkeypatch.setattr(tasks, "convert", failing)
    result = run_sweep(net, str(calib), SMALL, results=tmp_path / "r.jsonl")
    assert [(str(point), str(error)) for point, error in result.failed] == [
        ("T = 3, if, rule solve, threshold mse", "planted")
    ]
    assert len(result.records) == 5
    monkeypatch.undo()
    mended = run_sweep(net, str(calib), SMALL, results=tmp_path / "r.jsonl")
    assert (mended.resumed, len(mended.records), mended.failed) == (5, 6, ())


class Dying(Processes):
    """Its process ends by itself."""

    def submit(self, *_: Any) -> Future[Any]:
        return super().submit(os._exit, 3)


def test_a_worker_that_dies_is_told(net: Path, calib: Path) -> None:
    workers = Dying(1)
    try:
        with pytest.raises(
            DeviceError, match=r"a worker process ended by itself .* the points that are not done, 6 of 6"
        ):
            run_sweep(net, str(calib), SMALL, workers=workers)
    finally:
        workers.stop()


def test_a_bug_in_a_worker_is_no_failed_point(net: Path, calib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run_module, "convert_point", broken)
    with pytest.raises(ZeroDivisionError):
        run_sweep(net, str(calib), SMALL)


# the command


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
    rows = [line for line in first.stdout.splitlines() if line.startswith("│") and " if " in line]
    assert len(rows) == 2
    assert rows[0].startswith("│ *")
    second = call(*given, "--json", "--workers", "1")
    found = json.loads(second.stdout)
    assert found["resumed"] == 2
    assert found["results"] == str(net.with_name("net.sweep.jsonl"))
    assert [point["pareto"] for point in found["points"]] == [row.startswith("│ *") for row in rows]


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
    assert running.returncode == 130
    assert out == ""
    (line,) = err.splitlines()
    assert "of 32 points are done" in line
    assert "the same command goes on" in line
    kept = path.read_bytes().count(b"\n")
    assert 2 <= kept < 32
    again = call(*given, "-T", "1", "--neuron", "if", "--threshold", "mse", "--rule", "solve,none", "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["resumed"] >= 1


HALF_A_RESULT = """
import os, signal, sys, threading, time
from ftbc_onnx.sweep.workers import Processes

def large():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return bytes(1 << 28)  # more than a pipe holds

def main():
    workers = Processes(1)
    future = workers.submit(large)
    while not future.running():
        time.sleep(0.01)
    time.sleep(1.5)
    pool = workers._pool
    (process,) = pool._processes.values()
    workers.stop()
    os.kill(process.pid, signal.SIGKILL)
    print("stopped")

if __name__ == "__main__":
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process by a POSIX signal")
def test_a_worker_that_dies_while_it_hands_over_a_result(tmp_path: Path) -> None:
    """Half a result is in the pipe: the program ends nevertheless."""
    script = tmp_path / "half.py"
    script.write_text(HALF_A_RESULT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "stopped\n"

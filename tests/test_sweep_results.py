"""The results file of a sweep, and going on from it after an interruption or with a point that failed."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import numbers
from networks import residual
from rich.console import Console
from sweep_cases import SMALL, alone, calib, judged, lasting, net  # noqa: F401 - fixtures

from ftbc_onnx import pipeline
from ftbc_onnx.cli.sweep import print_sweep
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import CalibrationError, ConfigError, InterruptError
from ftbc_onnx.sweep import Grid, Serial, SweepResult, pareto, run_sweep, tasks
from ftbc_onnx.sweep.results import ResultsFile, key_of

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
    "content",
    [
        *("file,label\na,1\n", '{"key": "a"}\nnonsense\n{"key": "b"}\n', "[1]\n", "no line end"),
        *('{"my": "settings"}', '{"key": "a"}\n{"my": "settings"}', '{"key": 1}'),
    ],
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


def damaged(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A record with something missing or of another kind, at the first two depths."""
    for name, value in record.items():
        for other in ("missing", None, [], {}, "x"):
            if other == "missing":
                yield {n: v for n, v in record.items() if n != name}
            elif type(other) is not type(value):
                yield {**record, name: other}
        if isinstance(value, dict):
            yield from ({**record, name: inner} for inner in damaged(value))


def test_a_record_that_was_damaged_is_named_or_does_no_harm(
    net: Path, calib: Path, judged: Path, tmp_path: Path
) -> None:
    grid, path = Grid(steps=(2,), neurons=("if",), thresholds=("mse",)), tmp_path / "r.jsonl"
    sound = run_sweep(net, str(calib), grid, eval_data=str(judged), results=path).records[0]
    assert pareto.is_complete(sound)
    refused = 0
    for record in damaged(dict(sound)):
        if pareto.is_complete(record):
            pareto.front([record]), pareto.best_first([{**record, "key": "k"}])
            print_sweep(Console(file=io.StringIO()), SweepResult((record,), (True,), (), 0, None))
        else:
            refused += 1
    assert refused > 40
    changed = {**json.loads(path.read_text()), "held_back": 5}
    path.write_text(json.dumps(changed) + "\n")
    with pytest.raises(ConfigError, match=rf"r.jsonl', the record with key {changed['key'][:12]}\.\.\. is damaged"):
        run_sweep(net, str(calib), grid, eval_data=str(judged), results=path)
    assert json.loads(path.read_text()) == changed


def test_numbers_of_numpy_are_numbers(net: Path, calib: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    for number in (np.int64, int):
        grid = Grid(steps=(number(2),), neurons=("signed-group",), thresholds=("mse",), levels=(number(4),))
        found = run_sweep(net, str(calib), grid, results=path, label_offset=number(0), calib_samples=number(24))
    assert found.resumed == 1


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

"""Sweeps: the grid, what is held back to judge and what evaluates, and the front."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import numbers
from networks import inputs
from sweep_cases import CONFIG, SMALL, calib, judged, material_of, net  # noqa: F401 - fixtures

from ftbc_onnx import pipeline
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.errors import ConfigError, DataError
from ftbc_onnx.sweep import Grid, Point, pareto, run_sweep, tasks
from ftbc_onnx.sweep.tasks import Material, Score, convert_point, evaluate_shard, merged, shards

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


def test_options_that_would_do_nothing_are_refused(net: Path, calib: Path) -> None:
    with pytest.raises(ConfigError, match="levels go with a neuron that has more than one, not with if, signed"):
        run_sweep(net, calib, Grid(neurons=("if", "signed"), levels=(4,)))
    with pytest.raises(ConfigError, match="'neuron' is a list of the grid: give it there"):
        run_sweep(net, calib, Grid(), neuron="group", steps=7)


# held back, evaluated


def convert_alone(material: Material, config: ConvertConfig) -> tasks.Converted:
    seen, held = material.calibration_parts()
    model = tasks.load(material.model).digest
    return convert_point(material, config, {"model": model, "seen": seen.digest(), "held": held.digest()})


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

"""Data that are not prepared as those of a conversion were, told by the numbers that the inputs get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import numbers, parse
from networks import QCFS, RELU, digits

from ftbc_onnx import ConversionResult, convert, likeness
from ftbc_onnx.data import InputSpec, open_data
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.likeness import Moments, compare, moments
from ftbc_onnx.spiking_file import read_spiking


def scaled(factor: float, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Test images times a factor, and their labels."""
    images, labels = digits("test", count)
    return (images * factor).astype(np.float32), labels


def made(factor: float = 1.0, **options: Any) -> ConversionResult:
    """A conversion that is judged on test images times a factor."""
    options = {"steps": 2, "neuron": "if", "verify": False, "eval_data": scaled(factor), **options}
    return convert(RELU, digits("calibration")[0][:64], **options)


def source_of(**arrays: np.ndarray) -> Any:
    specs = [InputSpec(name, x.dtype, ("N", *x.shape[1:])) for name, x in arrays.items()]
    return open_data(arrays, specs)


class TestMoments:
    def test_are_those_of_all_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(likeness, "_AT_ONCE", 3)
        x, whole = 5 + numbers(10, 4, 3), np.arange(10, dtype=np.int64)[:, None]
        found = moments(source_of(x=x, ids=whole))
        assert found.keys() == {"x"}  # whole numbers are names of things
        assert found["x"].mean == pytest.approx(x.mean(dtype=np.float64), rel=1e-5)
        assert found["x"].std == pytest.approx(x.std(dtype=np.float64), rel=1e-5)
        assert found["x"].samples == 10

    def test_look_at_some_samples_evenly_over_the_data(self) -> None:
        x = np.repeat(np.float32([0, 1]), 100)[:, None]
        found = moments(source_of(x=x))["x"]
        assert (found.mean, found.std, found.samples) == (0.5, 0.5, likeness.LOOKED_AT)

    @pytest.mark.parametrize(
        ("mean", "std", "samples", "alike"),
        [
            (0.0, 1.5, 32, True),
            (0.0, 1.7, 32, False),
            (0.0, 1 / 1.7, 32, False),
            (0.7, 1.0, 32, True),
            (-0.8, 1.0, 32, False),
            (1.0, 1.5, 32, True),  # two thirds of the larger deviation
            (0.0, 7.0, 15, True),
            (0.0, 9.0, 15, False),
            (2.9, 1.0, 15, True),
            (3.1, 1.0, 15, False),
            (0.0, 0.0, 32, True),
            (1.0, 0.0, 32, False),
        ],
    )
    def test_are_compared_both_ways(self, mean: float, std: float, samples: int, alike: bool) -> None:
        one, other = Moments(0.0, 1.0, 32), Moments(mean, std, samples)
        assert one.like(other) is alike
        assert other.like(one) is alike
        assert [pair.name for pair in compare({"x": one, "y": one}, {"x": other, "z": one})] == ["x"] * (not alike)

    def test_of_constants_are_alike_if_they_are_equal(self) -> None:
        one, same, other = (Moments(mean, 0.0, 32) for mean in (1.0, 1.0, 2.0))
        assert one.like(same)
        assert not one.like(other)


class TestConversion:
    @pytest.mark.parametrize(("factor", "said"), [(1.0, False), (0.8, False), (1 / 255, True), (255.0, True)])
    def test_tells_evaluation_data_of_another_scale(self, factor: float, said: bool) -> None:
        report = made(factor).report
        assert any("not prepared alike" in sentence for sentence in report["summary"]) is said
        assert [found["name"] for found in report["evaluation"]["unlike"]] == ["image"] * said
        assert report["evaluation_without_bias"]["unlike"] == report["evaluation"]["unlike"]

    def test_compares_nothing_with_random_data_or_itself(self) -> None:
        dark = scaled(0.0)
        options = {"steps": 2, "neuron": "if", "verify": False}
        random = convert(RELU, eval_data=dark, random_data=True, calib_samples=32, **options)
        stated = convert(QCFS, eval_data=dark, steps=2, verify=False)
        plain = convert(RELU, digits("calibration")[0][:32], **options)
        for result in (random, stated, plain):
            assert result.report["evaluation"]["unlike"] == []


class TestFile:
    """What it remembers, so that the ANN is not needed."""

    @pytest.mark.parametrize(("factor", "alike"), [(1.0, True), (0.8, True), (1 / 255, False), (255.0, False)])
    def test_remembers_what_its_inputs_got(self, factor: float, alike: bool) -> None:
        result, _ = evaluate_file(made().model.SerializeToString(), scaled(factor))
        assert (not result.unlike) is alike

    def test_without_calibration_data_those_of_the_evaluation(self) -> None:
        file = convert(QCFS, eval_data=scaled(1.0), steps=2, verify=False).model.SerializeToString()
        assert not evaluate_file(file, scaled(1.0, 30))[0].unlike
        assert evaluate_file(file, scaled(16.0))[0].unlike

    def test_of_random_data_remembers_nothing(self) -> None:
        random = convert(RELU, random_data=True, calib_samples=32, steps=2, neuron="if", verify=False)
        file = random.model.SerializeToString()
        assert read_spiking(file).inputs == {}
        assert not evaluate_file(file, scaled(255.0))[0].unlike

    def test_of_an_earlier_version_says_nothing(self) -> None:
        model = made().model
        kept = [entry for entry in model.metadata_props if entry.key != "ftbc_onnx.inputs"]
        assert len(kept) == len(model.metadata_props) - 1
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        assert not evaluate_file(model.SerializeToString(), scaled(255.0))[0].unlike

    def test_with_several_inputs_tells_which(self, tmp_path: Path) -> None:
        text = "g (float[N,4] x, int64[N,1] i, float[N,4] z) => (float[N,3] y) "
        text += "{ e = Gather(w, i) f = Reshape(e, s) a = Add(x, z) b = Add(a, f) r = Relu(b) y = MatMul(r, v) }"
        weights = {"w": numbers(9, 4), "v": numbers(4, 3), "s": np.array([-1, 4])}
        onnx.save(parse(text, **weights), tmp_path / "net.onnx")
        data = {"x": numbers(40, 4), "i": np.arange(40)[:, None] % 3, "z": numbers(40, 4)}
        file = convert(tmp_path / "net.onnx", data, steps=2, neuron="if", verify=False).model.SerializeToString()
        other = {**data, "i": data["i"] + 5, "z": data["z"] * np.float32(10)}
        (found,) = evaluate_file(file, other)[0].unlike
        assert found.name == "z"
        assert found.now.std == pytest.approx(10 * found.before.std, rel=1e-4)

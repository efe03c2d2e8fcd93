"""`ftbc-onnx evaluate`, and the labels of evaluation data: the curve, and data or networks that do not fit."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_cases import Caller, ann, call, data, fails, snn  # noqa: F401 - fixtures
from helpers import numbers, parse
from networks import QCFS, RELU, TEST, digits


class TestEvaluate:
    def test_prints_the_curve(self, call: Caller, snn: Path) -> None:
        done = call("evaluate", snn, "--eval-data", TEST, "--ann", RELU)
        assert (done.code, done.err) == (0, "")
        assert "360 samples of digits_test.npz, ANN 100.00 %" in done.out
        assert done.out.startswith("device c")

    def test_json(self, call: Caller, snn: Path) -> None:
        done = call("evaluate", snn, "--eval-data", TEST, "--samples", 50, "--json", "--device", "cpu")
        report = json.loads(done.out)
        assert report["samples"] == 50
        assert len(report["accuracy"]) == 3
        assert report["ann_accuracy"] is None
        assert report["device"] == "cpu"

    def test_json_is_strict_and_says_that_outputs_are_not_finite(self, call: Caller, tmp_path: Path) -> None:
        text = "g (float[N,4] x) => (float[N,3] y) { a = MatMul(x, w) r = Relu(a) b = MatMul(r, v) y = Log(b) }"
        onnx.save(parse(text, w=numbers(4, 5), v=numbers(5, 3)), tmp_path / "log.onnx")
        np.savez(tmp_path / "log.npz", x=numbers(16, 4), label=np.zeros(16, np.int64))
        log, of, out = tmp_path / "log.onnx", tmp_path / "log.npz", tmp_path / "snn.onnx"
        for command in (
            ("convert", log, "-T", 2, "--neuron", "if", "--calib-data", of, "--eval-data", of, "-o", out),
            ("evaluate", out, "--eval-data", of, "--ann", log),
        ):
            done = call(*command, "--json")
            assert done.code == 0, done
            report = json.loads(done.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
            evaluation = report.get("evaluation", report)
            assert (evaluation["finite"], evaluation["output_gap"]) == (False, None)

    def test_label_offset(self, call: Caller, snn: Path, tmp_path: Path) -> None:
        images, labels = digits("test", 40)
        np.savez(tmp_path / "shifted.npz", image=images, label=labels + 1)
        shifted = call("evaluate", snn, "--eval-data", tmp_path / "shifted.npz", "--label-offset", -1, "--json")
        plain = call("evaluate", snn, "--eval-data", TEST, "--samples", 40, "--json")
        assert json.loads(shifted.out)["accuracy"] == json.loads(plain.out)["accuracy"]

    def test_label_offset_is_that_of_the_conversion(self, call: Caller, tmp_path: Path) -> None:
        images, labels = digits("test", 40)
        np.savez(tmp_path / "shifted.npz", image=images, label=labels + 1)
        shifted, out = tmp_path / "shifted.npz", tmp_path / "snn.onnx"
        base = ("convert", RELU, "-T", 2, "--neuron", "if", "--calib-data", TEST, "--eval-data", shifted, "-o", out)
        assert json.loads(call(*base, "--label-offset", -1, "--json").out)["evaluation"]["ann_accuracy"] == 100
        judged = ("evaluate", out, "--eval-data", shifted, "--ann", RELU)
        assert json.loads(call(*judged, "--json").out)["ann_accuracy"] == 100
        np.savez(shifted, image=images, label=labels)
        assert json.loads(call(*judged, "--label-offset", 0, "--json").out)["ann_accuracy"] == 100

    def test_an_ann_that_is_hardly_right_is_doubted_first(self, call: Caller, snn: Path, tmp_path: Path) -> None:
        images, labels = digits("test", 40)
        np.savez(tmp_path / "mixed.npz", image=images, label=(labels + 1) % 10)
        done = call("evaluate", snn, "--eval-data", tmp_path / "mixed.npz", "--ann", RELU)
        assert "The ANN itself has only 0.0 % on these data." in done.out
        judged = call("evaluate", snn, "--eval-data", tmp_path / "mixed.npz", "--ann", RELU, "--json")
        assert json.loads(judged.out)["summary"][0].startswith("The ANN itself has only 0.0 %")
        assert "itself has only" not in call("evaluate", snn, "--eval-data", TEST, "--ann", RELU).out

    @pytest.mark.parametrize(("factor", "said"), [(1.0, False), (1 / 255, True), (20.0, True)])
    def test_data_prepared_otherwise_than_in_the_conversion_are_told(
        self, call: Caller, snn: Path, tmp_path: Path, factor: float, said: bool
    ) -> None:
        images, labels = digits("test", 40)
        np.savez(tmp_path / "scaled.npz", image=(images * factor).astype(np.float32), label=labels)
        judged = ("evaluate", snn, "--eval-data", tmp_path / "scaled.npz")
        summary = json.loads(call(*judged, "--json").out)["summary"]
        assert ["not prepared alike" in sentence for sentence in summary] == [True] * said
        assert not said or summary[0] in call(*judged).out

    def test_without_labels_and_ann_it_says_that_nothing_can_be_said(
        self, call: Caller, snn: Path, tmp_path: Path
    ) -> None:
        np.save(tmp_path / "unlabelled.npy", np.load(TEST)["image"][:8])
        done = call("evaluate", snn, "--eval-data", tmp_path / "unlabelled.npy")
        assert (done.code, done.err) == (0, "")
        assert "8 samples of unlabelled.npy\n" in done.out
        assert "nothing can be said of its accuracy" in done.out
        assert "━" not in done.out

    def test_an_ann_is_refused(self, call: Caller) -> None:
        fails(call("evaluate", RELU, "--eval-data", TEST), 3, "is no spiking network made by ftbc-onnx")

    def test_another_ann_is_refused(self, call: Caller, snn: Path) -> None:
        fails(call("evaluate", snn, "--eval-data", TEST, "--ann", QCFS), 3, "was not made from", "digests differ")

    def test_labels_that_do_not_fit(self, call: Caller, snn: Path) -> None:
        fails(call("evaluate", snn, "--eval-data", TEST, "--label-offset", 5), 4, "is no class of output 'logits'")

    def test_without_data(self, call: Caller, snn: Path) -> None:
        fails(call("evaluate", snn), 2, "--eval-data")

    @pytest.mark.parametrize("option", ["--samples", "--batch-size"])
    def test_numbers_from_one(self, call: Caller, snn: Path, option: str) -> None:
        fails(call("evaluate", snn, "--eval-data", TEST, option, 0), 2, "is 0: it must be a whole number, at least 1")


class TestLabels:
    """Of evaluation data that have none, or others."""

    def test_beside_the_data(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        with np.load(data) as file:
            np.save(tmp_path / "x.npy", file["x"]), np.save(tmp_path / "y.npy", file["labels"])
        out = tmp_path / "snn.onnx"
        base = ("convert", ann, "-T", 2, "--calib-data", data, "-o", out, "--json")
        expected = json.loads(call(*base, "--eval-data", data).out)["evaluation"]["accuracy"]
        beside = ("--eval-data", tmp_path / "x.npy", "--labels", tmp_path / "y.npy")
        assert json.loads(call(*base, *beside).out)["evaluation"]["accuracy"] == expected
        assert json.loads(call("evaluate", out, *beside, "--json").out)["accuracy"] == expected
        fails(call(*base, "--labels", tmp_path / "y.npy"), 2, "those of --eval-data, which is not given")
        fails(call(*base, *beside[:3], tmp_path / "y.csv"), 4, "y.csv: a table lists image files")

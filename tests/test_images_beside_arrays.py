"""Image files for calibration and arrays for evaluation, or the other way round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import parse
from networks import QCFS, RELU, TEST, digits
from PIL import Image

from ftbc_onnx import Preprocessing, convert
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.evaluate import evaluate_file


class TestImagesBesideArrays:
    """One preprocessing for both: what only image files have is left out for arrays."""

    OPTIONS = Preprocessing(resize=8, crop=8, mean=(0.1,), std=(0.5,), color="gray")

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for number, image in enumerate(np.load(TEST)["image"][:24]):
            Image.fromarray((image[0] * 255).astype(np.uint8)).save(tmp_path / f"{number:02}.png")
        return tmp_path

    @pytest.mark.parametrize("kind", [np.uint8, np.float32])
    def test_pixels_get_the_scale_that_images_have(self, folder: Path, kind: type[np.generic]) -> None:
        images, labels = digits("test", 24)
        pixels = (images * 255).astype(np.uint8)
        arrays = pixels if kind is np.uint8 else pixels.astype(np.float32) * np.float32(1 / 255)
        result = convert(RELU, folder, eval_data=(arrays, labels), preprocessing=self.OPTIONS, steps=2)
        both = convert(RELU, folder, eval_data=(folder, labels), preprocessing=self.OPTIONS, steps=2)
        assert result.evaluation.ann_accuracy == both.evaluation.ann_accuracy
        np.testing.assert_allclose(result.evaluation.output_gap, both.evaluation.output_gap, rtol=1e-3)
        assert result.report["preprocessing"]["resize"] == 8
        again, _ = evaluate_file(result.model.SerializeToString(), (arrays, labels), ann=RELU)
        assert again.ann_accuracy == result.evaluation.ann_accuracy
        np.testing.assert_allclose(again.output_gap, result.evaluation.output_gap, rtol=1e-5)

    @pytest.mark.parametrize("given", [None, 1 / 255])
    def test_pixels_without_mean_and_std_have_the_scale_that_images_got(
        self, folder: Path, given: float | None, caplog: pytest.LogCaptureFixture
    ) -> None:
        images, labels = digits("test", 24)
        options = Preprocessing(color="gray", scale=given)
        model = convert(RELU, folder, eval_data=(folder, labels), preprocessing=options, steps=2).model
        for arrays in ((images * 255).astype(np.uint8), images):
            caplog.clear()
            judged, _ = evaluate_file(model.SerializeToString(), (arrays, labels), ann=RELU)
            assert judged.ann_accuracy == 100
            assert ("prepared by {'scale': 0.00392" in caplog.text) is (arrays.dtype == np.uint8)
            assert ("give --mean 0 --std 1 --scale 1" in caplog.text) is (arrays.dtype == np.uint8)

    @pytest.mark.parametrize("images_calibrate", [True, False])
    def test_floats_beside_images_get_no_scale_of_pixels(self, folder: Path, images_calibrate: bool) -> None:
        """Stated or not (a preprocessor_config.json states it); and what judges later does the same."""
        images, labels = digits("test", 24)
        stated = replace(self.OPTIONS, scale=1 / 255)
        both = (folder, (images, labels)) if images_calibrate else (images, (folder, labels))
        found = [
            convert(RELU, both[0], eval_data=both[1], preprocessing=options, steps=2)
            for options in (self.OPTIONS, stated)
        ]
        assert found[0].evaluation.output_gap == found[1].evaluation.output_gap
        assert found[0].evaluation.unlike == found[1].evaluation.unlike == ()
        again, _ = evaluate_file(found[1].model.SerializeToString(), both[1], ann=RELU)
        np.testing.assert_allclose(again.output_gap, found[1].evaluation.output_gap, rtol=1e-5)

    @pytest.mark.parametrize("calibration", [{"random_data": True}, {}])
    def test_what_judges_is_remembered_where_nothing_was_calibrated(self, calibration: dict[str, bool]) -> None:
        images, labels = digits("test", 24)
        raw, options = (images * 16, labels), Preprocessing(scale=1 / 16)
        result = convert(QCFS, eval_data=raw, preprocessing=options, steps=2, neuron="if", rule="none", **calibration)
        assert result.report["preprocessing"] == {"scale": 1 / 16}
        again, _ = evaluate_file(result.model.SerializeToString(), raw, ann=QCFS)
        assert again.accuracy == result.evaluation.accuracy

    def test_floats_that_are_ready(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        """That mean and std are taken off once more is said, with what to give instead."""
        images, labels = digits("test", 24)
        model = convert(RELU, folder, preprocessing=self.OPTIONS, steps=2).model.SerializeToString()
        ready = ((images - np.float32(0.1)) / np.float32(0.5), labels)
        twice, _ = evaluate_file(model, ready, ann=RELU)
        assert "prepared by {'mean': [0.1], 'std': [0.5]}" in caplog.text
        caplog.clear()
        as_they_are = Preprocessing(scale=1, mean=(0,), std=(1,))
        once, _ = evaluate_file(model, ready, ann=RELU, preprocessing=as_they_are)
        also, _ = evaluate_file(model, ready, ann=RELU, preprocessing=Preprocessing())
        assert once.output_gap == also.output_gap != twice.output_gap

    def test_options_that_do_not_go_with_what_is_remembered(self) -> None:
        images, _ = digits("test", 24)
        remembered = Preprocessing(mean=(0.1, 0.2), std=(1, 1))
        three = "g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }"
        model = convert(parse(three), images[:, 0, :2, 0], preprocessing=remembered, steps=2).model.SerializeToString()
        with pytest.raises(ConfigError, match=r"mean has 1 numbers and std 2: .*\(remembered from the conversion"):
            evaluate_file(model, images[:, 0, :2, 0], preprocessing=Preprocessing(mean=(0.5,)))

    def test_an_option_for_arrays_goes_before_what_was_recorded_and_leaves_the_rest(self, folder: Path) -> None:
        images, labels = digits("test", 24)
        pixels = np.repeat((images * 255).astype(np.uint8), 2, axis=0).transpose(0, 2, 3, 1)
        file = convert(RELU, folder, eval_data=(folder, labels), preprocessing=self.OPTIONS, steps=2)
        model = file.model.SerializeToString()
        judged, _ = evaluate_file(
            model, (pixels, np.repeat(labels, 2)), ann=RELU, preprocessing=Preprocessing(layout="NHWC")
        )
        assert judged.ann_accuracy == file.evaluation.ann_accuracy
        np.testing.assert_allclose(judged.output_gap, file.evaluation.output_gap, rtol=1e-3)
        wrong, _ = evaluate_file(model, (folder, labels), ann=RELU, preprocessing=Preprocessing(std=(5.0,)))
        assert wrong.output_gap != file.evaluation.output_gap

    def test_images_judge_what_arrays_calibrated(self, folder: Path) -> None:
        images, labels = digits("test", 24)
        result = convert(RELU, images, eval_data=(folder, labels), preprocessing=self.OPTIONS, steps=2)
        assert result.report["preprocessing"]["crop"] == 8
        again, _ = evaluate_file(result.model.SerializeToString(), (folder, labels))
        assert again.accuracy == result.evaluation.accuracy

    def test_arrays_alone_have_no_sizes(self) -> None:
        with pytest.raises(ConfigError, match="calibration data: resize, crop and color"):
            convert(RELU, digits("calibration", 24)[0], eval_data=digits("test", 8), preprocessing=self.OPTIONS)

    def test_whole_numbers_without_images_stay_as_they_are(self) -> None:
        """Nobody said that they are pixels."""
        raw = np.round(digits("calibration", 24)[0] * 16).astype(np.uint8)
        result = convert(RELU, raw, eval_data=raw, preprocessing=Preprocessing(mean=(8.0,)), steps=2)
        assert "scale" not in result.report["preprocessing"]

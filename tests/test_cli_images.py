"""Image files on the command line: resizing, cropping, means, and what the network remembers of them."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_cases import Caller, ann, call, data, fails  # noqa: F401 - fixtures
from networks import RELU, digits
from PIL import Image

from ftbc_onnx.graph.provenance import read_record


class TestImages:
    """A folder of pictures, with preprocessing that the file remembers."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """12x10 pictures in two classes: their middle 8x8 are digits 0 and 1, bright on dark, in 0..255."""
        images, labels = digits("test")
        for label in (0, 1):
            (tmp_path / "pictures" / str(label)).mkdir(parents=True)
            for number, image in enumerate(images[labels == label][:10]):
                pixels = np.zeros((12, 10), np.uint8)
                pixels[2:10, 1:9] = np.rint(image[0] * 255)
                Image.fromarray(pixels).save(tmp_path / "pictures" / str(label) / f"{number}.png")
        return tmp_path / "pictures"

    def test_end_to_end(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        out = tmp_path / "snn.onnx"
        done = call(
            *("convert", RELU, "-T", 4, "--calib-data", folder, "--eval-data", folder, "-o", out, "--json"),
            *("--resize", "12x10", "--crop", 8, "--mean", 0, "--std", 1),
        )
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["data"] == "pictures"
        assert report["preprocessing"]["resize"] == [12, 10]
        assert report["preprocessing"]["crop"] == 8
        assert report["evaluation"]["ann_accuracy"] == 100
        assert report["evaluation"]["accuracy"][-1] >= 90
        again = call("evaluate", out, "--eval-data", folder, "--ann", RELU, "--json")
        assert json.loads(again.out)["accuracy"] == report["evaluation"]["accuracy"]
        assert json.loads(again.out)["ann_accuracy"] == 100
        assert json.loads(read_record(onnx.load(out))["preprocessing"])["mean"] == [0.0]

    def test_preprocessing_from_a_file(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        """Its filter too is in the metadata, and used again by `evaluate`."""
        size = {"height": 10, "width": 10}
        config = {"do_resize": True, "size": size, "resample": 3, "do_center_crop": True, "crop_size": 8}
        file = tmp_path / "preprocessor_config.json"
        file.write_text(json.dumps({**config, "do_normalize": True, "image_mean": [0.5], "image_std": [0.25]}))
        out = tmp_path / "snn.onnx"
        base = ("convert", RELU, "-T", 2, "--calib-data", folder, "--eval-data", folder, "-o", out, "--json")
        by_file = json.loads(call(*base, "--preprocessor", tmp_path, "--mean", 0, "--std", 1).out)
        remembered = json.loads(read_record(onnx.load(out))["preprocessing"])
        assert remembered == by_file["preprocessing"]
        assert (remembered["resample"], remembered["mean"], remembered["std"]) == ("bicubic", [0.0], [1.0])
        options = ("--resize", "10x10", "--resample", "bicubic", "--crop", "8x8", "--scale", "1/255")
        by_options = json.loads(call(*base, *options, "--mean", 0, "--std", 1).out)
        assert by_options["data_digest"] == by_file["data_digest"]
        assert by_options["evaluation"]["output_gap"] == by_file["evaluation"]["output_gap"]
        other = json.loads(call(*base, *options[:2], *options[4:], "--mean", 0, "--std", 1).out)
        assert other["evaluation"]["output_gap"] != by_file["evaluation"]["output_gap"]
        call(*base, "--preprocessor", file, "--mean", 0, "--std", 1)
        again = json.loads(call("evaluate", out, "--eval-data", folder, "--ann", RELU, "--json").out)
        assert again["output_gap"] == by_file["evaluation"]["output_gap"]
        fails(call(*base[:-1], "--preprocessor", tmp_path / "none.json"), 2, "none.json' cannot be read")

    def test_a_diagnosis_on_arrays_tries_on_arrays(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        """Which are prepared as `evaluate` does it; and what does not fit is known before the diagnosis."""
        out, arrays = tmp_path / "snn.onnx", tmp_path / "pixels.npy"
        np.save(arrays, np.rint(digits("test", 40)[0] * 255).astype(np.uint8))
        base = ("convert", RELU, "-T", 2, "--neuron", "if", "--threshold", "percentile", "--percentile", 60)
        assert call(*base, "--crop", 8, "--calib-data", folder, "-o", out).code == 0
        diagnose = ("diagnose", out, "--ann", RELU, "--data", arrays, "--samples", 8, "--try", "--json", "--calib-data")
        report = json.loads(call(*diagnose, arrays).out)
        assert len(report["trials"]) > 1
        fails(call(*diagnose, tmp_path / "none.npy"), 4, "no such file or folder")

    def test_arrays_have_no_sizes(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        (tmp_path / "preprocessor_config.json").write_text('{"size": 8, "image_mean": [0], "image_std": [1]}')
        done = call("convert", ann, "--calib-data", data, "--preprocessor", tmp_path)
        fails(done, 2, "work on image files", "give its --scale, --mean and --std instead")

    def test_mean_and_std_change_what_the_network_sees(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        def ann_accuracy(*options: object) -> float:
            done = call(
                *("convert", RELU, "-T", 1, "--calib-data", folder, "--eval-data", folder, "--crop", 8, "--json"),
                *("-o", tmp_path / "o.onnx", "--rule", "none", *options),
            )
            assert done.code == 0, done.err
            return json.loads(done.out)["evaluation"]["ann_accuracy"]

        assert ann_accuracy() == 100
        assert ann_accuracy("--mean", 1, "--std", -1) < 60  # dark on bright

    def test_wrong_size_names_the_options(self, call: Caller, folder: Path) -> None:
        fails(call("convert", RELU, "--calib-data", folder), 4, "is 12x10", "expects 8x8: pass --resize and --crop")
        done = call("convert", RELU, "--calib-data", folder, "--resize", "10x9", "--crop", 9)
        fails(done, 4, "is 9x9 (height x width) after --resize 10x9 --crop 9", "--resize and --crop that give it")

    def test_class_folders_that_are_not_one_for_each_class(self, call: Caller, folder: Path, tmp_path: Path) -> None:
        """Their numbers are likely not those of the classes, unless they are called by these."""
        said = "there are 2 class folders, and output 'logits' has 10 classes: folders are numbered in the order"
        out = tmp_path / "o.onnx"
        convert = ("convert", RELU, "-T", 1, "--neuron", "if", "--crop", 8, "-o", out, "--calib-data", folder)
        judge = ("evaluate", out, "--eval-data", folder)
        assert "class folders" not in call(*convert, "--eval-data", folder).err
        (folder / "0").rename(folder / "nought")
        for command in ((*convert, "--eval-data", folder), judge, (*judge, "--ann", RELU)):
            done = call(*command)
            assert done.code == 0
            assert " ".join(done.err.split()).count(said) == 1
        np.save(tmp_path / "labels.npy", [0] * 10 + [1] * 10)
        assert "class folders" not in call(*judge, "--labels", tmp_path / "labels.npy").err
        for number in range(8):
            (folder / f"z{number}").mkdir()  # empty ones count
        assert "class folders" not in call(*judge).err

"""Preprocessing: what is done to data on the way, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from data_cases import F32, FLAT, NCHW, NHWC, numbers, pixels, refused, whole

from ftbc_onnx.data import InputSpec, open_data
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.preprocessing import Preprocessing


class TestPreprocessing:
    def test_arithmetic(self) -> None:
        x = pixels(4, 3, 8, 6)
        options = Preprocessing(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        mean, std = np.float32(options.mean).reshape(3, 1, 1), np.float32(options.std).reshape(3, 1, 1)
        wanted = (x.astype(np.float32) * np.float32(1 / 255) - mean) / std
        got = whole(open_data(x, NCHW, options))
        assert got.dtype == F32
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(
            whole(open_data(x.transpose(0, 2, 3, 1), NHWC, options)), wanted.transpose(0, 2, 3, 1)
        )

    def test_each_step_alone(self) -> None:
        x = pixels(2, 4)
        y = x.astype(np.float32)
        for options, wanted in (
            (Preprocessing(), y),
            (Preprocessing(scale=2), y * 2),
            (Preprocessing(mean=(1.5,)), y - np.float32(1.5)),
            (Preprocessing(std=(1, 2, 4, 8)), y / np.float32([1, 2, 4, 8])),
        ):
            np.testing.assert_array_equal(whole(open_data(x, FLAT, options)), wanted)

    def test_layout(self) -> None:
        x = numbers(4, 3, 8, 6)
        moved = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
        np.testing.assert_array_equal(whole(open_data(moved, NCHW, Preprocessing(layout="NHWC"))), x)
        np.testing.assert_array_equal(whole(open_data(x, NHWC, Preprocessing(layout="NCHW"))), moved)
        np.testing.assert_array_equal(whole(open_data(x, NCHW, Preprocessing(layout="NCHW"))), x)

    def test_only_images_among_several_inputs(self) -> None:
        inputs = [NCHW[0], InputSpec("v", F32, ("N", 2)), InputSpec("t", np.dtype(np.int64), ("N", 2))]
        arrays = {"x": numbers(2, 3, 8, 6), "v": numbers(2, 2), "t": np.ones((2, 2), np.int64)}
        source = open_data(arrays, inputs, Preprocessing(scale=2))
        np.testing.assert_array_equal(whole(source), arrays["x"] * 2)
        np.testing.assert_array_equal(whole(source, "v"), arrays["v"])
        np.testing.assert_array_equal(whole(source, "t"), arrays["t"])

    def test_does_not_fit_the_data(self) -> None:
        refused(
            ConfigError,
            "2 channels",
            "have 3",
            what=numbers(1, 3, 8, 6),
            inputs=NCHW,
            preprocessing=Preprocessing(mean=(1, 2)),
        )
        tokens = [InputSpec("x", np.dtype(np.int64), ("N", 4))]
        refused(ConfigError, "floats", what=np.ones((1, 4), int), inputs=tokens, preprocessing=Preprocessing(scale=2))
        for options in (Preprocessing(resize=4), Preprocessing(crop=4), Preprocessing(color="bgr")):
            refused(ConfigError, "image files", what=numbers(1, 4), preprocessing=options)

    def test_double_and_half_models(self) -> None:
        for dtype in (np.float16, np.float64):
            got = whole(open_data(np.full((1, 4), 0.1), [InputSpec("x", np.dtype(dtype), ("N", 4))]))
            assert got.dtype == dtype
            np.testing.assert_array_equal(got, np.full((1, 4), dtype(0.1)))

    @pytest.mark.parametrize(
        "values",
        [
            {"resize": 0},
            {"resize": (4,)},
            {"resize": (4, 4, 4)},
            {"crop": -1},
            {"crop": 2.5},
            {"crop": True},
            {"scale": 0},
            {"scale": float("nan")},
            {"scale": "much"},
            {"mean": ()},
            {"mean": 0.5},
            {"mean": "123"},
            {"mean": (1, float("inf"))},
            {"std": (1, 0)},
            {"mean": (1, 2), "std": (1, 2, 3)},
            {"layout": "HWC"},
            {"color": "cmyk"},
        ],
    )
    def test_refused_values(self, values: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=re.escape(next(iter(values)))) as caught:
            Preprocessing(**values)
        assert "\n" not in str(caught.value)

    def test_record(self) -> None:
        import json

        options = Preprocessing(
            resize=9, crop=(8, 6), scale=0.5, mean=(1, 2, 3), std=(1, 1, 2), layout="NHWC", color="bgr"
        )
        record = json.loads(json.dumps(options.as_dict()))
        assert record["crop"] == [8, 6]
        assert Preprocessing.from_dict(record) == options
        assert Preprocessing().as_dict() == {}
        assert Preprocessing.from_dict({}) == Preprocessing()
        with pytest.raises(ConfigError, match="colour"):
            Preprocessing.from_dict({"colour": "rgb"})

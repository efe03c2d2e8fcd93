"""Hugging Face's and timm's files of preprocessing, against the order of steps that these libraries document."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftbc_onnx import Preprocessing
from ftbc_onnx.cli.values import preprocessing_of
from ftbc_onnx.data import InputSpec, open_data
from ftbc_onnx.errors import ConfigError

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NORMALISED = {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": MEAN, "image_std": STD}
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 8, "width": 6},
    "resample": 2,
    **NORMALISED,
}
CLIP = {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "do_resize": True,
    "size": {"shortest_edge": 12},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 8, "width": 8},
    "do_convert_rgb": True,
    "do_reduce_labels": False,
    **NORMALISED,
}
CONVNEXT = {
    "image_processor_type": "ConvNextImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 14},
    "crop_pct": 0.875,
    "resample": 3,
    **NORMALISED,
}
TIMM = {
    "architecture": "resnet",
    "pretrained_cfg": {
        "input_size": [3, 14, 14],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": MEAN,
        "std": STD,
    },
}


def written(folder: Path, config: Any, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(config if isinstance(config, str) else json.dumps(config))
    return folder / name


def read(folder: Path, config: Mapping[str, Any], **changes: Any) -> Preprocessing:
    changed = {key: value for key, value in {**config, **changes}.items() if value != "absent"}
    return Preprocessing.from_preprocessor_config(written(folder, changed))


def stated(
    image: Image.Image,
    *,
    resize: tuple[int, int] | int | None = None,
    resample: int = 2,
    crop: tuple[int, int] | None = None,
    rescale: float = 1 / 255,
    mean: list[float] | None = None,
    std: list[float] | None = None,
) -> np.ndarray:
    """Resize, crop, rescale, normalise, channels first: transformers' `preprocess`, in NumPy and Pillow."""
    width, height = image.size
    if isinstance(resize, int):  # get_resize_output_image_size, of the shorter side
        short, long = min(width, height), max(width, height)
        other = int(resize * long / short)
        resize = (resize, other) if height <= width else (other, resize)
    if resize is not None:
        image = image.resize((resize[1], resize[0]), resample=Image.Resampling(resample))
    x = np.asarray(image)
    if crop is not None:
        top, left = (x.shape[0] - crop[0]) // 2, (x.shape[1] - crop[1]) // 2
        x = x[top : top + crop[0], left : left + crop[1]]
    y = x.astype(np.float64) * rescale
    if mean is not None and std is not None:
        y = (y - np.array(mean)) / np.array(std)
    return y.transpose(2, 0, 1)


@pytest.fixture
def picture(tmp_path: Path) -> Image.Image:
    """24 x 36 pixels with structure on every scale; even margins, so that a central crop is one and the same."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:24, :36]
    waves = 128 + 80 * np.sin(x / 5) * np.cos(y / 4) + 40 * rng.standard_normal((24, 36))
    image = Image.fromarray(np.clip(np.stack([waves, waves[::-1], 255 - waves], 2), 0, 255).astype(np.uint8))
    image.save(tmp_path / "images" / "a.png")
    return image


NORM = {"mean": MEAN, "std": STD}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ViT": (VIT, {"resize": (8, 6), **NORM}),
    "ViT, one number is a square": ({**VIT, "size": 8}, {"resize": (8, 8), **NORM}),
    "CLIP": (CLIP, {"resize": 12, "resample": 3, "crop": (8, 8), **NORM}),
    "CLIP, one number is the shorter side": (
        {**CLIP, "size": 12, "crop_size": 8},
        {"resize": 12, "resample": 3, "crop": (8, 8), **NORM},
    ),
    "DeiT": (
        {**CLIP, "feature_extractor_type": "DeiTFeatureExtractor", "size": 12},
        {"resize": (12, 12), "resample": 3, "crop": (8, 8), **NORM},
    ),
    "no kind, no crop": ({**VIT, "image_processor_type": None, "size": 8}, {"resize": (8, 8), **NORM}),
    "no kind, a crop": (
        {**CLIP, "feature_extractor_type": None, "size": 12},
        {"resize": 12, "resample": 3, "crop": (8, 8), **NORM},
    ),
    "ConvNext": (CONVNEXT, {"resize": 16, "resample": 3, "crop": (14, 14), **NORM}),
    "ConvNext, large": ({**CONVNEXT, "size": {"shortest_edge": 384}}, {"resize": (384, 384), "resample": 3, **NORM}),
    "PoolFormer": (
        {**CONVNEXT, "image_processor_type": "PoolFormerImageProcessor", "crop_size": 8, "do_center_crop": True},
        {"resize": 16, "resample": 3, "crop": (8, 8), **NORM},
    ),
    "no resize": ({**CLIP, "do_resize": False}, {"crop": (8, 8), **NORM}),
    "no crop": ({**CLIP, "do_center_crop": False, "size": 8}, {"resize": 8, "resample": 3, **NORM}),
    "no rescale": ({**VIT, "do_rescale": False}, {"resize": (8, 6), "rescale": 1.0, **NORM}),
    "rescale": ({**VIT, "rescale_factor": 1 / 127.5}, {"resize": (8, 6), "rescale": 1 / 127.5, **NORM}),
    "no normalize": ({**VIT, "do_normalize": False}, {"resize": (8, 6)}),
    "nearest": ({**VIT, "resample": 0}, {"resize": (8, 6), "resample": 0, **NORM}),
    "lanczos": ({**VIT, "resample": 1}, {"resize": (8, 6), "resample": 1, **NORM}),
    "box": ({**VIT, "resample": 4}, {"resize": (8, 6), "resample": 4, **NORM}),
    "hamming": ({**VIT, "resample": 5}, {"resize": (8, 6), "resample": 5, **NORM}),
    "EfficientNet divides twice": (
        {**VIT, "image_processor_type": "EfficientNetImageProcessor", "include_top": True},
        {"resize": (8, 6), **NORM},
    ),
    "timm": (TIMM, {"resize": 16, "resample": 3, "crop": (14, 14), **NORM}),
    "timm, squashed": (
        {"pretrained_cfg": {**TIMM["pretrained_cfg"], "input_size": [3, 7, 14], "crop_mode": "squash"}},
        {"resize": (8, 16), "resample": 3, "crop": (7, 14), **NORM},
    ),
}
"""A file, and what the libraries say that it does."""


@pytest.mark.parametrize("case", CASES)
def test_gives_what_the_libraries_state(tmp_path: Path, picture: Image.Image, case: str) -> None:
    config, steps = CASES[case]
    options = read(tmp_path, config)
    expected = stated(picture, **steps)
    if "divides twice" in case:
        expected /= np.array(STD)[:, None, None]
    inputs = [InputSpec("x", np.dtype(np.float32), ("N", 3, *expected.shape[1:]))]
    (batch,) = open_data(tmp_path / "images", inputs, options).batches(1)
    np.testing.assert_allclose(batch.feeds["x"][0], expected, rtol=1e-5, atol=1e-5)


def test_a_crop_with_an_odd_margin(tmp_path: Path, picture: Image.Image) -> None:
    """7 columns are left over: 4 go to the left as in torchvision (half to even), where transformers' NumPy says 3."""
    options = read(tmp_path, CLIP, size={"shortest_edge": 10})
    inputs = [InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))]
    (batch,) = open_data(tmp_path / "images", inputs, options).batches(1)
    whole = stated(picture, resize=10, resample=3, **NORM)
    assert whole.shape == (3, 10, 15)
    np.testing.assert_allclose(batch.feeds["x"][0], whole[:, 1:9, 4:12], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("CLIP", "leaves out do_normalize, do_center_crop, resample, which a CLIP processor then chooses itself"),
        ("ViT", "leaves out do_normalize, which a ViT processor"),
        ("Siglip", "leaves out do_normalize, resample, which"),
    ],
)
def test_what_a_kind_chooses_itself_must_be_said(tmp_path: Path, kind: str, said: str) -> None:
    config = {"image_processor_type": f"{kind}ImageProcessor", "do_resize": True, "size": 224}
    with pytest.raises(ConfigError, match=re.escape(said)):
        read(tmp_path, config)


def test_timm_resizes_with_bicubic_if_nothing_is_said(tmp_path: Path) -> None:
    config = {"pretrained_cfg": {key: value for key, value in TIMM["pretrained_cfg"].items() if key != "interpolation"}}
    assert read(tmp_path, config).resample == "bicubic"


def test_channels_in_the_other_order(tmp_path: Path, picture: Image.Image) -> None:
    config = {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 8},
        "do_center_crop": True,
        "crop_size": {"height": 8, "width": 8},
        "do_flip_channel_order": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
    }
    inputs = [InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 8))]
    (batch,) = open_data(tmp_path / "images", inputs, read(tmp_path, config)).batches(1)
    np.testing.assert_allclose(batch.feeds["x"][0], stated(picture, resize=8, crop=(8, 8))[::-1], rtol=1e-5)


def test_transformers_itself(tmp_path: Path, picture: Image.Image) -> None:
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 6}, image_mean=MEAN, image_std=STD)
    processor.save_pretrained(tmp_path)
    expected = np.asarray(processor(picture, return_tensors="np")["pixel_values"])
    inputs = [InputSpec("x", np.dtype(np.float32), ("N", 3, 8, 6))]
    options = Preprocessing.from_preprocessor_config(tmp_path)
    (batch,) = open_data(tmp_path / "images", inputs, options).batches(1)
    np.testing.assert_allclose(batch.feeds["x"], expected, rtol=1e-5, atol=1e-5)


class TestFolders:
    def test_of_hugging_face_goes_first(self, tmp_path: Path) -> None:
        written(tmp_path, TIMM, "config.json")
        assert Preprocessing.from_preprocessor_config(tmp_path).resize == 16
        written(tmp_path, VIT)
        assert Preprocessing.from_preprocessor_config(str(tmp_path)).resize == (8, 6)

    def test_without_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json or config\.json"):
            Preprocessing.from_preprocessor_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"do_pad": True}, "do_pad true is not supported"),
        ({"do_thumbnail": True}, "do_thumbnail"),
        ({"rescale_offset": True}, "rescale_offset true"),
        ({"image_processor_type": "LevitImageProcessor"}, "processors of the kind Levit"),
        ({"size": {"shortest_edge": 8, "longest_edge": 9}}, 'size {"shortest_edge": 8, "longest_edge": 9}'),
        ({"size": {"height": 8}}, 'size {"height": 8}'),
        ({"size": "absent"}, "size null"),
        ({"size": 0}, "size 0"),
        ({"size": True}, "size true"),
        ({"size": "large"}, 'size "large"'),
        ({"do_center_crop": True}, "crop_size null"),
        ({"crop_size": {"shortest_edge": 8}}, "crop_size"),
        ({"resample": 9}, "resample 9 is no filter"),
        ({"resample": "cubic"}, "resample 'cubic' is no filter"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"rescale_factor": "1/255"}, "rescale_factor"),
        ({"image_mean": "absent", "do_normalize": True}, "image_mean null"),
        ({"image_std": ["a"]}, "image_std"),
        ({"image_std": [0, 1, 1]}, "std"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order beside do_normalize"),
        ({"crop_pct": -1}, "crop_pct -1"),
        ({"crop_pct": 0.9}, "crop_pct with a size of 8x6"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, VIT, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"crop_mode": "border"}, "crop_mode 'border'"),
        ({"input_size": [3, 8, 6]}, "8x6"),
        ({"input_size": [8]}, "input_size [8]"),
        ({"interpolation": "random"}, "interpolation 'random'"),
        ({"crop_pct": "all"}, 'crop_pct "all"'),
    ],
)
def test_what_timm_asks_for_too(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {"pretrained_cfg": {**TIMM["pretrained_cfg"], **changes}})
    assert said in str(caught.value)


@pytest.mark.parametrize("content", ["", "[1", "[]", "{}", '{"hidden_size": 768}', "3"])
def test_other_files(tmp_path: Path, content: str) -> None:
    file = written(tmp_path, content)
    with pytest.raises(ConfigError, match=r"give a preprocessor_config\.json"):
        Preprocessing.from_preprocessor_config(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Preprocessing.from_preprocessor_config(tmp_path / "none.json")


def test_keys_that_do_nothing(tmp_path: Path) -> None:
    quiet = {"do_pad": False, "do_reduce_labels": True, "processor_class": "AutoProcessor", "size_divisor": None}
    assert read(tmp_path, VIT, **quiet) == read(tmp_path, VIT)


def test_options_go_before_the_file(tmp_path: Path) -> None:
    file = written(tmp_path, CLIP)
    names = ("mean", "std", "scale", "resize", "crop", "resample", "layout", "color")
    given = {"preprocessor": file, **dict.fromkeys(names), "mean": "0,0.5,1", "resample": "lanczos"}
    expected = Preprocessing(12, (8, 8), 1 / 255, (0.0, 0.5, 1.0), tuple(STD), resample="lanczos")
    assert preprocessing_of(given) == expected
    assert given == {}
    assert preprocessing_of({"preprocessor": None, **dict.fromkeys(names)}) is None


def test_the_filter_is_remembered(tmp_path: Path) -> None:
    options = read(tmp_path, CLIP)
    assert options.as_dict()["resample"] == "bicubic"
    assert Preprocessing.from_dict(json.loads(json.dumps(options.as_dict()))) == options
    with pytest.raises(ConfigError, match=r"resample 'cubic' is unknown: use one of nearest, box"):
        Preprocessing(resample="cubic")  # type: ignore[arg-type]

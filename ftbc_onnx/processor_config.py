"""Image preprocessing as others write it down: Hugging Face's `preprocessor_config.json`, timm's `config.json`.

    x = the image, RGB, 0..255
    1. do_resize       x = resize(x, size, resample)
    2. do_center_crop  x = the central crop_size of x
    3. do_rescale      x = x * rescale_factor
    4. do_normalize    x = (x - image_mean) / image_std

`size` is {height, width}, or {shortest_edge}, the length of the shorter side; one number is either, by the kind of
processor (`SQUARE`). With `crop_pct` the image is resized to int(size / crop_pct) first:

* a crop_size is given (PoolFormer): the crop is that;
* none, and size below 384 (ConvNext): the shorter side is resized, and the crop is size x size;
* none, and size from 384 on: the image is resized to size x size, without a crop.

timm: the shorter side is resized to floor(side / crop_pct), then cropped to input_size, then 3 and 4.

Sources: transformers, `image_processing_*.py` (`preprocess`, `resize`, `get_size_dict`); timm,
`data/transforms_factory.py` (`transforms_imagenet_eval`). What these do and this order cannot say is refused.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ftbc_onnx.errors import ConfigError

NAMES = ("preprocessor_config.json", "config.json")
"""What is looked for in a folder, in this order."""

SQUARE = {
    **dict.fromkeys(("Beit", "Blip", "DeiT", "EfficientNet", "Siglip", "ViT"), True),
    **dict.fromkeys(("Bit", "CLIP", "ConvNext", "MobileNetV1", "MobileNetV2", "MobileViT", "PoolFormer"), False),
}
"""Kinds of processors that work in the order above -> whether a size of one number means both sides."""

_CROPPING = frozenset("Beit Bit CLIP DeiT MobileNetV1 MobileNetV2 MobileViT PoolFormer".split())
"""Kinds that crop if nothing is said."""

_BILINEAR = frozenset("ConvNext MobileNetV1 MobileNetV2 MobileViT ViT".split())
"""Kinds that resize bilinearly if nothing is said."""

RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's numbers of filters."""

_KNOWN = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_flip_channel_order"}
_HARMLESS = {"do_convert_rgb", "do_reduce_labels"}  # images are always RGB here; labels of pixels are not read
_OTHERWISE = ("rescale_offset", "size_divisor", "pad_size", "ensure_multiple_of", "keep_aspect_ratio")
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # timm's defaults
_TIMM_CROP = 0.875  # timm's default


def read_processor_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Values of `ftbc_onnx.Preprocessing` by name, from a file, or from the folder that it stands in.

    Raises:
        ConfigError: it cannot be read, is no such file, or asks for something else than this module's head says.
    """
    file = Path(path)
    if file.is_dir():
        found = [file / name for name in NAMES if (file / name).is_file()]
        if not found:
            raise ConfigError(f"preprocessor '{path}': the folder has no {' or '.join(NAMES)}: give the file")
        file = found[0]
    where = f"preprocessor '{file}'"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read ({error}): give a preprocessor_config.json") from error
    if isinstance(config, dict):
        if isinstance(config.get("pretrained_cfg"), dict):
            return _timm(config["pretrained_cfg"], where)
        if any(name in config for name in (*_KNOWN, "image_mean", "size")):
            return _transformers(config, where)
    raise ConfigError(
        f"{where} says nothing of images (do_resize, size, image_mean, or timm's pretrained_cfg): "
        "give a preprocessor_config.json"
    )


def _transformers(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An image processor of Hugging Face transformers."""
    kind = _kind(config)
    if kind and kind not in SQUARE:
        raise _unlike(where, f"processors of the kind {kind} work in their own way")
    left_out = [names[0] for names in _needed(kind, config) if not config.keys() & set(names)]
    if left_out:
        raise ConfigError(
            f"{where} leaves out {', '.join(left_out)}, which a {kind} processor then chooses itself: add it, or give "
            "--resize, --crop, --resample, --mean and --std instead"
        )
    for name, value in config.items():
        if value and (name in _OTHERWISE or (name.startswith("do_") and name not in _KNOWN | _HARMLESS)):
            raise _unlike(where, f"{name} {json.dumps(value)} is not supported")
    values: dict[str, Any] = {}
    if config.get("do_resize", "size" in config):
        values |= _resized(config, kind, where)
    if "crop" not in values and _crops(config):
        values["crop"] = _sides(config.get("crop_size"), where, "crop_size", True)
    values["scale"] = 1.0
    if config.get("do_rescale", True):
        values["scale"] = _number(config.get("rescale_factor", 1 / 255), where, "rescale_factor")
    if config.get("do_normalize", "image_mean" in config and kind != "MobileViT"):
        values["mean"], values["std"] = (_channels(config.get(n), where, n) for n in ("image_mean", "image_std"))
        if kind == "EfficientNet" and config.get("include_top", True):  # divides once more
            values["std"] = tuple(s * s for s in values["std"])
    if config.get("do_flip_channel_order", kind == "MobileViT"):
        if "mean" in values:
            raise _unlike(where, "do_flip_channel_order beside do_normalize is not supported")
        values["color"] = "bgr"
    return values


def _needed(kind: str, config: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What a kind of processor has a default of its own for: one of each of these must be said."""
    if not kind:
        return []
    needed: list[tuple[str, ...]] = [] if kind == "MobileViT" else [("do_normalize", "image_mean")]
    if kind in _CROPPING:
        needed.append(("do_center_crop", "crop_size", "crop_pct"))
    if kind not in _BILINEAR and config.get("do_resize", "size" in config):
        needed.append(("resample",))
    return needed


def _kind(config: Mapping[str, Any]) -> str:
    """ViT of ViTImageProcessor, ViTImageProcessorFast and ViTFeatureExtractor; empty if none is named."""
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    for ending in ("Fast", "Pil", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    return kind


def _crops(config: Mapping[str, Any]) -> bool:
    return bool(config.get("do_center_crop", "crop_size" in config))


def _resized(config: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """Filter and sizes, with the crop of `crop_pct`."""
    number = config.get("resample", 2)
    if not isinstance(number, int) or not 0 <= number < len(RESAMPLE):
        raise ConfigError(f"{where}: resample {number!r} is no filter: expected 0 to {len(RESAMPLE) - 1}")
    values: dict[str, Any] = {"resample": RESAMPLE[number]}
    size = _sides(config.get("size"), where, "size", SQUARE.get(kind, not _crops(config)))
    share = config.get("crop_pct")
    if share is None:
        return values | {"resize": size}
    share = _number(share, where, "crop_pct")
    if isinstance(size, int) and not _crops(config):
        if size >= 384:
            return values | {"resize": (size, size)}
        return values | {"resize": int(size / share), "crop": size}
    if isinstance(size, int) or size[0] == size[1]:  # a square is taken for its side
        return values | {"resize": int((size if isinstance(size, int) else size[0]) / share)}
    raise _unlike(where, f"crop_pct with a size of {size[0]}x{size[1]} is not supported")


def _timm(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The `pretrained_cfg` of a timm model: its evaluation transform."""
    shape = config.get("input_size")
    if not isinstance(shape, list) or len(shape) != 3 or not all(_is_side(side) for side in shape):
        raise ConfigError(f"{where}: input_size {shape!r} is no [channels, height, width]")
    crop = (shape[1], shape[2])
    mode, filter_ = config.get("crop_mode") or "center", config.get("interpolation") or "bicubic"
    if filter_ not in RESAMPLE:
        raise _unlike(where, f"interpolation {filter_!r} is not supported")
    if mode not in ("center", "squash") or (mode == "center" and crop[0] != crop[1]):
        raise _unlike(where, f"crop_mode {mode!r} with input_size {crop[0]}x{crop[1]} is not supported")
    share = _number(config.get("crop_pct") or _TIMM_CROP, where, "crop_pct")
    before = tuple(math.floor(side / share) for side in crop)
    mean, std = (
        _channels(config.get(name) or default, where, name)
        for name, default in zip(("mean", "std"), _IMAGENET, strict=True)
    )
    resize = before if mode == "squash" else before[0]
    return {"resample": filter_, "resize": resize, "crop": crop, "scale": 1 / 255, "mean": mean, "std": std}


def _sides(value: Any, where: str, name: str, square: bool) -> int | tuple[int, int]:
    """The shorter side, or (height, width)."""
    if isinstance(value, list) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if _is_side(value):
        return (value, value) if square else int(value)
    if isinstance(value, dict):
        given = {key: side for key, side in value.items() if side is not None}
        if all(_is_side(side) for side in given.values()):
            if given.keys() == {"height", "width"}:
                return given["height"], given["width"]
            if given.keys() == {"shortest_edge"} and name == "size":
                return int(given["shortest_edge"])
    raise _unlike(where, f"{name} {json.dumps(value)} is not supported")


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: Any, where: str, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{where}: {name} {json.dumps(value)} is no positive number")
    return float(value)


def _channels(value: Any, where: str, name: str) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise ConfigError(f"{where}: {name} {json.dumps(value)} is no list of numbers, one per channel")
    return tuple(float(v) for v in values)


def _unlike(where: str, what: str) -> ConfigError:
    return ConfigError(f"{where}: {what}: give --resize, --crop, --resample, --mean and --std instead")

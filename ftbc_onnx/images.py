"""What is done to samples between storage and model: checks, layout, labels; and image folders.

Images are decoded one batch at a time to uint8 [n, H, W, C]; arithmetic is in float32.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from ftbc_onnx.errors import ConfigError, DataError
from ftbc_onnx.image_list import list_images
from ftbc_onnx.preprocessing import PIXELS, Array, Layout, Preprocessing

Shape: TypeAlias = Sequence["int | str | None"]

LABEL_KEYS = ("label", "labels", "y", "target", "targets")
PAIRED = "(labels)"  # stands for the key of labels that come without one
UNNAMED = "(array)"  # stands for the key of an array that comes without one
WIDE_MODES = ("I", "F")  # 16- and 32-bit greys: Pillow would clip them to 8 bits


def model_layout(shape: Shape) -> Layout:
    """The layout that a model's 4-D input shape shows: NHWC when only its last axis counts 1 or 3 channels."""
    return "NHWC" if shape[1] not in (1, 3) and shape[-1] in (1, 3) else "NCHW"


def channel_axis(shape: Shape) -> int:
    """The axis of channels, or of features, of a model input; 0 if it has none."""
    return 3 if len(shape) == 4 and model_layout(shape) == "NHWC" else min(1, len(shape) - 1)


def arrange(x: Array, shape: Shape, layout: Layout | None) -> Array:
    """Samples in `layout` (None: the model's) with the axes of the model input `shape`, a single channel added."""
    if len(shape) != 4:
        return x
    wanted = model_layout(shape)
    if x.ndim == 3 and shape[channel_axis(shape)] == 1:
        return np.expand_dims(x, channel_axis(shape))
    if x.ndim != 4 or layout in (None, wanted):
        return x
    return np.transpose(x, (0, 3, 1, 2) if wanted == "NCHW" else (0, 2, 3, 1))


def cast(x: Array, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    """[n, ...] as `dtype`, and which samples [n] it cannot hold: not finite, or outside an integer's range."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = np.ascontiguousarray(x, dtype)
    if dtype.kind == "f":
        return y, ~np.isfinite(y.reshape(len(y), -1)).all(axis=1)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return y, np.array([int(row.min()) < low or int(row.max()) > high for row in x])


def show(shape: Shape) -> str:
    """A shape as [N, 3, ?, 8]."""
    return f"[{', '.join('?' if side is None else str(side) for side in shape)}]"


def check_form(x: Array, dtype: np.dtype[Any], shape: Shape, layout: Layout | None, where: str) -> None:
    """DataError unless `x` [n, ...] holds samples for a model input of this dtype and shape; values are not read."""
    if x.ndim == 0 or 0 in x.shape:
        raise DataError(f"{where} is empty or has no sample axis: its shape is {show(x.shape)}, expected {show(shape)}")
    if not {x.dtype.kind, dtype.kind} <= set("biuf") or (x.dtype.kind == "f" and dtype.kind != "f"):
        raise DataError(f"{where} holds {x.dtype}, which cannot be fed to an input of {dtype}: convert it")

    def fits(given: Layout | None) -> bool:
        sides = arrange(x, shape, given).shape
        pairs = zip(sides[1:], shape[1:], strict=False)
        return len(sides) == len(shape) and all(want == side for side, want in pairs if isinstance(want, int))

    if not fits(layout):
        others: tuple[Layout, ...] = ("NCHW", "NHWC")
        hints = [f"pass --layout {other}" for other in others if fits(other)]
        hints += ["add the sample axis"] if x.ndim + 1 == len(shape) else ["reshape it"]
        raise DataError(f"{where} has shape {show(x.shape)}, the model expects {show(shape)}: {hints[0]}")


def is_pair(item: Any) -> bool:
    """Whether `item` is (array or mapping, labels)."""
    pair = isinstance(item, (tuple, list)) and len(item) == 2 and not isinstance(item[1], Mapping)
    return pair and (isinstance(item[0], Mapping) or hasattr(item[0], "__array__"))


def is_path_and_labels(item: Any) -> bool:
    """Whether `item` is (path, labels)."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], (str, os.PathLike))


def named_arrays(item: Any, where: str) -> dict[str, Array]:
    """key -> array for an array, a mapping, or either with labels; nothing is copied. DataError if it is none."""
    data, labels = item if is_pair(item) else (item, None)
    named = dict(data) if isinstance(data, Mapping) else {UNNAMED: data}
    if labels is not None:
        named[PAIRED] = labels
    try:
        return {str(key): np.asarray(value) for key, value in named.items()}
    except Exception as error:  # whatever foreign arrays raise
        raise DataError(f"{where}: cannot be read as an array ({error}): expected numbers") from error


def match_keys(found: Sequence[str], names: Sequence[str], where: str) -> tuple[dict[str, str], str | None]:
    """Input name -> key among those `found`, and the key of the labels if any; a single input takes any key.

    Raises DataError for inputs without an array, keys that no input has, and several keys that mean labels.
    """
    labels = [key for key in found if key in (*LABEL_KEYS, PAIRED) and key not in names]
    others = [key for key in found if key not in labels]
    if len(labels) > 1:
        raise DataError(f"{where}: the keys {', '.join(labels)} all mean labels: expected one of them")
    label = labels[0] if labels else None
    if len(names) == 1 and len(others) == 1:
        return {names[0]: others[0]}, label
    missing = [name for name in names if name not in others]
    unknown = [key for key in others if key not in names and len(names) > 1]
    if missing or unknown:
        what = f"no array for {', '.join(missing)}" if missing else f"unknown key {', '.join(unknown)}"
        raise DataError(
            f"{where}: {what}; found {', '.join(found) or 'none'}, expected an array for each of {', '.join(names)}"
        )
    return {name: name for name in names}, label


def as_labels(values: npt.ArrayLike, count: int, where: str) -> Array:
    """`count` class numbers [count] int64, from integers, integral floats or one-hot rows; DataError otherwise."""
    try:
        x = np.asarray(values)
    except Exception as error:  # whatever foreign arrays raise
        raise DataError(f"{where}: labels cannot be read as an array: {error}") from error
    if x.dtype.kind in "biuf" and x.ndim == 2 and x.shape[1] > 0:
        one_hot = bool(np.isin(x, (0, 1)).all() and (x.sum(axis=1) == 1).all())
        x = x[:, 0] if x.shape[1] == 1 else x.argmax(axis=1) if one_hot else x
    if x.ndim != 1 or x.dtype.kind not in "biuf":
        raise DataError(f"{where}: labels are {x.dtype} of shape {show(x.shape)}, expected {count} whole numbers")
    if len(x) != count:
        raise DataError(f"{where}: there are {len(x)} labels for {count} samples, expected one for each")
    good = (x >= 0) & (x < 2**53) & (x == np.floor(x)) if x.dtype.kind != "b" else np.ones(count, bool)
    if not good.all():
        index = int(good.argmin())
        raise DataError(
            f"{where}: the label of sample {index} is {x[index]}, expected whole numbers from 0, which are classes "
            "(targets of another kind have to be left out)"
        )
    return x.astype(np.int64)


def read_image(path: Path, preprocessing: Preprocessing) -> Array:
    """One decoded, upright, resized and cropped image, uint8 [H, W, C]; DataError names a broken file."""
    try:
        with Image.open(path) as opened:
            if opened.mode.split(";")[0] in WIDE_MODES:
                raise ValueError("it has more than 8 bits per channel")
            image: Image.Image = ImageOps.exif_transpose(opened)
            if image.mode == "P":
                image = image.convert("RGBA")  # first, for palettes with transparency
            image = image.convert("L" if preprocessing.color == "gray" else "RGB")
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"image {path} cannot be read: {error}; replace or remove the file") from error
    pixels = np.asarray(_crop(_resize(image, preprocessing), preprocessing.crop, path))
    if preprocessing.color == "gray":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if preprocessing.color == "bgr" else pixels


def _resize(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Antialiased; an int is the length that the shorter side gets."""
    size = preprocessing.resize
    if size is None:
        return image
    width, height = image.size
    if isinstance(size, int):
        short = min(width, height)
        target = (int(size * width / short), int(size * height / short))
    else:
        target = (size[1], size[0])
    name = preprocessing.resample or "bilinear"
    return image if target == image.size else image.resize(target, Image.Resampling[name.upper()])


def _crop(image: Image.Image, size: int | tuple[int, int] | None, path: Path) -> Image.Image:
    """The central part; DataError when the image is smaller."""
    if size is None:
        return image
    rows, columns = (size, size) if isinstance(size, int) else size
    width, height = image.size
    if rows > height or columns > width:
        raise DataError(
            f"image {path} is {height}x{width} (height x width), too small for a crop of {rows}x{columns}:"
            " pass a larger --resize or a smaller --crop"
        )
    top, left = round((height - rows) / 2), round((width - columns) / 2)
    return image.crop((left, top, left + columns, top + rows))


@dataclass(frozen=True)
class ImageFolder:
    """The image files that feed one input; they are decoded when they are read."""

    root: Path
    files: tuple[str, ...]
    name: str
    size: tuple[int | None, int | None]  # height and width that the model fixes
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.files)

    def where(self, index: int) -> str:
        """Sample `index` in words."""
        return f"image {self.root / self.files[index]}"

    def read(self, indices: Array) -> dict[str, Array]:
        """The images `indices`, uint8 [n, H, W, C]; DataError for a broken file or a wrong size."""
        images: list[Array] = []
        wanted, by = self.size, "but the model expects"
        for index in indices:
            path = self.root / self.files[index]
            image = read_image(path, self.preprocessing)
            size = image.shape[:2]
            if any(want not in (None, side) for want, side in zip(wanted, size, strict=True)):
                options = self.preprocessing
                given = [
                    f"--{name} {_spelled(side)}" for name in ("resize", "crop") if (side := getattr(options, name))
                ]
                after = f" after {' '.join(given)}" if given else ""
                wide = "x".join("any" if side is None else str(side) for side in wanted)
                advice = "pass --resize and --crop that give it" if given else "pass --resize and --crop"
                raise DataError(f"image {path} is {size[0]}x{size[1]} (height x width){after}, {by} {wide}: {advice}")
            if not images:
                wanted = (size[0], size[1])
                by = "but the images before it are" if None in self.size else by
            images.append(image)
        return {self.name: np.stack(images)}

    def fingerprint(self, indices: Array) -> str:
        """sha256 over the bytes of the files `indices`, one file at a time."""
        total = hashlib.sha256()
        for index in indices:
            try:
                total.update(hashlib.sha256((self.root / self.files[index]).read_bytes()).digest())
            except OSError as error:
                raise DataError(f"{self.where(int(index))} cannot be read: {error}; restore the file") from error
        return total.hexdigest()


def _spelled(side: int | tuple[int, int]) -> str:
    """A size as options have it."""
    return str(side) if isinstance(side, int) else f"{side[0]}x{side[1]}"


def open_images(
    folder: Path, name: str, dtype: np.dtype[Any], shape: Shape, preprocessing: Preprocessing, *, where: str
) -> tuple[ImageFolder, Array | None]:
    """The images of `folder` for the 4-D input `name`, with defaults filled in, and their labels [n] if known.

    Raises DataError for inputs that images cannot feed, ConfigError when preprocessing contradicts the model.
    """
    if len(shape) != 4:
        raise DataError(f"{where}: images need an input of 4 axes, but {name!r} has shape {show(shape)}: give arrays")
    height, width = shape[2:] if model_layout(shape) == "NCHW" else shape[1:3]
    channels = shape[channel_axis(shape)]
    if isinstance(channels, int) and channels not in (1, 3):
        raise DataError(f"{where}: images have 1 or 3 channels, but input {name!r} takes {channels}: give arrays")
    color = preprocessing.color or ("gray" if channels == 1 else "rgb")
    have = 1 if color == "gray" else 3
    if isinstance(channels, int) and channels != have:
        raise ConfigError(f"{where}: color {color!r} gives {have} channel(s), but input {name!r} takes {channels}")
    scale = PIXELS if dtype.kind == "f" and preprocessing.scale is None else preprocessing.scale
    files, listed = list_images(folder, where)
    labels = None if listed is None else np.array(listed, np.int64)
    size = (height if isinstance(height, int) else None, width if isinstance(width, int) else None)
    options = replace(preprocessing, color=color, scale=scale, layout=None)
    return ImageFolder(folder, tuple(files), name, size, options), labels

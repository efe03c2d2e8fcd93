"""What the tests of data have in common: input specs, small arrays and files, and refusals in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ftbc_onnx.data import DataSource, InputSpec, open_data
from ftbc_onnx.errors import FtbcError

F32 = np.dtype(np.float32)
NCHW = [InputSpec("x", F32, ("N", 3, 8, 6))]
NHWC = [InputSpec("x", F32, ("N", 8, 6, 3))]
FLAT = [InputSpec("x", F32, ("N", 4))]
PAIR = [InputSpec("a", F32, ("N", 4)), InputSpec("b", np.dtype(np.int64), (None, 2))]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pixels(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def whole(source: DataSource, name: str = "x") -> np.ndarray:
    return np.concatenate([batch.feeds[name] for batch in source.batches(3)])


def label_list(source: DataSource) -> list[int]:
    assert source.has_labels
    return [int(label) for batch in source.batches(3) for label in batch.labels]


def refused(kind: type[FtbcError], *parts: object, what: Any, inputs: list[InputSpec] = FLAT, **options: Any) -> str:
    """Opens and reads, and checks that the refusal is one line that holds every part."""
    with pytest.raises(kind) as caught:
        for _ in open_data(what, inputs, **options).batches(4):
            pass
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def save_image(path: Path, array: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path

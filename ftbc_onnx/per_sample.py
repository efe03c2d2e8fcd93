"""Where in an output the samples of a batch are: not always on its first axis.

Recurrent heads (CTC) give [steps, N, classes]; a Reshape to [-1, C] puts what belongs to a sample below each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftbc_onnx.errors import ModelError

Axis = int | str | None


def axis_of_samples(shape: Sequence[Axis] | None, batch: Axis) -> int:
    """The axis of an output, by its declared shape, that has the batch of the inputs; 0 if none says so."""
    return list(shape).index(batch) if shape and batch is not None and batch in shape else 0


def per_sample(output: np.ndarray, size: int, axis: int = 0) -> np.ndarray:
    """An output by sample, [size, ...]; one for the whole batch is given to each.

    Args:
        output: of a run.
        size: samples of that run.
        axis: where they are, if it is that long; else it is the first that is, or each sample has several rows.

    Raises:
        ModelError: there is no way to tell them apart.
    """
    if not output.ndim:
        return np.repeat(output, size)
    as_long = [place for place, side in enumerate(output.shape) if side == size]
    if as_long:
        return np.moveaxis(output, axis if axis in as_long else as_long[0], 0)
    if size and output.shape[0] % size == 0:
        return output.reshape(size, output.shape[0] // size, *output.shape[1:])
    if output.shape[0] == 1:
        return np.repeat(output, size, axis=0)
    raise ModelError(
        f"an output of shape {list(output.shape)} has no axis for the {size} samples of a batch: put them on the first"
    )

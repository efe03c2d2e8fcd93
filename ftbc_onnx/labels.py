"""Labels against the classes of an output."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ftbc_onnx.errors import DataError


def check_labels(labels: np.ndarray, offset: int, folders: Sequence[str], classes: int, output: str) -> None:
    """Refuse labels that are no classes of an output.

    Args:
        labels: as the data have them, [n].
        offset: added to each.
        folders: the class folders whose order gives the labels; none if they come from elsewhere. Where there are fewer
            than classes their numbers are not those of the classes, unless they are called by those.
        classes: of the output.
        output: its name.

    Raises:
        DataError: which label, or how many folders.
    """
    shifted = labels + offset
    wrong = shifted[(shifted < 0) | (shifted >= classes)]
    if wrong.size:
        raise DataError(
            f"label {wrong[0]} is no class of output '{output}', which has classes 0 to {classes - 1}: "
            "check the labels, or use --label-offset"
        )
    numbered = all(name.isdecimal() and int(name) == number for number, name in enumerate(folders))
    if folders and len(folders) + offset != classes and not numbered:
        raise DataError(
            f"there are {len(folders)} class folders, and output '{output}' has {classes} classes: folders are "
            "numbered in the order of their names, so each class takes one (be it empty); or give numbers by --labels"
        )

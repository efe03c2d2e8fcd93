"""Labels against the classes of an output: what is certainly wrong, and what may be."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ftbc_onnx.errors import DataError

log = logging.getLogger("ftbc_onnx")


def check_labels(labels: np.ndarray, classes: int, output: str) -> None:
    """Refuse labels that are no classes of an output.

    Raises:
        DataError: which label.
    """
    wrong = labels[(labels < 0) | (labels >= classes)]
    if wrong.size:
        raise DataError(
            f"label {wrong[0]} is no class of output '{output}', which has classes 0 to {classes - 1}: "
            "check the labels, or use --label-offset"
        )


def warn_of_folders(folders: Sequence[str], offset: int, classes: int, output: str) -> None:
    """A line of warning if labels come from class folders, and there is not one for each class of an output.

    Their numbers are then likely not those of the classes; of folders that are called by their numbers they are, and
    an output may have more classes than are used.
    """
    numbered = all(name.isdecimal() and int(name) == number for number, name in enumerate(folders))
    if folders and len(folders) + offset != classes and not numbered:
        log.warning(
            "there are %d class folders, and output '%s' has %d classes: folders are numbered in the order of their "
            "names, which fits if each class has one (be it empty); --labels gives other numbers",
            *(len(folders), output, classes),
        )

"""Batches as a model takes them: a model with a fixed batch size gets that size, the last one padded or dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ftbc_onnx.data import Batch, DataSource, InputSpec
from ftbc_onnx.errors import DataError

DEFAULT_BATCH = 128
"""Samples per run, unless asked for another number."""

_NEURONS = 1 << 26  # over samples, in a run whose batch nobody asked for: some ten numbers for each, 2.5 GB
_CACHED = 1 << 21  # the same, for each core, in a run that only judges: the numbers of a site stay in its cache


@dataclass(frozen=True)
class Batching:
    """How many samples go into a run.

    Attributes:
        size: samples per run.
        fixed: whether the model takes no other number.
    """

    size: int
    fixed: bool

    def whole(self, source: DataSource, samples: int | None = None) -> Iterator[Batch]:
        """Batches for calibration: with a fixed size, an incomplete last batch is left out."""
        return source.batches(self.size, limit=samples, drop_last=self.fixed)

    def padded(self, source: DataSource, samples: int | None = None) -> Iterator[tuple[Batch, int]]:
        """Batches for evaluation, with the number of samples that count: a fixed size is filled up by repetition."""
        for batch in source.batches(self.size, limit=samples):
            rows = rows_of(batch)
            if self.fixed and rows < self.size:
                feeds = {name: np.resize(value, (self.size, *value.shape[1:])) for name, value in batch.feeds.items()}
                yield Batch(feeds, batch.labels), rows
            else:
                yield batch, rows


def choose_batching(
    wanted: int | None,
    static: int | None,
    source: DataSource,
    samples: int | None,
    purpose: str,
    *,
    neurons: int = 0,
    cores: int = 0,
) -> Batching:
    """The batch size for some data.

    Args:
        wanted: asked for by the user, or None.
        static: fixed by the model, or None.
        source: the data.
        samples: how many of them are used, at most.
        purpose: ``calibration`` or ``evaluation``, for the message.
        neurons: of the network, per sample, if that is known: large ones get fewer samples, unless a number is wanted.
        cores: of a run that only judges, so that any number of samples gives the same; 0 on a GPU, and for calibration.

    Raises:
        DataError: there are fewer samples than the batch that was asked for, or that the model fixes (calibration).
    """
    there = len(source) if samples is None else min(samples, len(source))
    if there < 1:
        raise DataError(f"the {purpose} data ({source.description}) hold no samples")
    if static is not None:
        if purpose == "calibration" and there < static:
            raise DataError(
                f"the model takes batches of exactly {static}, and of the {purpose} data ({source.description}) "
                f"{there} samples are used: give at least {static} (--calib-samples, if they hold as many), or export "
                "the model with a dynamic batch"
            )
        return Batching(static, True)
    if wanted is not None and purpose == "calibration" and there < wanted:
        raise DataError(
            f"of the {purpose} data ({source.description}) {there} samples are used, fewer than one batch of {wanted}: "
            f"use --batch-size {there} or less, or more samples (--calib-samples, if the data hold as many)"
        )
    most = min(_NEURONS, cores * _CACHED) if cores else _NEURONS
    fitting = min(DEFAULT_BATCH, max(most // max(neurons, 1), 1))
    return Batching(min(wanted or fitting, there), False)


def static_batch(specs: Sequence[InputSpec]) -> int | None:
    """The batch size that a model's inputs fix, or None if it is free."""
    return next((spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], int)), None)


def rows_of(batch: Batch) -> int:
    """Number of samples in a batch."""
    return len(next(iter(batch.feeds.values())))

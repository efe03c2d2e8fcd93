"""How much of a spiking network is left in its NIR file: both run over the same data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ftbc_onnx.batching import Batching
from ftbc_onnx.data import DataSource
from ftbc_onnx.evaluate import are_scores
from ftbc_onnx.graph.emit import emit_quick
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.labels import check_labels, warn_of_folders
from ftbc_onnx.nir.consumer import Runtime
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import Device, Session


@dataclass(frozen=True)
class Fidelity:
    """The NIR file in its runtime beside the spiking network in onnxruntime.

    Attributes:
        runtime: what ran the NIR file.
        samples: how many.
        data: where they come from.
        output: which output.
        accuracy: share of right decisions of the NIR file, in percent; None without labels or scores.
        snn_accuracy: of the spiking network.
        agreement: share of equal decisions, in percent; None without scores.
        output_gap: mean absolute difference of the outputs, relative to the mean size of the spiking network's.
    """

    runtime: str
    samples: int
    data: str
    output: str
    accuracy: float | None
    snn_accuracy: float | None
    agreement: float | None
    output_gap: float

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def measure(
    runtime: Runtime,
    network: Network,
    plan: SpikingPlan,
    source: DataSource,
    batching: Batching,
    *,
    device: Device,
    samples: int | None = None,
    label_offset: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> Fidelity:
    """Run a NIR file and the spiking network that it was made from over the same data.

    Args:
        runtime: the NIR file, open.
        network: the normalised ANN, of one input.
        plan: the plan of the spiking network.
        source: the data.
        batching: samples per run.
        device: where the spiking network runs.
        samples: samples to use, at most.
        label_offset: added to every label.
        progress: called after each batch with the samples done.

    Raises:
        DataError: a label is no class of the output.
    """
    emitted = emit_quick(network, plan)
    output = emitted.readouts[0].output
    session = Session(emitted.model, device)
    (fed,) = (value.name for value in network.view.inputs)
    theirs, ours = [], []
    labels: list[np.ndarray] = []
    for batch, rows in batching.padded(source, samples):
        ours.append(session.run(batch.feeds, [output])[output][:rows])
        steps = runtime.run(batch.feeds[fed].astype(np.float32, copy=False), plan.steps)
        theirs.append(steps[min(plan.readout.start, plan.steps - 1) :].mean(0)[:rows])
        if batch.labels is not None and are_scores(ours[-1]):
            if not labels:
                warn_of_folders(source.class_folders, label_offset, ours[-1].shape[1], output)
            labels.append(batch.labels[:rows] + label_offset)
            check_labels(labels[-1], ours[-1].shape[1], output)
        progress(sum(map(len, ours)))
    mine, other = np.concatenate(ours), np.concatenate(theirs)
    scores = are_scores(mine)
    right = np.concatenate(labels) if labels else None
    gap = np.abs(other.astype(np.float64) - mine).sum() / max(np.abs(mine.astype(np.float64)).sum(), 1e-30)
    return Fidelity(
        runtime.name,
        len(mine),
        source.description,
        output,
        None if right is None else float((other.argmax(1) == right).mean() * 100),
        None if right is None else float((mine.argmax(1) == right).mean() * 100),
        float((other.argmax(1) == mine.argmax(1)).mean() * 100) if scores else None,
        float(gap),
    )

"""From a spiking network in ONNX to a NIR file: read, survey, refuse or write, measure."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftbc_onnx.batching import choose_batching, static_batch
from ftbc_onnx.config import check_positive
from ftbc_onnx.data import spread
from ftbc_onnx.errors import ConfigError, ModelError
from ftbc_onnx.graph.files import input_specs
from ftbc_onnx.graph.plain_layers import Layer
from ftbc_onnx.graph.refitted import refitted
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.job import Progress
from ftbc_onnx.nir.consumer import NoRuntime, open_file
from ftbc_onnx.nir.losses import survey
from ftbc_onnx.nir.measure import measure
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.runtime import choose_device
from ftbc_onnx.spiking_file import SpikingFile, read_spiking
from ftbc_onnx.whole import check_target, written_whole


def export_nir(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str] | None = None,
    *,
    ann: str | os.PathLike[str] | None = None,
    lossy: bool = False,
    soft_reset: bool = False,
    eval_data: Any = None,
    preprocessing: Preprocessing | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    label_offset: int | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Write a spiking network as a NIR file, if NIR can say it.

    Args:
        model: path of a file that `convert` wrote.
        target: where to write; None: beside it, with the suffix ``.nir``.
        ann: path of the ANN it was made from; None: the file of its name beside it.
        lossy: write what comes nearest where NIR cannot say something.
        soft_reset: write neurons as loops of primitives, which say the soft reset (see `ftbc_onnx.nir.translate`).
        eval_data: data to run both networks on, anything that `ftbc_onnx.data.open_data` takes.
        preprocessing: what it sets goes before what the network was calibrated with.
        samples: samples used, at most; spread over the data.
        batch_size: samples per run; None: 128 at most.
        device: where the spiking network runs.
        label_offset: added to every label; None: what was added in the conversion.
        progress: called as work goes on.

    Returns:
        The report, as plain JSON types: ``losses``, what NIR cannot say; ``output``, the file, None if it was refused;
        ``fidelity``, what was measured (`ftbc_onnx.nir.measure.Fidelity`), or None and ``not_measured``, why.

    Raises:
        FtbcError: of the kind that fits.
    """
    for name, value in (("batch_size", batch_size), ("samples", samples)):
        if value is not None:
            check_positive(name, value)
    file = read_spiking(model)
    original, network = file.ann(_ann_of(file) if ann is None else ann)
    path = _target(file, target)
    network, plan = refitted(network, file.plan)
    found = survey(network, plan, soft_reset)
    report: dict[str, Any] = {
        "source": file.name,
        "steps": file.plan.steps,
        "readout": str(file.plan.readout),
        "neuron": "loop of I, Threshold and Scale" if soft_reset else "IF",
        "losses": [loss.as_dict() for loss in found.losses],
        "output": None,
        "fidelity": None,
        "not_measured": None,
    }
    if any(loss.nearest is None for loss in found.losses) or (found.losses and not lossy):
        return report
    where, source = choose_device(device), None
    if eval_data is not None:  # opened before anything is written, for the ANN: a file of one step has more inputs
        source = spread(replace(file, model=original.model).open(eval_data, preprocessing), samples)
        static = static_batch(input_specs(original.model))
        batching = choose_batching(batch_size, static, source, samples, "evaluation", neurons=file.neurons)
    with _written(network, plan, found.layers, soft_reset, path) as partial:
        if source is not None:
            count = min(len(source), samples or len(source))
            try:
                fidelity = measure(
                    open_file(partial),
                    network,
                    plan,
                    source,
                    batching,
                    device=where,
                    samples=samples,
                    label_offset=file.label_offset if label_offset is None else label_offset,
                    progress=lambda done: progress("evaluation", done, count),
                )
                report["fidelity"] = fidelity.as_dict()
            except NoRuntime as error:
                report["not_measured"] = str(error)
    return {**report, "output": str(path)}


def _ann_of(file: SpikingFile) -> Path:
    """The ANN beside the file, by the name that the file remembers."""
    name = Path(file.record.get("source", "")).name
    beside = Path(file.name).parent / name
    if not name or not beside.is_file():
        raise ModelError(
            f"'{file.name}' holds a copy of the network per step, and its ANN '{name}' is not beside it: "
            "give the ANN that was converted (--ann MODEL)"
        )
    return beside


def _target(file: SpikingFile, target: str | os.PathLike[str] | None) -> Path:
    """Where to write; refused before long work if it cannot be written."""
    path = Path(file.name).with_suffix(".nir") if target is None else Path(target)
    check_target(path, "--output", ".nir")
    return path


@contextmanager
def _written(
    network: Network, plan: SpikingPlan, layers: Mapping[str, Layer], soft_reset: bool, path: Path
) -> Iterator[Path]:
    """The graph in a file that takes its place once it has been measured, whole or not at all."""
    try:
        import nir  # noqa: PLC0415 - an optional extra

        from ftbc_onnx.nir.translate import translate  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError(f'export to NIR takes the package nir ({error}): pip install "ftbc-onnx[nir]"') from error
    graph = translate(network, plan, layers, soft_reset)
    with ExitStack() as stack:
        with _writing(path):
            partial = stack.enter_context(written_whole(path))
            nir.write(partial, graph)
        yield partial
        with _writing(path):
            stack.close()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """What goes wrong with a file is one line."""
    try:
        yield
    except OSError as error:
        raise ModelError(f"'{path}' cannot be written: {error.strerror or error}") from error

"""A file that `convert` wrote, read back: its plan, its options, data as it was calibrated with, and its ANN."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource, InputSpec, open_data
from ftbc_onnx.errors import ConfigError, ModelError
from ftbc_onnx.graph.emit.unrolled import Readout
from ftbc_onnx.graph.files import SourceModel, input_specs, load, load_snn
from ftbc_onnx.graph.prepare import prepare
from ftbc_onnx.graph.provenance import read_plan, read_record
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.likeness import Moments, Unlike, compare, moments
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.preprocessing import Preprocessing, known_preprocessing

log = logging.getLogger("ftbc_onnx")


@dataclass(frozen=True)
class SpikingFile:
    """An emitted model and what its metadata say.

    Attributes:
        name: path of the file; empty for bytes.
        model: the spiking network, an ``onnx.ModelProto``.
        plan: its plan.
        record: its metadata, as they are written.
    """

    name: str
    model: Any
    plan: SpikingPlan
    record: Mapping[str, str]

    @property
    def called(self) -> str:
        """What it is called in messages."""
        return _called(self.name)

    @property
    def form(self) -> str:
        """How time is laid out."""
        return self.record.get("form", "unrolled")

    @property
    def readouts(self) -> list[Readout]:
        """Where its outputs are found after every step."""
        listed = json.loads(self.record["readout"])
        return [Readout(r["output"], r["is_mean"], tuple(r["tensors"]), self.plan.readout) for r in listed]

    @property
    def options(self) -> ConvertConfig:
        """The options it was converted with."""
        return ConvertConfig.from_options(json.loads(self.record["options"]))

    @property
    def preprocessing(self) -> Preprocessing:
        """What was done to its calibration data."""
        return Preprocessing.from_dict(json.loads(self.record.get("preprocessing", "{}")))

    @property
    def label_offset(self) -> int:
        """What was added to the labels of its evaluation data."""
        return int(self.record.get("label_offset", "0"))

    @property
    def inputs(self) -> dict[str, Moments]:
        """The numbers that its inputs got in the conversion; none if these were random, or the file is older."""
        return {name: Moments(**found) for name, found in json.loads(self.record.get("inputs", "{}")).items()}

    def unlike(self, source: DataSource) -> tuple[Unlike, ...]:
        """Inputs that get other numbers from these data; nothing is read where the file remembers none."""
        return compare(self.inputs, moments(source)) if self.inputs else ()

    @property
    def neurons(self) -> int:
        """All its neurons, per sample; 0 if that is not known."""
        return int(self.record.get("neurons", "0"))

    def open(
        self,
        data: Any,
        preprocessing: Preprocessing | None = None,
        purpose: str = "evaluation",
        inputs: Sequence[InputSpec] | None = None,
        limit: int | None = None,
    ) -> DataSource:
        """Data for it (or for `inputs`), prepared as the calibration data were, but for what `preprocessing` sets.

        One that sets nothing is for data that are ready: they are taken as they are. Where those were image files,
        arrays leave out what only image files have; whole numbers get the scale of pixels, floats go without it.
        `limit` keeps so many samples (`open_data`), which bounds what is read of an iterable.

        Raises:
            DataError: they do not fit the network.
            ConfigError: they cannot be prepared like this.
        """
        specs = input_specs(self.model) if inputs is None else inputs
        done, given = self.preprocessing, known_preprocessing(preprocessing)
        if preprocessing == Preprocessing():
            return open_data(data, specs, given, purpose=purpose, limit=limit)
        try:
            wanted = given.over(done)
        except ConfigError as error:
            raise ConfigError(f"{error} (remembered from the conversion: {done.as_dict()})") from error

        def for_arrays(whole: bool) -> Preprocessing:
            """As beside images in a conversion, but for a scale that is given: it is meant for these."""
            prepared = wanted.for_arrays(whole)
            if given.scale is not None:
                prepared = replace(prepared, scale=given.scale)
            if prepared.arithmetic:
                log.warning(
                    "%s: arrays, for a network that was calibrated on images, are prepared by %s; for data that are "
                    "ready give --mean 0 --std 1 --scale 1",
                    *(purpose, prepared.as_dict()),
                )
            return prepared

        shared = for_arrays if done.for_images and not given.for_images else False
        return open_data(data, specs, wanted, purpose=purpose, limit=limit, shared=shared)

    def ann(self, model: str | os.PathLike[str] | bytes) -> tuple[SourceModel, Network]:
        """The ANN it was made from (a path, or its bytes), as it was read and normalised. Raises as `original`."""
        original = self.original(model)
        return original, prepare(original.model, self.options)[1]

    def original(self, model: str | os.PathLike[str] | bytes) -> SourceModel:
        """The ANN it was made from (a path, or its bytes), as it was read.

        Raises:
            ModelError: this is another one.
        """
        original = load(model)
        if original.digest != self.plan.source_digest:
            raise ModelError(
                f"{self.called} was not made from {_called(model)} (their digests differ): "
                "give the ANN that was converted"
            )
        return original


def read_spiking(what: str | os.PathLike[str] | bytes) -> SpikingFile:
    """Read a file that `convert` wrote, from its path or its bytes.

    Raises:
        ModelError: it cannot be read, or it is no such file.
    """
    model = load_snn(what)
    return SpikingFile("" if isinstance(what, bytes) else os.fspath(what), model, read_plan(model), read_record(model))


def _called(model: str | os.PathLike[str] | bytes) -> str:
    return "the bytes given" if isinstance(model, bytes) or not model else f"'{os.fspath(model)}'"

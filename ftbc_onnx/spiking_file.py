"""A file that `convert` wrote, read back: its plan, its options, data as it was calibrated with, and its ANN."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource, open_data
from ftbc_onnx.errors import ConfigError, ModelError
from ftbc_onnx.graph.emit.unrolled import Readout
from ftbc_onnx.graph.files import SourceModel, input_specs, load, load_snn
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.provenance import read_plan, read_record
from ftbc_onnx.graph.scope import Scope
from ftbc_onnx.graph.sites import Network, find_network
from ftbc_onnx.images import Preprocessing
from ftbc_onnx.plan import SpikingPlan


@dataclass(frozen=True)
class SpikingFile:
    """An emitted model and what its metadata say.

    Attributes:
        name: of the file.
        model: the spiking network, an ``onnx.ModelProto``.
        plan: its plan.
        record: its metadata, as they are written.
    """

    name: str
    model: Any
    plan: SpikingPlan
    record: Mapping[str, str]

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

    def open(self, data: Any, preprocessing: Preprocessing | None = None, purpose: str = "evaluation") -> DataSource:
        """Data for it, prepared as the calibration data were if `preprocessing` is None.

        Raises:
            DataError: they do not fit the network.
            ConfigError: they cannot be prepared like this.
        """
        if preprocessing is not None:
            return open_data(data, input_specs(self.model), preprocessing, purpose=purpose)
        try:
            return open_data(data, input_specs(self.model), self.preprocessing, purpose=purpose)
        except ConfigError as error:
            remembered = json.loads(self.record.get("preprocessing", "{}"))
            raise ConfigError(
                f"{error} (this is how the network was calibrated, as its metadata say: {remembered}; to evaluate on "
                "data of another kind, state how they are to be prepared, --scale 1 for data that are ready)"
            ) from error

    def ann(self, path: str | os.PathLike[str]) -> tuple[SourceModel, Network]:
        """The ANN it was made from, as it was read and normalised.

        Raises:
            ModelError: this is another one.
        """
        original = load(path)
        if original.digest != self.plan.source_digest:
            raise ModelError(
                f"'{self.name}' was not made from '{path}' (their digests differ): give the ANN that was converted"
            )
        options = self.options
        scope = Scope(options.include, options.exclude, options.until)
        return original, find_network(normalise(original.model).model, scope, options.smooth)


def read_spiking(path: str | os.PathLike[str]) -> SpikingFile:
    """Read a file that `convert` wrote.

    Raises:
        ModelError: it cannot be read, or it is no such file.
    """
    model = load_snn(path)
    return SpikingFile(os.fspath(path), model, read_plan(model), read_record(model))

"""Where an emitted model comes from, kept in its metadata under ``ftbc_onnx.*``; the user's own metadata stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from ftbc_onnx.compression import Factors
from ftbc_onnx.errors import ModelError
from ftbc_onnx.graph.emit.unrolled import bias_name, factor_names
from ftbc_onnx.graph.recorder import initializers
from ftbc_onnx.graph.refitted import layer_names
from ftbc_onnx.graph.units import threshold_name
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import Layer, SpikingPlan, site_from_dict

PREFIX = "ftbc_onnx."


def stamp(model: onnx.ModelProto, source: onnx.ModelProto, record: Mapping[str, Any]) -> onnx.ModelProto:
    """A copy of `model` with the metadata of `source` and `record` (one entry per key, values as JSON), and its own."""
    stamped = onnx.ModelProto()
    stamped.CopyFrom(model)
    stamped.metadata_props.extend(source.metadata_props)
    stamped.doc_string, stamped.domain, stamped.model_version = source.doc_string, source.domain, source.model_version
    stamped.graph.doc_string = source.graph.doc_string
    for key, value in record.items():
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        text = text.encode("utf-8", "backslashreplace").decode()  # of files whose names are in another encoding
        stamped.metadata_props.add(key=PREFIX + key, value=text)
    return stamped


def read_record(model: onnx.ModelProto) -> dict[str, str]:
    """Our metadata of an emitted model, without the prefix; values as they are written."""
    return {e.key[len(PREFIX) :]: e.value for e in model.metadata_props if e.key.startswith(PREFIX)}


def read_plan(model: onnx.ModelProto) -> SpikingPlan:
    """The plan of an emitted model: names from its metadata, numbers from its initializers.

    Raises:
        ModelError: the metadata or an initializer are missing.
    """
    try:
        described = json.loads(read_record(model)["plan"])
        sites = tuple(site_from_dict(site) for site in described["sites"])
        values = initializers(model)

        def array(name: str) -> np.ndarray:
            return np.asarray(numpy_helper.to_array(values[name]))

        packed = {site.name for site in sites if factor_names(site.name)[0] in values}
        return SpikingPlan(
            described["source_digest"],
            sites,
            described["steps"],
            NeuronSpec(**described["neuron"]),
            {site.name: array(threshold_name(site.name)) for site in sites},
            {site.name: array(bias_name(site.name)) for site in sites if site.name not in packed},
            described["readout"],
            described.get("schedule", "asynchronous"),
            {name: Factors(*(array(factor) for factor in factor_names(name))) for name in packed},
            {name: np.asarray(gain, np.float32) for name, gain in described.get("gains", {}).items()},
            layers={name: Layer(*(array(n) for n in layer_names(name))) for name in described.get("layers", [])},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"the plan in the model's metadata is incomplete ({error}): where another tool has rewritten the file, "
            "give it as convert wrote it (ftbc-onnx verify compares the two, --original); else convert the ANN again"
        ) from error

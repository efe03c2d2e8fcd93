"""ONNX files: read with every check that can be made before long work, written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import external_data_helper, helper, numpy_helper

from ftbc_onnx.data import InputSpec
from ftbc_onnx.errors import DataError, ModelError
from ftbc_onnx.graph import weights
from ftbc_onnx.graph.normalise import default_opset
from ftbc_onnx.graph.order import in_order
from ftbc_onnx.graph.qonnx import standard_operators
from ftbc_onnx.whole import written_whole

OLDEST = 9
"""The oldest opset that is read."""

_KNOWN = 10  # the IR version that onnxruntime 1.20 knows
_PROTOBUF_LIMIT = weights.LIMIT
_PAGE = 4096  # tensors start at multiples of it, so that a runtime can map them
_MARK = "ftbc_onnx.version"


@dataclass(frozen=True)
class SourceModel:
    """A user's model as it was read: the graph with its weights, a name for messages, and the SHA-256 of its bytes.

    Nodes are in topological order, whatever order the file has, and operators of QONNX are written as standard ones.
    """

    model: onnx.ModelProto
    name: str
    digest: str
    path: Path | None = None


def load(model: str | os.PathLike[str] | bytes | onnx.ModelProto) -> SourceModel:
    """Read and check a model.

    Args:
        model: a path, the bytes of a file, or a model in memory.

    Raises:
        ModelError: it is missing, empty, no ONNX, invalid, too old or too new, or its external data are not beside it.
    """
    if isinstance(model, onnx.ModelProto):
        source = SourceModel(_of_known_version(model), model.graph.name or "model", _digest(model))
    elif isinstance(model, bytes):
        source = SourceModel(_parse(model, "the bytes given"), "model", hashlib.sha256(model).hexdigest())
    else:
        source = _read(model)
    source = replace(source, model=_open_axes(in_order(source.model)))
    _check(source)
    return replace(source, model=standard_operators(source.model))


def _open_axes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without lengths of -1, which is how some exporters have spelled an open axis; itself if it has none."""

    def negative(some: onnx.ModelProto) -> list[onnx.TensorShapeProto.Dimension]:
        values = [*some.graph.input, *some.graph.output, *some.graph.value_info]
        axes = [axis for v in values if v.type.HasField("tensor_type") for axis in v.type.tensor_type.shape.dim]
        return [axis for axis in axes if axis.HasField("dim_value") and axis.dim_value < 0]

    if not negative(model):
        return model
    opened = onnx.ModelProto()
    opened.CopyFrom(model)  # it may be the caller's
    for axis in negative(opened):
        axis.ClearField("dim_value")
    return opened


def _digest(model: onnx.ModelProto) -> str:
    """SHA-256 of a model in memory: of its bytes, or over 2 GB of its skeleton's and of every large tensor's."""
    if not weights.exceeds(model, _PROTOBUF_LIMIT):
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    digest = hashlib.sha256(weights.skeleton(model).SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        if weights.is_heavy(tensor):
            digest.update(tensor.raw_data or numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()


def _read(model_path: str | os.PathLike[str]) -> SourceModel:
    if not isinstance(model_path, (str, os.PathLike)):
        raise ModelError(
            f"the model is a {type(model_path).__name__}: give a path, the bytes of a file, or a ModelProto"
        )
    path = Path(model_path)
    if not path.exists():
        raise ModelError(f"'{path}' does not exist: give the path of an ONNX file")
    if path.is_dir():
        raise ModelError(f"'{path}' is a folder: give the path of an ONNX file")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"'{path}' cannot be read: {error.strerror}") from error
    digest = hashlib.sha256(raw)
    model = _parse(raw, f"'{path}'")
    for name in _external_files(model):
        part = path.parent / name
        if not part.is_file():
            raise ModelError(
                f"'{path}' keeps weights in '{name}', which is not beside it: copy '{name}' to '{path.parent}' "
                "(exporters write it next to the .onnx file)"
            )
        with part.open("rb") as stream:
            for block in iter(lambda: stream.read(1 << 22), b""):
                digest.update(block)
    try:
        _load_external(model, path.parent)
    except (ValueError, OSError, onnx.checker.ValidationError) as error:
        raise ModelError(f"the external data of '{path}' cannot be read: {_short(error)}") from error
    return SourceModel(model, str(path), digest.hexdigest(), path)


def _load_external(model: onnx.ModelProto, folder: Path) -> None:
    """As onnx does it, which since 1.18 reads no links: Hugging Face's cache is made of them."""
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        beside = folder
        location = next(entry for entry in tensor.external_data if entry.key == "location")
        part, inside = folder / location.value, Path(location.value)
        if part.is_symlink() and not (inside.is_absolute() or ".." in inside.parts):  # the folder itself links to it
            target = part.resolve()
            beside, location.value = target.parent, target.name
        external_data_helper.load_external_data_for_tensor(tensor, str(beside))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _parse(raw: bytes, what: str) -> onnx.ModelProto:
    if not raw:
        raise ModelError(f"{what} is empty: export the model again")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(raw)
    except DecodeError as error:
        raise ModelError(f"{what} is no ONNX file, or a truncated one: export the model again") from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"{what} is no ONNX file: it holds no graph")
    model.ir_version = _known_version(model)
    return model


def _external_files(model: onnx.ModelProto) -> list[str]:
    found: dict[str, None] = {}
    for tensor in external_data_helper._get_all_tensors(model):
        if external_data_helper.uses_external_data(tensor):
            found[external_data_helper.ExternalDataInfo(tensor).location] = None
    return list(found)


def _known_version(model: onnx.ModelProto) -> int:
    """The IR version of a model, or one that older runtimes know, too, if its opset asks for no newer one.

    Writers put the newest version that they know into a file, whatever is in it.
    """
    needed = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    return int(min(model.ir_version, max(needed, _KNOWN)))


def _of_known_version(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy that differs in its version; over 2 GB it has to stay what it is."""
    version = _known_version(model)
    if model.ir_version == version or weights.exceeds(model, _PROTOBUF_LIMIT):
        return model
    work = onnx.ModelProto()
    work.CopyFrom(model)
    work.ir_version = version
    return work


def _check(source: SourceModel) -> None:
    model = source.model
    version = default_opset(model)
    if version < OLDEST:
        raise ModelError(
            f"'{source.name}' uses opset {version}: export it with opset {OLDEST} or newer (13 or newer is best)"
        )
    if version > onnx.defs.onnx_opset_version():
        raise ModelError(
            f"'{source.name}' uses opset {version}, and onnx {onnx.__version__} knows {onnx.defs.onnx_opset_version()} "
            "at most: export it with an older opset"
        )
    if any(entry.key == _MARK for entry in model.metadata_props):
        raise ModelError(
            f"'{source.name}' is already a spiking network made by ftbc-onnx: give the ANN it was made from"
        )
    if not model.graph.node:
        raise ModelError(f"'{source.name}' has no nodes: there is nothing to convert")
    elsewhere = _external_files(model)
    if elsewhere:
        raise ModelError(
            f"'{source.name}' keeps weights in '{elsewhere[0]}', which is not part of what was given: "
            "give the path of the file, or a model with its weights loaded"
        )
    if weights.exceeds(model, _PROTOBUF_LIMIT):
        return
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise ModelError(f"'{source.name}' is not valid ONNX: {_short(error)}") from error


def read_model(source: str | os.PathLike[str] | bytes) -> onnx.ModelProto:
    """Read any model, from a file or from the bytes of one; nothing else is checked.

    Raises:
        ModelError: it cannot be read.
    """
    return _parse(source, "'model'") if isinstance(source, bytes) else _read(source).model


def load_snn(source: str | os.PathLike[str] | bytes) -> onnx.ModelProto:
    """Read a model that this package emitted, from a file or from the bytes of one.

    Raises:
        ModelError: it cannot be read, or it is no such model.
    """
    model = read_model(source)
    name = "model" if isinstance(source, bytes) else os.fspath(source)
    if not any(entry.key == _MARK for entry in model.metadata_props):
        raise ModelError(
            f"'{name}' is no spiking network made by ftbc-onnx: convert the ANN first (ftbc-onnx convert {name})"
        )
    return model


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model: to a temporary folder beside `path`, then renamed. Over 2 GB the weights go to ``NAME.data``.

    Raises:
        ModelError: the folder is missing or cannot be written to.
    """
    if not path.parent.is_dir():
        raise ModelError(f"the folder '{path.parent}' does not exist: create it, or choose another --output")
    try:
        with written_whole(path) as partial:
            _write(model, partial)
    except OSError as error:
        raise ModelError(f"'{path}' cannot be written: {error.strerror or error}") from error


def _write(model: onnx.ModelProto, path: Path) -> None:
    if not weights.exceeds(model, _PROTOBUF_LIMIT):
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    light = weights.skeleton(model)
    heavy = {tensor.name: tensor for tensor in model.graph.initializer if weights.is_heavy(tensor)}
    with path.with_name(f"{path.name}.data").open("wb") as stream:
        for tensor in light.graph.initializer:
            if tensor.name not in heavy:
                continue
            stream.write(bytes(-stream.tell() % _PAGE))
            start, found = stream.tell(), heavy[tensor.name]
            stream.write(found.raw_data or numpy_helper.to_array(found).tobytes())
            place = {"location": f"{path.name}.data", "offset": start, "length": stream.tell() - start}
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(light.SerializeToString(deterministic=True))


@contextmanager
def loadable(model: onnx.ModelProto) -> Iterator[bytes | Path]:
    """The model as a runtime takes it: bytes, or over 2 GB the path of a temporary file with external data.

    The runtime may keep that file mapped, and Windows deletes none that is: leave when the session is gone.
    """
    if not weights.exceeds(model, _PROTOBUF_LIMIT):
        yield model.SerializeToString(deterministic=True)
        return
    with tempfile.TemporaryDirectory(prefix="ftbc-onnx-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        _write(model, path)
        del model  # it may be let go of while the file is there
        yield path


def probe_model() -> onnx.ModelProto:
    """The smallest model there is (y = x + x), to see whether a device works."""
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "probe", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def input_specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    """What the model expects of its inputs (initializers listed as inputs left out).

    Raises:
        DataError: an input is no tensor.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in constants:
            continue
        if not value.type.HasField("tensor_type"):
            raise DataError(f"input '{value.name}' is no tensor: sequences and optionals cannot be fed")
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim)
        specs.append(InputSpec(value.name, np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape))
    return tuple(specs)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:237] + "..."

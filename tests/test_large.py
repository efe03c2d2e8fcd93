"""A model over 2 GB, the most that protobuf holds: its weights are a sparse file of zeros that takes no disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import make_plan, parse, run
from onnx import TensorProto, numpy_helper

from ftbc_onnx.graph import weights
from ftbc_onnx.graph.emit.unrolled import emit_unrolled
from ftbc_onnx.graph.files import load, save
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network

IN, OUT = 16384, 33000
GIB = 2**30


def small() -> onnx.ModelProto:
    """The head is larger than what a skeleton keeps, the target of the Reshape is not."""
    return parse(
        "g (float[N,2] x) => (float[N,600] y) { c = MatMul(x, w) r = Relu(c) f = Reshape(r, flat) "
        "y = MatMul(f, head) }",
        w=np.ones((2, 4), np.float32),
        head=np.ones((4, 600), np.float32),
        flat=np.array([0, -1]),
    )


def write_large(folder: Path) -> Path:
    """c = x W + b with W [IN, OUT] of zeros, b = 0..4; y is the sum of Relu(c)."""
    model = parse(
        f"g (float[N,{IN}] x) => (float[N,1] y) {{ c = Gemm(x, w, b) r = Relu(c) y = MatMul(r, head) }}",
        b=(np.arange(OUT) % 5).astype(np.float32),
        head=np.full((OUT, 1), 1 / OUT, np.float32),
    )
    size = 4 * IN * OUT
    tensor = model.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=[IN, OUT])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": "w.data", "offset": 0, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))
    with (folder / "w.data").open("wb") as stream:
        stream.truncate(size)
    path = folder / "large.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def require(folder: Path) -> None:
    if not hasattr(os, "sysconf") or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        pytest.skip("free memory is not known on this system")
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 12 * GIB:
        pytest.skip(f"{free / GIB:.1f} GiB of memory are free, and this takes 12")
    disk = shutil.disk_usage(folder).free
    if disk < 8 * GIB:
        pytest.skip(f"{disk / GIB:.1f} GiB of disk are free, and this takes 8")


def test_a_model_over_2_gb_is_converted_and_written(tmp_path: Path) -> None:
    require(tmp_path)
    path, target = write_large(tmp_path), tmp_path / "out.onnx"
    try:
        normal = normalise(load(path).model)
        network = find_network(normal.model)
        (site,) = network.sites
        assert (site.channel_axis, site.channels, network.refusals) == (1, OUT, ())
        emitted = emit_unrolled(network, make_plan(network, 2, 4.0))
        del network, normal
        save(emitted.model, target)
        del emitted
        assert target.stat().st_size < 2**20
        assert target.with_name("out.onnx.data").stat().st_size > weights.LIMIT
        onnx.checker.check_model(target)
    finally:
        for name in ("w.data", "out.onnx.data"):  # not to be kept among pytest's last folders
            (tmp_path / name).unlink(missing_ok=True)


def test_size_is_told_without_serialising() -> None:
    model = small()
    assert not weights.exceeds(model)
    assert weights.exceeds(model, 4 * 4 * 600)
    assert weights.exceeds(model, model.ByteSize())
    assert not weights.exceeds(model, model.ByteSize() + 1)
    model.graph.initializer.add(
        name="beside", data_type=TensorProto.FLOAT, dims=[2**20, 2**20]
    ).data_location = TensorProto.EXTERNAL
    assert not weights.exceeds(model)


def test_a_skeleton_has_everything_but_numbers() -> None:
    model = small()
    model.doc_string = "says"
    model.metadata_props.add(key="k", value="v")
    light = weights.skeleton(model)
    head = next(tensor for tensor in light.graph.initializer if tensor.name == "head")
    assert (list(head.dims), head.raw_data) == ([4, 600], b"")
    head.CopyFrom(next(tensor for tensor in model.graph.initializer if tensor.name == "head"))
    assert light == model


def test_normalisation_by_skeletons_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done over 2 GB, done to a small model."""
    model = small()
    expected = normalise(model)
    monkeypatch.setattr("ftbc_onnx.graph.normalise.exceeds", lambda _: True)
    again = normalise(model)
    assert again.changes == expected.changes
    assert {v.name for v in again.model.graph.value_info} == {v.name for v in expected.model.graph.value_info}
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(run(again.model, {"x": x})["y"], run(expected.model, {"x": x})["y"])
    assert find_network(again.model).sites == find_network(expected.model).sites


def test_digests_of_large_models_tell_weights_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ftbc_onnx.graph.files._PROTOBUF_LIMIT", 1000)
    model, other = small(), small()
    for tensor in other.graph.initializer:
        if tensor.name == "head":
            tensor.CopyFrom(numpy_helper.from_array(np.full((4, 600), 2, np.float32), "head"))
    digests = {load(each).digest for each in (model, small(), other)}
    assert len(digests) == 2

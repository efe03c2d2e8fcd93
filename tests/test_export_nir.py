"""`ftbc-onnx export-nir`: what it prints, writes and measures, and what it says if something is missing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cli_cases import fails, run_module
from helpers import eighths, parse
from networks import QCFS, RELU, TEST

from ftbc_onnx import convert
from ftbc_onnx.errors import ConfigError, DataError, FtbcError, ModelError
from ftbc_onnx.nir.export import export_nir


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits_qcfs4` and what it becomes with binary neurons at T = 4, in every form."""
    folder = tmp_path_factory.mktemp("nir")
    shutil.copy(QCFS, folder)
    for form in ("unrolled", "fused", "loop", "step", "folded"):
        convert(QCFS, steps=4, neuron="if", form=form, verify=False).save(folder / f"{form}.onnx")
    return folder


@pytest.fixture
def snn(folder: Path, tmp_path: Path) -> Path:
    """The file in a folder of its own, with its ANN beside it."""
    shutil.copy(folder / "unrolled.onnx", tmp_path / "snn.onnx")
    shutil.copy(QCFS, tmp_path)
    return tmp_path / "snn.onnx"


def test_what_nir_cannot_say_is_listed_and_refused(snn: Path) -> None:
    before = snn.with_suffix(".nir")
    before.write_text("as it was")
    done = run_module("export-nir", snn)
    assert done.code == 3
    assert "NIR cannot say soft reset" in done.out
    assert "initial membrane theta/2" in done.out
    (line,) = (line for line in done.err.splitlines() if "error" in line)
    assert "--lossy" in line
    assert "--soft-reset" in line
    assert before.read_text() == "as it was"


def test_the_list_as_json(snn: Path) -> None:
    done = run_module("export-nir", snn, "--json", "-q")
    assert done.code == 3
    report = json.loads(done.out)
    assert report["output"] is None
    assert {loss["what"] for loss in report["losses"]} == {"soft reset", "initial membrane theta/2"}
    assert len(report["losses"]) == 8  # at four sites


def test_what_has_no_nearest_expression_is_refused_even_with_lossy(tmp_path: Path) -> None:
    convert(QCFS, steps=4, neuron="group", levels=2, verify=False).save(tmp_path / "group.onnx")
    report = export_nir(tmp_path / "group.onnx", ann=QCFS, lossy=True)
    assert report["output"] is None
    assert [loss["what"] for loss in report["losses"] if loss["nearest"] is None] == ["neuron group of 2 levels"]
    assert not (tmp_path / "group.nir").exists()


@pytest.mark.parametrize("form", ["unrolled", "fused", "loop", "step", "folded"])
def test_a_loop_of_primitives_loses_nothing(folder: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("nir")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed (it is in the extra 'models')")
    report = export_nir(folder / f"{form}.onnx", tmp_path / "a.nir", soft_reset=True, eval_data=TEST)
    assert report["losses"] == []
    found = report["fidelity"]
    assert found["runtime"] == "nirtorch"
    assert found["samples"] == 360
    assert found["agreement"] == 100
    assert found["accuracy"] == found["snn_accuracy"] > 98
    assert found["output_gap"] < 1e-4


def test_the_loss_is_measured_in_spikingjelly(snn: Path) -> None:
    pytest.importorskip("spikingjelly", reason="SpikingJelly is not installed (docs/nir.md says how)")
    done = run_module("export-nir", snn, "--lossy", "--eval-data", TEST, "--samples", 200, "--json", "-q")
    assert done.code == 0, done
    report = json.loads(done.out)
    found = report["fidelity"]
    assert found["runtime"] == "SpikingJelly"
    assert found["samples"] == 200
    assert 50 < found["accuracy"] < found["snn_accuracy"]
    assert found["output_gap"] > 0.1
    assert snn.with_suffix(".nir").is_file()


def test_a_measurement_that_fails_leaves_the_file_that_was_there(snn: Path, tmp_path: Path) -> None:
    pytest.importorskip("nir")
    pytest.importorskip("nirtorch", reason="nirtorch is not installed (it is in the extra 'models')")
    target = tmp_path / "kept.nir"
    target.write_text("precious")
    with pytest.raises(DataError, match="label"):
        export_nir(snn, target=target, lossy=True, soft_reset=True, eval_data=TEST, samples=20, label_offset=50)
    assert target.read_text() == "precious"
    assert list(tmp_path.glob(".kept*")) == []


def test_a_file_that_cannot_take_its_place_is_one_line(
    snn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nir")

    def fails(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(ModelError, match=r"kept\.nir' cannot be written: Permission denied"):
        export_nir(snn, target=tmp_path / "kept.nir", lossy=True, soft_reset=True)


def test_without_a_runtime_the_file_is_written_and_the_report_says_what_to_install(
    snn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nir = pytest.importorskip("nir")
    monkeypatch.setitem(sys.modules, "spikingjelly", None)
    for name in [name for name in sys.modules if name.startswith("spikingjelly.")]:
        monkeypatch.delitem(sys.modules, name)
    report = export_nir(snn, lossy=True, eval_data=TEST)
    assert report["fidelity"] is None
    assert "pip install" in report["not_measured"]
    assert len(nir.read(report["output"]).nodes) == 15


def test_without_nir_nothing_is_written(snn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nir", None)
    monkeypatch.delitem(sys.modules, "ftbc_onnx.nir.translate", raising=False)
    with pytest.raises(ConfigError, match=r'pip install "ftbc-onnx\[nir\]"'):
        export_nir(snn, soft_reset=True)
    assert not snn.with_suffix(".nir").exists()


def test_several_inputs_are_written_but_not_run(tmp_path: Path) -> None:
    nir = pytest.importorskip("nir")
    pytest.importorskip("torch")
    text = """g (float[N,3] a, float[N,3] b) => (float[N,2] y) {
        c = MatMul(a, w)  d = MatMul(b, w)  e = Add(c, d)  r = Relu(e)  y = MatMul(r, v)
    }"""
    model = parse(text.replace("  ", "\n"), w=eighths(3, 4), v=eighths(4, 2))
    onnx.save(model, tmp_path / "two.onnx")
    feeds = {"a": eighths(8, 3, seed=1), "b": eighths(8, 3, seed=2)}
    np.savez(tmp_path / "data.npz", **feeds)
    convert(tmp_path / "two.onnx", tmp_path / "data.npz", steps=4, neuron="if", rule="none").save(tmp_path / "s.onnx")
    report = export_nir(tmp_path / "s.onnx", soft_reset=True, eval_data=tmp_path / "data.npz")
    assert "one input and one output" in report["not_measured"]
    assert len(nir.read(report["output"]).inputs) == 2


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"ann": RELU}, ModelError, "digests differ"),
        ({"ann": "nothere.onnx"}, ModelError, "does not exist"),
        ({"target": "."}, ConfigError, "is a folder"),
        ({"target": "nowhere/a.nir"}, ConfigError, "does not exist"),
        ({"target": RELU}, ConfigError, "is no .nir file"),
        ({"eval_data": "nothere.npz"}, DataError, "nothere.npz"),
        ({"samples": 0}, ConfigError, "samples"),
    ],
)
def test_mistakes_are_one_line(snn: Path, options: dict[str, object], error: type[FtbcError], says: str) -> None:
    with pytest.raises(error) as caught:
        export_nir(snn, **{"soft_reset": True, **options})  # type: ignore[arg-type]
    assert says in str(caught.value)
    assert sorted(path.name for path in snn.parent.iterdir()) == ["digits_qcfs4.onnx", "snn.onnx"]


def test_the_ann_has_to_be_given_if_it_is_not_beside(snn: Path) -> None:
    (snn.parent / QCFS.name).unlink()
    fails(run_module("export-nir", snn, "-q"), 3, "'digits_qcfs4.onnx' is not beside it", "--ann")


def test_an_ann_is_no_spiking_network() -> None:
    fails(run_module("export-nir", RELU, "-q"), 3, "is no spiking network made by ftbc-onnx")

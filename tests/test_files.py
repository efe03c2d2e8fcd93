"""Reading and writing ONNX files: what is refused, in one line that says what to do, and what is read."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers import numbers, parse, run
from networks import RELU, TEST, inputs, residual
from onnx import TensorProto, helper

from ftbc_onnx import convert, errors, runtime
from ftbc_onnx.errors import DataError, FtbcError, ModelError
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph import files
from ftbc_onnx.graph.files import input_specs, load, load_snn, loadable, save
from ftbc_onnx.runtime import Session


def refused(model: object, *parts: str) -> None:
    """`load` refuses it in one line that holds every part."""
    with pytest.raises(ModelError) as caught:
        load(model)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def external(folder: Path, name: str = "net.onnx") -> Path:
    """`residual` with its weights in NAME.data."""
    path = folder / name
    onnx.save_model(residual(), path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    assert (folder / f"{name}.data").stat().st_size > 1000
    return path


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without a word on where its weights were kept."""
    for tensor in model.graph.initializer:
        tensor.ClearField("data_location")
    return model


def heavy() -> onnx.ModelProto:
    w = (np.arange(400, dtype=np.float32) / 400).reshape(20, 20)
    return parse("g (float[N,20] x) => (float[N,20] y) { z = MatMul(x, w)  y = Relu(z) }", w=w)


class TestUnreadable:
    def test_missing(self, tmp_path: Path) -> None:
        path = tmp_path / "none.onnx"
        refused(path, f"'{path}' does not exist: give the path of an ONNX file")

    def test_folder(self, tmp_path: Path) -> None:
        refused(tmp_path, "is a folder: give the path of an ONNX file")

    def test_empty(self, tmp_path: Path) -> None:
        (tmp_path / "e.onnx").touch()
        refused(tmp_path / "e.onnx", "e.onnx' is empty: export the model again")
        refused(b"", "the bytes given is empty")

    @pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
    def test_truncated(self, tmp_path: Path, share: float) -> None:
        raw = RELU.read_bytes()
        (tmp_path / "t.onnx").write_bytes(raw[: int(len(raw) * share)])
        refused(tmp_path / "t.onnx", "t.onnx'", "no ONNX file", "export the model again" if share > 0.1 else "")

    @pytest.mark.parametrize("seed", range(20))
    def test_random_bytes(self, seed: int) -> None:
        refused(np.random.default_rng(seed).bytes(200), "no ONNX file")

    @pytest.mark.parametrize(
        "text", ["hello", "<html>not found</html>", "version https://git-lfs.github.com/spec/v1\n"]
    )
    def test_text(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "t.onnx").write_text(text)
        refused(tmp_path / "t.onnx", "t.onnx'", "no ONNX file")

    def test_another_protobuf(self, tmp_path: Path) -> None:
        tensor = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32), "weights")
        (tmp_path / "t.onnx").write_bytes(tensor.SerializeToString())
        refused(tmp_path / "t.onnx", "no ONNX file")

    def test_unreadable_by_the_system(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_: Path) -> bytes:
            raise PermissionError(13, "Permission denied")

        (tmp_path / "p.onnx").write_bytes(b"x")
        monkeypatch.setattr(Path, "read_bytes", fail)
        refused(tmp_path / "p.onnx", "p.onnx' cannot be read: Permission denied")


class TestUnfit:
    def test_old_opset(self) -> None:
        refused(parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=8), "'g' uses opset 8", "opset 9")

    def test_opset_of_the_future(self) -> None:
        newest = onnx.defs.onnx_opset_version()
        model = residual()
        model.opset_import[0].version = newest + 1
        refused(model, f"'residual' uses opset {newest + 1}, and onnx {onnx.__version__} knows {newest} at most")

    def test_no_opset(self) -> None:
        model = residual()
        del model.opset_import[:]
        refused(model, "uses opset 1")

    def test_opset_9_is_read(self) -> None:
        model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=9)
        result = convert(model, np.abs(np.ones((4, 4), np.float32)), steps=2)
        assert result.report["opset"] == 13

    def test_already_converted(self, tmp_path: Path) -> None:
        path = convert(residual(), inputs(8), steps=2).save(tmp_path / "snn.onnx")
        refused(path, "snn.onnx' is already a spiking network made by ftbc-onnx: give the ANN it was made from")
        assert load_snn(path).graph.output[0].name == "y"

    def test_without_nodes(self) -> None:
        model = residual()
        del model.graph.node[:]
        refused(model, "has no nodes: there is nothing to convert")

    def test_invalid(self) -> None:
        model = residual()
        model.graph.node[3].input[0] = "nowhere"
        refused(model, "'residual' is not valid ONNX", "nowhere")

    def test_nodes_in_any_order_are_sorted(self) -> None:
        """onnxruntime takes them so, and its converter to float16 writes them so; the model given is left alone."""
        text = """g (float[N,3] x, bool go) => (float[N,3] y) {
            y = If (go) <then_branch = g1 () => (float[N,3] t) { t = Relu(u) u = Neg(b) },
                         else_branch = g2 () => (float[N,3] e) { e = Relu(b) }>
            c = Exp(x) b = Add(a, c) a = Neg(x) }"""
        model = parse(text)
        before = model.SerializeToString()
        source = load(model)
        onnx.checker.check_model(source.model)
        assert [node.op_type for node in source.model.graph.node] == ["Exp", "Neg", "Add", "If"]
        (branch,) = (a.g for a in source.model.graph.node[-1].attribute if a.name == "then_branch")
        assert [node.op_type for node in branch.node] == ["Neg", "Relu"]
        assert model.SerializeToString() == before
        x = numbers(4, 3)
        for go, sign in ((True, -1), (False, 1)):
            found = run(source.model, {"x": x, "go": np.array(go)})["y"]
            np.testing.assert_allclose(found, np.maximum(sign * (np.exp(x) - x), 0), rtol=1e-5)
        assert load(source.model).model is source.model

    def test_a_circle(self) -> None:
        model = parse("g (float[N,3] x) => (float[N,3] y) { a = Add(x, b) c = Neg(x) b = Relu(a) y = Neg(c) }")
        with pytest.raises(ModelError, match=r"is not valid ONNX: .*topologically sorted.*'b'"):
            load(model)

    def test_unknown_operator(self) -> None:
        model = residual()
        model.graph.node[1].op_type = "Rellu"
        refused(model, "'residual' is not valid ONNX", "Rellu")

    def test_input_that_is_no_tensor(self) -> None:
        text = "g (seq(float[N,4]) x, int64 i) => (float[N,4] y) { z = SequenceAt(x, i)  y = Relu(z) }"
        with pytest.raises(DataError, match="input 'x' is no tensor"):
            input_specs(parse(text))


class TestExternalData:
    def test_are_read_from_beside_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = external(tmp_path)
        monkeypatch.chdir("/")
        source = load(path)
        assert not any(tensor.external_data for tensor in source.model.graph.initializer)
        assert convert(path, inputs(8), steps=2).plan.sites == convert(residual(), inputs(8), steps=2).plan.sites

    def test_belong_to_the_digest(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        data = tmp_path / "net.onnx.data"
        before = load(path).digest
        assert before == hashlib.sha256(path.read_bytes() + data.read_bytes()).hexdigest()
        changed = bytearray(data.read_bytes())
        changed[0] ^= 1
        data.write_bytes(changed)
        assert load(path).digest != before

    def test_missing_are_named(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        (tmp_path / "net.onnx.data").unlink()
        refused(path, "keeps weights in 'net.onnx.data', which is not beside it", f"to '{tmp_path}'")

    def test_behind_a_link_in_a_folder_below(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        whole = load(path)
        model = onnx.load(path, load_external_data=False)
        (tmp_path / "sub").mkdir()
        (tmp_path / "net.onnx.data").rename(tmp_path / "blob")
        (tmp_path / "sub" / "w.bin").symlink_to("../blob")
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = "sub/w.bin"
        path.write_bytes(model.SerializeToString())
        assert load(path).model == whole.model

    @pytest.mark.parametrize("linked", [("net.onnx", "net.onnx.data"), ("net.onnx.data",)])
    def test_behind_links_are_read(self, tmp_path: Path, linked: tuple[str, ...]) -> None:
        """Hugging Face's cache is a folder of links to files that are called by their digests."""
        path = external(tmp_path)
        whole = load(path)
        (tmp_path / "blobs").mkdir()
        for name in linked:
            (tmp_path / name).rename(tmp_path / "blobs" / f"{len(name)}abc")
            (tmp_path / name).symlink_to(f"blobs/{len(name)}abc")
        again = load(path)
        assert (again.digest, again.model) == (whole.digest, whole.model)

    def test_truncated_are_refused(self, tmp_path: Path) -> None:
        path = external(tmp_path)
        data = tmp_path / "net.onnx.data"
        data.write_bytes(data.read_bytes()[:100])
        refused(path, "the external data of", "net.onnx")

    @pytest.mark.parametrize("place", ["../elsewhere.data", "/etc/hostname"])
    def test_outside_the_folder_are_refused(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "elsewhere.data").write_bytes(bytes(10_000))
        (tmp_path / "sub").mkdir()
        model = onnx.load(external(tmp_path / "sub"), load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = place
        (tmp_path / "sub" / "net.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelError):
            load(tmp_path / "sub" / "net.onnx")

    def test_of_a_model_in_memory_are_refused(self, tmp_path: Path) -> None:
        """Nobody knows where they are."""
        path = external(tmp_path)
        refused(path.read_bytes(), "'net.onnx.data'", "give the path")
        refused(onnx.load(path, load_external_data=False), "'net.onnx.data'", "give the path")


class TestSave:
    def test_writes_the_model(self, tmp_path: Path) -> None:
        save(residual(), tmp_path / "out.onnx")
        assert onnx.load(tmp_path / "out.onnx") == residual()
        assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"the folder '.*none' does not exist: create it, or choose another"):
            save(residual(), tmp_path / "none" / "out.onnx")

    def test_onto_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "out.onnx").mkdir()
        with pytest.raises(ModelError, match=r"out.onnx' cannot be written: Is a directory"):
            save(residual(), tmp_path / "out.onnx")
        assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]

    def test_over_the_limit_of_protobuf_weights_go_beside_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit is 2 GB: here it is lowered, and 400 weights are enough."""
        result = convert(heavy(), np.ones((4, 20), np.float32), eval_data=np.ones((4, 20), np.float32), steps=2)
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", 1000)
        path = result.save(tmp_path / "out.onnx")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
        again, _ = evaluate_file(path, np.ones((4, 20), np.float32), device="cpu")
        assert again.activity[0].rate == result.evaluation.activity[0].rate
        monkeypatch.undo()
        assert plain(onnx.load(path)) == plain(result.model)

    def test_a_runtime_takes_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with loadable(residual()) as source:
            assert isinstance(source, bytes)
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", 1000)
        with loadable(heavy()) as source:
            assert isinstance(source, Path)
            assert plain(onnx.load(source)) == plain(heavy())
        assert not source.parent.exists()

    def test_what_a_session_has_mapped_is_there_as_long_as_the_session(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where it cannot be deleted as long as it is mapped."""
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", 1000)
        monkeypatch.setattr(runtime, "_MAPPED_STAYS", True)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        session = Session(heavy())
        (folder,) = tmp_path.iterdir()
        assert sorted(p.name for p in folder.iterdir()) == ["model.onnx", "model.onnx.data"]
        x = numbers(2, 20)
        np.testing.assert_array_equal(session.run({"x": x})["y"], run(heavy(), {"x": x})["y"])
        del session
        assert not list(tmp_path.iterdir())
        monkeypatch.setattr(runtime, "_MAPPED_STAYS", False)
        session = Session(heavy())
        assert not list(tmp_path.iterdir())
        assert session.run({"x": x})["y"].shape == (2, 20)

    @pytest.mark.parametrize("large", [False, True])
    def test_a_session_lets_go_of_the_model(self, monkeypatch: pytest.MonkeyPatch, large: bool) -> None:
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", 1000 if large else files._PROTOBUF_LIMIT)
        monkeypatch.setattr(runtime, "_MAPPED_STAYS", True)
        model = heavy()
        before = sys.getrefcount(model)
        session = Session(model)
        assert sys.getrefcount(model) == before
        assert session.output_names == ["y"]

    def test_nothing_is_left_of_a_model_that_is_not_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", 1000)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        model = heavy()
        model.graph.node[1].op_type = "Unheard"
        with pytest.raises(ModelError, match="does not take the model"):
            Session(model)
        assert not list(tmp_path.iterdir())


class TestVersion:
    """Writers put the newest IR version that they know into a file, and an older runtime refuses it for that alone."""

    def test_one_that_the_opset_does_not_ask_for_is_lowered(self, tmp_path: Path) -> None:
        model = residual()
        model.ir_version = onnx.IR_VERSION
        onnx.save(model, tmp_path / "net.onnx")
        for given in (model, tmp_path / "net.onnx", model.SerializeToString()):
            assert load(given).model.ir_version == 10
        assert model.ir_version == onnx.IR_VERSION

    @pytest.mark.parametrize("version", [7, 10])
    def test_others_stay(self, version: int) -> None:
        model = residual()
        model.ir_version = version
        assert load(model).model is model

    def test_one_that_the_opset_asks_for_stays(self) -> None:
        opset = onnx.defs.onnx_opset_version()
        needed = helper.find_min_ir_version_for([helper.make_opsetid("", opset)])
        model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=opset)
        model.ir_version = onnx.IR_VERSION
        assert load(model).model.ir_version == max(needed, 10)


class TestLoadSnn:
    def test_an_ann_is_refused(self) -> None:
        with pytest.raises(ModelError, match="is no spiking network made by ftbc-onnx: convert the ANN first"):
            load_snn(RELU)

    def test_unreadable_as_load(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="does not exist"):
            load_snn(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match="no ONNX file"):
            load_snn(TEST)


CODES = {
    "FtbcError": 1,
    "ConfigError": 2,
    "OutOfMemoryError": 2,
    "ModelError": 3,
    "DataError": 4,
    "CalibrationError": 5,
    "DeviceError": 6,
    "VerificationError": 7,
    "InterruptError": 130,
}


class TestErrors:
    def test_every_error_has_the_documented_exit_code(self) -> None:
        kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
        assert {name: kind.exit_code for name, kind in kinds.items()} == CODES
        for name, code in CODES.items():
            assert issubclass(kinds[name], FtbcError)
            assert code == 1 or f"\n{code:<4} `{name}` " in errors.__doc__

    @pytest.mark.parametrize("name", CODES)
    def test_every_error_is_one_line(self, name: str) -> None:
        error = getattr(errors, name)("found this\n  in that\t file:\r\n do   something")
        assert str(error) == "found this in that file: do something"


def test_an_axis_of_minus_one_is_an_open_one() -> None:
    """So some exporters have spelled it; what was given stays as it is."""
    model = parse("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    before = model.SerializeToString()
    for given in (model, before):
        (spec,) = input_specs(load(given).model)
        assert spec.shape == (None, 3)
    assert model.SerializeToString() == before
    result = convert(model, numbers(16, 3), eval_data=numbers(16, 3), steps=2, neuron="if")
    assert result.report["verification"]["batch_sizes"] == [1, 2]


def test_specs_leave_out_constants_listed_as_inputs() -> None:
    model = residual()
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [4, 2, 3, 3]))
    (spec,) = input_specs(model)
    assert (spec.name, spec.dtype, spec.shape) == ("x", np.dtype(np.float32), ("N", 2, 4, 4))

"""One line with an exit code for whatever is wrong on the command line, and nothing left behind."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cli_cases import Caller, ann, call, data, fails  # noqa: F401 - fixtures
from helpers import numbers, parse
from networks import CALIBRATION, QCFS, RELU, residual
from test_runtime import needs_no_cuda

from ftbc_onnx import cli, pipeline, planning
from ftbc_onnx.config import RULES, THRESHOLDS


class TestFailures:
    def test_models(self, call: Caller, tmp_path: Path) -> None:
        bad = tmp_path / "bad.onnx"
        for content, part in (
            (b"", "is empty"),
            (RELU.read_bytes()[:50_000], "no ONNX file"),
            (b"hello", "no ONNX file"),
        ):
            bad.write_bytes(content)
            for command in (["convert", bad, "--calib-data", CALIBRATION], ["inspect", bad]):
                fails(call(*command), 3, bad, part)
        fails(call("convert", tmp_path / "none.onnx", "--calib-data", CALIBRATION), 3, "does not exist")
        fails(call("convert", tmp_path, "--calib-data", CALIBRATION), 3, "is a folder")
        fails(call("convert", ".", "--calib-data", CALIBRATION), 3, "is a folder")
        fails(call("convert", tmp_path / "none.onnx", "-o", bad, "--calib-data", CALIBRATION), 3, "does not exist")

    def test_refused_nodes(self, call: Caller, tmp_path: Path, data: Path) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  b = Bernoulli(r)  y = Add(r, b) }"
        onnx.save(parse(text), tmp_path / "r.onnx")
        fails(call("convert", tmp_path / "r.onnx", "--calib-data", data), 3, "1 node(s) refused: Bernoulli 'b'")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["data.npz", "r.onnx"]

    def test_weights_that_are_not_numbers(self, call: Caller, tmp_path: Path, data: Path) -> None:
        """Infinite ones are no error (masks and open ceilings have them), nor is a NaN that is only chosen from."""
        text = (
            "g (float[N,4] x) => (float[N,4] y) "
            "{ m = Mul(x, w)  r = Relu(m)  s = Min(r, top)  p = Greater(s, x)  q = Where(p, s, other)  i = IsNaN(q) "
            "y = Where(i, x, q) }"
        )
        for weight, name in ((np.nan, "nan.onnx"), (2.0, "right.onnx")):
            model = parse(text)
            values = {"w": np.float32([1, weight, 3, weight]), "top": np.float32(np.inf), "other": np.float32(np.nan)}
            model.graph.initializer.extend(onnx.numpy_helper.from_array(value, key) for key, value in values.items())
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32([np.nan]), "unused"))
            model.graph.node[0].name = "scale"
            onnx.save(model, tmp_path / name)
        reason = "Mul 'scale': 2 of the numbers in 'w' are NaN"
        fails(call("convert", tmp_path / "nan.onnx", "--calib-data", data), 3, "1 node(s) refused", reason)
        assert reason in " ".join(call("inspect", tmp_path / "nan.onnx").out.split())
        assert json.loads(call("inspect", tmp_path / "right.onnx", "--json").out)["refusals"] == []

    @pytest.mark.parametrize(
        ("array", "part"),
        [
            (np.zeros((8, 3, 4, 4), np.float32), "[N, 2, 4, 4]"),
            (np.zeros((8, 32), np.float32), "[N, 2, 4, 4]"),
            (np.zeros((8, 2, 4, 4), np.complex64), "complex64"),
            (np.full((8, 2, 4, 4), "a"), "<U1"),
            (np.full((8, 2, 4, 4), np.nan, np.float32), "NaN"),
            (np.zeros((0, 2, 4, 4), np.float32), "empty"),
        ],
        ids=["shape", "rank", "complex", "text", "nan", "none"],
    )
    def test_data(self, call: Caller, ann: Path, array: np.ndarray, part: str) -> None:
        path = ann.with_name("wrong.npz")
        np.savez(path, x=array)
        fails(call("convert", ann, "--calib-data", path), 4, "wrong.npz", part)
        assert not list(ann.parent.glob("*.snn_*"))

    def test_data_files(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        fails(call("convert", ann), 4, "calibration data are needed", f"ftbc-onnx convert {ann} --calib-data")
        fails(call("convert", ann, "--calib-data", tmp_path / "none.npz"), 4, "none.npz", "no such file")
        np.save(tmp_path / "pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
        fails(call("convert", ann, "--calib-data", tmp_path / "pickled.npy"), 4, "pickled.npy", "cannot be read")
        (tmp_path / "broken.npz").write_bytes(data.read_bytes()[:200])
        fails(call("convert", ann, "--calib-data", tmp_path / "broken.npz"), 4, "broken.npz", "cannot be read")
        fails(
            call("convert", ann, "--calib-data", data, "--batch-size", 17), 4, "16 samples", "--batch-size 16 or less"
        )
        fails(call("convert", ann, "--calib-data", data, "--eval-data", tmp_path), 4, "evaluation data")

    def test_options(self, call: Caller, ann: Path, data: Path) -> None:
        base = ("convert", ann, "--calib-data", data)
        fails(call(*base, "-T", 0), 2, "T (steps) is 0: it must be a whole number, at least 1")
        fails(call(*base, "-T", "four"), 2, "'four' is not a valid integer")
        fails(call(*base, "--rule", "potential"), 2, "'potential'", *RULES)
        fails(call(*base, "--threshold", "mean"), 2, "'mean'", *THRESHOLDS)
        fails(call(*base, "--neuron", "lif"), 2, "'lif' is not one of 'auto', 'if'")
        fails(call(*base, "--alpha", -1), 2, "alpha is -1.0")
        fails(call(*base, "--alpha", 0.4), 2, "--alpha goes with --rule paper, not with solve")
        fails(call(*base, "--no-counting", "--energy-mac", 1), 2, "--energy-mac goes with --counting")
        fails(call("convert", QCFS, "--energy-ac", 1), 2, "--energy-ac goes with --calib-data or --eval-data")
        fails(call(*base, "--label-offset", 1), 2, "--label-offset goes with --eval-data")
        for option in ("--label-offset", "--samples"):
            fails(call("export-nir", ann, option, 1), 2, f"{option} goes with --eval-data")
        fails(call(*base, "-o", ann.with_name("n" * 300 + ".onnx")), 3, "File name too long")
        fails(call(*base, "--percentile", 0), 2, "percentile is 0.0")
        fails(call(*base, "--percentile", 99, "--threshold", "max"), 2, "--percentile goes with --threshold percentile")
        fails(call(*base, "--batch-size", 0), 2, "batch_size is 0")
        fails(call(*base, "--calib-samples", 0), 2, "calib_samples is 0")
        fails(call(*base, "--mean", "a,b"), 2, "--mean 'a' is no number")
        fails(call(*base, "--scale", "1/0"), 2, "--scale '1/0' is no number")
        fails(call(*base, "--std", "1,0"), 2, "std", "0")
        fails(call(*base, "--mean", "1,2,3"), 2, "3 channels")
        fails(call(*base, "--resize", "big"), 2, "--resize 'big' is no size")
        fails(call(*base, "--crop", "1x2x3"), 2, "--crop '1x2x3' is no size")
        fails(call(*base, "--resize", 8), 2, "resize, crop and color work on image files")
        fails(call(*base, "--layout", "CHWN"), 2, "'CHWN'")
        fails(call(*base, "--stepz", 4), 2, "--stepz", "--steps")
        fails(call("convrt", ann), 2, "No such command 'convrt'")
        fails(call("convert"), 2, "Missing argument 'MODEL'")
        assert not list(ann.parent.glob("*.snn_*"))

    def test_output(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        base = ("convert", ann, "--calib-data", data, "-T", 2, "-o")
        before = ann.read_bytes()
        fails(call(*base, ann), 2, "is the input itself: choose another name")
        fails(call(*base, tmp_path / "." / "net.onnx"), 2, "is the input itself")
        fails(call(*base, tmp_path), 2, "is a folder: give the name of a file")
        fails(call(*base, tmp_path / "none" / "o.onnx"), 2, "the folder of --output", "does not exist: create it first")
        assert ann.read_bytes() == before

    def test_output_over_what_is_no_model(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        """The data, or the weights of the ANN, must not be lost by a slip of the keyboard."""
        weights = tmp_path / "net.onnx.data"
        onnx.save_model(onnx.load(ann), ann, save_as_external_data=True, location=weights.name, size_threshold=0)
        for target in (data, weights):
            before = target.read_bytes()
            done = call("convert", ann, "--calib-data", data, "-T", 2, "-o", target)
            fails(done, 2, f"--output '{target}' exists and is no .onnx file: choose another name")
            assert target.read_bytes() == before

    @needs_no_cuda
    def test_cuda_where_there_is_none(self, call: Caller, ann: Path, data: Path) -> None:
        fails(call("convert", ann, "--calib-data", data, "--device", "cuda"), 6, "--device cuda: ", "use --device cpu")

    def test_unknown_device(self, call: Caller, ann: Path, data: Path) -> None:
        fails(call("convert", ann, "--calib-data", data, "--device", "tpu"), 6, "unknown device 'tpu'")

    def test_biases_that_are_not_finite(self, call: Caller, ann: Path, tmp_path: Path) -> None:
        np.savez(tmp_path / "d.npz", x=numbers(64, 2, 4, 4) * 100)
        options = ("--rule", "paper", "--alpha", 3e38, "--batch-size", 8, "-T", 2)
        fails(call("convert", ann, "--calib-data", tmp_path / "d.npz", *options), 5, "not finite", "--alpha")

    def test_a_result_that_is_not_its_plan(
        self, call: Caller, ann: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        emit = pipeline.emit
        spoilt = lambda network, plan, form, **_: emit(network, plan.without_biases(), form)  # noqa: E731
        monkeypatch.setattr(pipeline, "emit", spoilt)
        fails(call("convert", ann, "--calib-data", data, "-T", 2), 7, "differs from its plan")
        assert not list(ann.parent.glob("*.snn_*"))


class TestInterruption:
    @pytest.mark.parametrize("stage", ["collect_statistics", "calibrate", "verify", "run_ann", "save"])
    def test_leaves_nothing_behind(
        self, call: Caller, ann: Path, data: Path, monkeypatch: pytest.MonkeyPatch, stage: str
    ) -> None:
        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        room = planning if stage in ("collect_statistics", "calibrate") else pipeline
        monkeypatch.setattr(room, stage, interrupted)
        before = sorted(ann.parent.iterdir())
        done = call("convert", ann, "--calib-data", data, "-T", 2)
        assert done.code == 130
        assert done.out == ""
        assert done.err.strip() == f"ftbc-onnx: error: {cli.INTERRUPTED}"
        assert sorted(ann.parent.iterdir()) == before

    def test_a_bug_keeps_its_traceback(
        self, call: Caller, ann: Path, data: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: Any, **__: Any) -> None:
            raise ZeroDivisionError("a bug")

        monkeypatch.setattr(pipeline, "verify", broken)
        with pytest.raises(ZeroDivisionError):
            call("convert", ann, "--calib-data", data, "-T", 2)


HERE = "models/digits_relu.onnx"
DOCUMENTED: dict[str, tuple[object, ...]] = {
    "T is 0": (HERE, "-T", 0),
    "`-o` is the input": (HERE, "-o", HERE),
    "`-o` is the data": (HERE, "--calib-data", "calib.npy", "-o", "calib.npy"),
    "no such file": ("nothere.onnx",),
    "a random operator": ("noisy.onnx",),
    "weights left behind": ("net.onnx",),
    "training diverged": ("diverged.onnx",),
    "an SNN as input of `convert`": ("digits_snn.onnx",),
    "ReLU without data": (HERE,),
    "a pickled array": (HERE, "--calib-data", "objects.npy"),
    "a batch larger than the data": (HERE, "--calib-data", CALIBRATION, "--batch-size", 500),
}
"""Arguments of `convert` for each example of docs/errors.md."""


def test_every_example_of_the_page_of_errors(call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path(HERE).write_bytes(RELU.read_bytes())
    np.save("calib.npy", numbers(4, 1, 8, 8))
    np.save("objects.npy", np.array([{}], object), allow_pickle=True)
    onnx.save(parse("g (float[N,4] x) => (float[N,4] y) { r = Relu(x) b = Bernoulli(r) y = Add(r, b) }"), "noisy.onnx")
    onnx.save_model(residual(), "net.onnx", save_as_external_data=True, location="net.onnx.data", size_threshold=0)
    Path("net.onnx.data").unlink()
    broken = parse("g (float[N,2] x) => (float[N,2] y) <float[2] scale = {1, 1}> { m = Mul(x, scale) y = Relu(m) }")
    broken.graph.node[0].name = "stem"
    broken.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.float32([1, np.nan]), "scale"))
    onnx.save(broken, "diverged.onnx")
    pipeline.convert(QCFS, steps=1).save("digits_snn.onnx")
    page = Path(__file__).parents[1] / "docs" / "errors.md"
    _, _, table = page.read_text(encoding="utf-8").partition("## Examples")
    rows = [[cell.strip() for cell in line.split(" | ")] for line in table.splitlines() if line.startswith("| ")][2:]
    examples = {row[0].removeprefix("| "): (row[1].strip("`"), int(row[2].rstrip(" |"))) for row in rows}
    assert examples.pop("no GPU")[1] == 6  # the line depends on the machine
    assert examples.keys() == DOCUMENTED.keys()
    for situation, (line, code) in examples.items():
        before = sorted(tmp_path.rglob("*"))
        done = call("convert", *DOCUMENTED[situation])
        assert fails(done, code) == f"ftbc-onnx: error: {line}"
        assert sorted(tmp_path.rglob("*")) == before

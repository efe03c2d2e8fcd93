"""``ftbc-onnx verify``: a file is what its plan says, whatever its form and whoever has rewritten it since."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli_cases import Caller, ann, call, data  # noqa: F401 - fixtures
from onnx import numpy_helper

from ftbc_onnx import ConfigError, ModelError, Preprocessing, convert
from ftbc_onnx.verify import verify_file

T = 3
FORMS = ("fused", "unrolled", "folded", "loop", "step")


def written(ann: Path, data: Path, **options: object) -> Path:
    """The SNN of `ann`, in a file beside it."""
    named = {"neuron": "if", "gate": False, "threshold": "mse", **options}
    return convert(ann, data, steps=T, verify=False, counting=False, compare=False, **named).save()


def optimised(path: Path) -> Path:
    """What onnxruntime makes of a file: other nodes, names and initializers."""
    target, options = path.with_name("optimised.onnx"), ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return target


def spoilt(path: Path, what: str) -> Path:
    """The file with the initializers whose names end so half as large again."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith(what):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    onnx.save(model, path.with_name("spoilt.onnx"))
    return path.with_name("spoilt.onnx")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_its_plan_to_the_last_bit(call: Caller, ann: Path, data: Path, form: str) -> None:
    path = written(ann, data, form=form)
    done = call("verify", path, "--ann", ann, "--data", data)
    assert (done.code, done.err) == (0, "")
    assert f"equal to the last bit over {T} steps" in done.out
    assert call("verify", path, "--ann", ann).code == 0  # on random numbers


@pytest.mark.parametrize(
    "options",
    [
        {"refit": True, "rule": "solve"},
        {"form": "loop", "steps_input": True},
        {"schedule": "synchronous"},
        {"form": "unrolled", "float16": True},
        {"fuse": ("thresholds",), "form": "fused"},
        {"opset": 19},
    ],
)
def test_options_of_the_conversion_are_those_of_the_file(ann: Path, data: Path, options: dict[str, object]) -> None:
    result = verify_file(written(ann, data, **options), ann, data, samples=5)
    assert (result.bitwise, result.samples) == (True, 5)


def test_json_is_the_result_alone(call: Caller, ann: Path, data: Path) -> None:
    done = call("verify", written(ann, data), "--ann", ann, "--data", data, "--samples", 4, "--json")
    assert {"samples": 4, "steps": T, "bitwise": True}.items() <= json.loads(done.out).items()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", ["threshold", "bias"])
def test_numbers_of_the_plan_that_were_changed_are_found(
    call: Caller, ann: Path, data: Path, form: str, what: str
) -> None:
    path = written(ann, data, form=form)
    done = call("verify", spoilt(path, f"/{what}"), "--ann", ann, "--data", data)
    assert (done.code, done.out) == (7, "")
    assert "thresholds, biases or layers are not those that were written" in done.err
    assert "--original" in done.err


@pytest.mark.parametrize("options", [{"refit": True, "rule": "solve"}, {"form": "unrolled"}])
def test_weights_that_were_changed_are_found(call: Caller, ann: Path, data: Path, options: dict[str, object]) -> None:
    path = written(ann, data, **options)
    names = [tensor.name for tensor in onnx.load(path).graph.initializer if tensor.name.startswith("w")]
    for name in names:
        done = call("verify", spoilt(path, name), "--ann", ann, "--data", data)
        assert done.code == 7, name
    assert names


@pytest.mark.parametrize("form", ["unrolled", "loop", "folded", "fused"])
def test_outputs_of_a_file_with_other_thresholds_are_not_the_original_s(
    call: Caller, ann: Path, data: Path, form: str
) -> None:
    path = written(ann, data, form=form)
    done = call("verify", spoilt(path, "/threshold"), "--original", path, "--ann", ann, "--data", data)
    assert (done.code, done.out) == (7, "")
    assert "on average from those of the original's plan: 1% is taken for rounding" in done.err


@pytest.mark.parametrize("form", ["unrolled", "loop", "fused"])
def test_what_onnxruntime_has_rewritten_is_compared_by_its_outputs(
    call: Caller, ann: Path, data: Path, form: str
) -> None:
    path = written(ann, data, form=form)
    done = call("verify", optimised(path), "--original", path, "--ann", ann, "--data", data, "--samples", 16)
    assert (done.code, done.err) == (0, "")
    assert f"outputs after {T} steps are those of the plan, within 0.0" in done.out


def test_mistakes_are_one_line(call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
    step = written(ann, data, form="step").rename(tmp_path / "step.onnx")
    path = written(ann, data)
    other = onnx.load(ann)
    other.producer_name = "another export"
    onnx.save(other, tmp_path / "other.onnx")
    renamed = onnx.load(path)
    renamed.graph.output[0].name = "renamed"
    renamed.graph.node[-1].output[0] = "renamed"
    onnx.save(renamed, tmp_path / "renamed.onnx")
    for arguments, code, words in (
        ((path, "--ann", tmp_path / "other.onnx"), 3, "their digests differ"),
        ((ann, "--ann", ann), 3, "is no spiking network made by ftbc-onnx"),
        ((tmp_path / "none.onnx", "--original", path, "--ann", ann), 3, "does not exist"),
        ((path, "--original", step, "--ann", ann), 2, "--original goes with files of all T steps"),
        ((tmp_path / "renamed.onnx", "--original", path, "--ann", ann), 7, "names must be kept"),
        ((path, "--ann", ann, "--samples", 0), 2, "--samples is 0"),
        (
            (optimised(path), "--ann", ann),
            3,
            "give it as convert wrote it (ftbc-onnx verify compares the two, --original)",
        ),
    ):
        done = call("verify", *arguments)
        assert (done.code, done.out) == (code, "")
        assert words in done.err
        assert done.err.count("\n") == 1


@pytest.mark.parametrize("form", FORMS)
def test_data_beyond_all_bounds_raise_no_warning(ann: Path, data: Path, form: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verify_file(written(ann, data, form=form), ann, np.full((4, 2, 4, 4), 1e38, np.float32))


def test_mistakes_from_python(ann: Path, data: Path) -> None:
    path = written(ann, data)
    for model in (None, 5, onnx.load(path)):
        with pytest.raises(ModelError, match=f"the model is a {type(model).__name__}"):
            verify_file(model, ann)
    with pytest.raises(ConfigError, match=r"samples is 2\.5: it must be a whole number"):
        verify_file(path, ann, data, samples=2.5)
    with pytest.raises(ConfigError, match=r"it must be an ftbc_onnx\.Preprocessing"):
        verify_file(path, ann, data, preprocessing={"scale": 2})
    with pytest.raises(ConfigError, match="preprocessing goes with data, which are not given"):
        verify_file(path, ann, preprocessing=Preprocessing(scale=2.0))


def test_a_step_has_no_output_after_all_of_them(ann: Path, data: Path) -> None:
    path = written(ann, data, form="step")
    loop = written(ann, data, form="loop").rename(path.with_name("loop.onnx"))
    path = written(ann, data, form="step")
    for model, original in ((loop, path), (path, loop), (path, path)):
        with pytest.raises(ConfigError, match="one of a single step"):
            verify_file(model, ann, original=original)

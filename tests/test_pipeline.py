"""The whole conversion: what goes in, what it refuses before any work, what the model and its report say."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_valid, numbers, parse, run
from networks import CALIBRATION, QCFS, RELU, TEST, digits, inputs, network_of, residual

from ftbc_onnx import ConfigError, ConvertConfig, DataError, ModelError, VerificationError, convert, pipeline, planning
from ftbc_onnx.config import THRESHOLDS
from ftbc_onnx.graph import files
from ftbc_onnx.graph.provenance import read_plan, read_record
from ftbc_onnx.pipeline import ConversionResult

QUICK: dict[str, Any] = {"steps": 3, "calib_samples": 16}
PLAIN: dict[str, Any] = {"neuron": "if", "gate": False}
"""Nothing is chosen on samples held back (with a threshold that is named)."""
REFUSED = """g (float[N,4] x) => (float[N,4] y)
    { r = Relu(x)  a = Bernoulli(r)  b = RandomNormalLike(r)  c = org.acme.Gate(r)  y = Sum(a, b, c) }"""


def quick(model: Any = None, data: Any = None, **options: Any) -> ConversionResult:
    """Convert `residual` (or a model) in three steps on 16 samples."""
    return convert(residual() if model is None else model, inputs(16) if data is None else data, **{**QUICK, **options})


def working(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is recorded if any work is begun: statistics, calibration, emission."""
    begun: list[str] = []
    stages = (
        (planning, "collect_statistics"),
        (planning, "calibrate"),
        *((pipeline, name) for name in ("emit", "verify", "run_ann")),
    )
    for room, name in stages:
        monkeypatch.setattr(room, name, lambda *_, name=name, **__: begun.append(name))
    return begun


class TestInputs:
    def test_path_bytes_and_proto_give_the_same_network(self) -> None:
        path, raw, proto = (
            convert(model, CALIBRATION, **QUICK) for model in (RELU, RELU.read_bytes(), onnx.load(RELU))
        )
        assert path.model.graph == raw.model.graph == proto.model.graph
        assert path.plan.source_digest == raw.plan.source_digest
        assert (path.report["source"], raw.report["source"]) == ("digits_relu.onnx", "model")

    def test_text_paths_too(self) -> None:
        assert convert(str(RELU), str(CALIBRATION), **QUICK).source.path == RELU

    def test_the_proto_given_is_left_alone(self) -> None:
        model = residual()
        before = model.SerializeToString(deterministic=True)
        quick(model)
        assert model.SerializeToString(deterministic=True) == before

    def test_an_endless_source_of_data_is_read_as_far_as_needed(self) -> None:
        def feeds() -> Iterator[dict[str, np.ndarray]]:
            for seed in itertools.count():
                assert seed < 10
                yield {"x": inputs(4, seed)}

        result = convert(residual(), feeds(), **QUICK)
        assert result.report["samples"] == 16
        assert result.plan == quick(data=np.concatenate([inputs(4, seed) for seed in range(4)])).plan

    def test_calibration_samples_are_taken_evenly_over_all_of_them(self) -> None:
        images, _ = digits("calibration")
        all_of_them = convert(RELU, images, **QUICK)
        some = convert(RELU, images[:: len(images) // 16], **QUICK)
        assert all_of_them.plan == some.plan
        assert all_of_them.report["samples"] == 16


class TestWithoutData:
    def test_qcfs_is_converted_without_biases(self) -> None:
        result = convert(QCFS, steps=4)
        assert all(not bias.any() for bias in result.plan.biases.values())
        assert [site.op_type for site in result.plan.sites] == ["QCFS"] * 4
        report = result.report
        assert report["rule"] == read_record(result.model)["rule"] == "none"
        assert report["data"] == "none"
        assert report["calibration"] is None
        assert report["threshold"] == "stated by the QCFS activations"
        assert report["verification"]["bitwise"]

    def test_plain_rectifiers_are_refused_with_the_command(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(DataError) as caught:
            convert(RELU)
        message = str(caught.value)
        assert "states no threshold for 4 of 4 activations ('node_relu' first)" in message
        assert f"ftbc-onnx convert {RELU} --calib-data" in message
        assert "--random-data" in message
        assert not begun

    def test_random_data_are_marked_everywhere(self) -> None:
        result = convert(RELU, random_data=True, seed=3, **QUICK)
        record = read_record(result.model)
        assert result.report["random_data"] is True
        assert record["random_data"] == "true"
        assert result.report["data"] == record["data"] == "random (seed 3)"
        assert result.report["samples"] == 16

    def test_data_given_are_not_random_whatever_their_name(self, tmp_path: Path) -> None:
        path = tmp_path / "random_images.npz"
        np.savez(path, x=inputs(16))
        result = quick(data=path, random_data=True)
        assert result.report["data"] == "random_images.npz"
        assert result.report["random_data"] is False


def fixed_batch(model: onnx.ModelProto, size: int) -> onnx.ModelProto:
    """The model with its batch fixed."""
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = size
    return model


class TestFixedBatch:
    @pytest.mark.parametrize("size", [1, 4])
    def test_calibrates_as_with_a_free_one_and_stays_fixed(self, size: int) -> None:
        labelled = (inputs(10, seed=2), np.arange(10) % 3)
        free = quick(eval_data=labelled)
        fixed = quick(fixed_batch(residual(), size), eval_data=labelled)
        for name, bias in free.plan.biases.items():
            np.testing.assert_array_equal(fixed.plan.biases[name], bias)
            np.testing.assert_array_equal(fixed.plan.thresholds[name], free.plan.thresholds[name])
        assert fixed.report["calibration"]["batches"] == 1
        assert fixed.evaluation.samples == 10
        assert fixed.evaluation.accuracy == free.evaluation.accuracy
        assert [d.dim_value for d in fixed.model.graph.input[0].type.tensor_type.shape.dim] == [size, 2, 4, 4]
        x = inputs(size)
        np.testing.assert_array_equal(run(fixed.model, {"x": x})["y"], run(free.model, {"x": x})["y"])

    def test_that_is_needed_inside_gets_batches_of_its_size(self) -> None:
        """It subtracts the mean over the batch: two batches in one run are not two runs."""
        text = "g (float[4,6] x) => (float[4,6] y) { m = ReduceMean<axes=[0]>(x)  d = Sub(x, m)  y = Relu(d) }"
        result = convert(parse(text), numbers(15, 6), steps=2)
        assert (result.report["calibration"]["batches"], result.report["samples"]) == (3, 12)
        assert result.evaluation.samples == 15
        with pytest.raises(DataError, match=r"takes batches of exactly 4, and the calibration data .* give 3 samples"):
            convert(parse(text), numbers(3, 6), steps=2)


class TestSameAgain:
    @pytest.mark.parametrize("options", [{}, {"rule": "paper"}, {"threshold": "percentile"}, {"threshold": "max"}])
    def test_same_inputs_same_bytes(self, options: dict[str, Any]) -> None:
        once, again = (quick(**options).model.SerializeToString(deterministic=True) for _ in range(2))
        assert once == again

    def test_same_seed_same_bytes_and_another_seed_others(self) -> None:
        def made(seed: int) -> ConversionResult:
            return convert(RELU, random_data=True, seed=seed, **QUICK)

        assert made(1).model.SerializeToString(deterministic=True) == made(1).model.SerializeToString(
            deterministic=True
        )
        assert made(1).plan != made(2).plan


class TestPlan:
    @pytest.mark.parametrize("options", [{}, {"rule": "none"}, {"threshold": "max", "per_channel": False}])
    def test_is_read_back_from_the_model(self, options: dict[str, Any]) -> None:
        result = quick(**options)
        assert read_plan(result.model) == result.plan
        again = onnx.ModelProto()
        again.ParseFromString(result.model.SerializeToString())
        assert read_plan(again) == result.plan

    def test_plans_that_differ_in_a_number_are_not_equal(self) -> None:
        plan = quick().plan
        name = plan.sites[1].name
        other = plan.biases[name].copy()
        other[1, 2] += 1
        assert plan.with_biases({**plan.biases, name: other}) != plan
        assert plan.prefix(2) != plan
        assert plan.prefix(3) == plan

    def test_biases_of_a_shorter_run_are_the_first_rows_of_a_longer(self) -> None:
        """With thresholds that do not depend on T; nothing else does."""
        for rule in ("solve", "paper"):
            long, short = (
                convert(RELU, CALIBRATION, steps=steps, threshold="max", rule=rule, calib_samples=32, **PLAIN)
                for steps in (8, 4)
            )
            assert long.plan.prefix(4) == short.plan
            assert any(bias.any() for bias in short.plan.biases.values())

    def test_numbers_of_sites_that_do_not_exist_are_refused(self) -> None:
        plan = quick().plan
        with pytest.raises(ConfigError, match="do not fit the sites of the plan: typo"):
            plan.with_biases({"typo": np.zeros((3, 4))})

    def test_incomplete_metadata_are_refused(self) -> None:
        model = quick().model
        kept = [entry for entry in model.metadata_props if entry.key != "ftbc_onnx.plan"]
        del model.metadata_props[:]
        model.metadata_props.extend(kept)
        with pytest.raises(ModelError, match="the plan in the model's metadata is incomplete"):
            read_plan(model)


@pytest.fixture(scope="module")
def annotated() -> onnx.ModelProto:
    model = residual()
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key="licence", value="CC0")
    model.doc_string, model.domain, model.model_version = "a network", "org.example", 7
    model.graph.doc_string = "its graph"
    return model


@pytest.fixture(scope="module")
def kept(annotated: onnx.ModelProto) -> ConversionResult:
    return quick(annotated)


class TestWhatSurvives:
    def test_the_users_metadata(self, kept: ConversionResult) -> None:
        entries = {entry.key: entry.value for entry in kept.model.metadata_props}
        assert entries["author"] == "somebody"
        assert entries["licence"] == "CC0"
        assert len(entries) == len(kept.model.metadata_props)
        ours = set(entries) - {"author", "licence"}
        assert ours
        assert all(key.startswith("ftbc_onnx.") for key in ours)

    def test_doc_strings_domain_and_version(self, kept: ConversionResult, annotated: onnx.ModelProto) -> None:
        assert (kept.model.doc_string, kept.model.domain, kept.model.model_version) == (
            "a network",
            "org.example",
            7,
        )
        assert kept.model.graph.doc_string == "its graph"
        assert kept.model.graph.name == annotated.graph.name

    def test_inputs_and_outputs_with_their_free_batch(self, kept: ConversionResult, annotated: onnx.ModelProto) -> None:
        assert list(kept.model.graph.input) == list(annotated.graph.input)
        assert list(kept.model.graph.output) == list(annotated.graph.output)
        for rows in (1, 5):
            assert run(kept.model, {"x": inputs(rows)})["y"].shape == (rows, 3)

    def test_opset_and_an_ir_version_that_runtimes_take(self) -> None:
        for opset in (13, 17, 20):
            model = quick(residual(opset)).model
            assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
            assert model.ir_version <= residual(opset).ir_version
            assert_valid(model)

    def test_what_it_remembers(self, kept: ConversionResult) -> None:
        record = read_record(kept.model)
        assert record["source_digest"] == kept.source.digest
        assert json.loads(record["options"]) == ConvertConfig(**QUICK).as_dict()
        assert record["rule"] == "solve"
        assert record["samples"] == "16"
        assert record["form"] == "fused"
        assert len(record["data_digest"]) == 64
        assert json.loads(record["plan"])["steps"] == 3


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return convert(RELU, CALIBRATION, eval_data=TEST, steps=4, threshold="mse", **PLAIN).report


class TestReport:
    def test_is_plain_json(self, report: dict[str, Any]) -> None:
        assert json.loads(json.dumps(report, allow_nan=False)) == report

    def test_holds_every_stage(self, report: dict[str, Any]) -> None:
        assert report["steps"] == 4
        assert report["calibration"]["samples"] == 256
        assert report["verification"]["bitwise"]
        assert report["evaluation"]["samples"] == report["evaluation_without_bias"]["samples"] == 360
        assert report["evaluation"]["accuracy"] != report["evaluation_without_bias"]["accuracy"]
        assert [site["name"] for site in report["sites"]] == list(report["evaluation"]["sites"])
        assert sum(report["node_classes"].values()) == 13

    def test_evaluation_without_bias_is_that_of_plain_conversion(self, report: dict[str, Any]) -> None:
        plain = convert(
            RELU, CALIBRATION, eval_data=TEST, steps=4, threshold="mse", rule="none", form="unrolled", **PLAIN
        )
        assert plain.report["evaluation"]["accuracy"] == report["evaluation_without_bias"]["accuracy"]
        for name, site in report["evaluation_without_bias"]["sites"].items():
            there = plain.report["evaluation"]["sites"][name]
            assert (site["gap"], site["rate"]) == (there["gap"], there["rate"])
            assert site["events"] is None  # counted once, with biases
        assert plain.report["rule"] == "none"

    def test_progress_is_told_by_stage(self) -> None:
        seen: list[tuple[str, int, int]] = []
        quick(progress=lambda *now: seen.append(now), eval_data=inputs(8), gate=False)
        assert list(dict.fromkeys(stage for stage, _, _ in seen)) == [
            "ANN",
            "thresholds",
            "choices",
            "biases",
            "verification",
            "evaluation",
            "evaluation without bias",
        ]
        last = {stage: (done, total) for stage, done, total in seen}
        assert all(done == total for done, total in last.values())


class TestRefusals:
    def test_all_of_them_at_once_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(ModelError) as caught:
            convert(parse(REFUSED, domains='"org.acme" : 1'), numbers(8, 4))
        message = str(caught.value)
        assert "3 node(s) refused" in message
        for op in ("Bernoulli 'a'", "RandomNormalLike 'b'", "Gate 'c'"):
            assert op in message
        assert "\n" not in message
        assert not begun

    def test_nothing_to_convert(self) -> None:
        with pytest.raises(ModelError, match="has no activation to convert"):
            convert(parse("g (float[N,4] x) => (float[N,4] y) { y = Add(x, x) }"), numbers(8, 4))

    def test_no_output_behind_an_activation(self) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  s = Shape(r)  y = Expand(x, s) }"
        with pytest.raises(ModelError, match=r"no output of 'g' depends on an activation|has no activation to convert"):
            convert(parse(text), numbers(8, 4))

    def test_data_that_do_not_fit_before_any_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(DataError, match=r"\[N, 2, 4, 4\]"):
            quick(data=numbers(16, 3, 4, 4))
        with pytest.raises(DataError, match="evaluation data"):
            quick(eval_data=numbers(16, 3, 4, 4))
        with pytest.raises(DataError, match="16 samples, fewer than one batch of 17: use --batch-size 16 or less"):
            quick(batch_size=17)
        assert not begun

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stepz": 4}, "unknown option 'stepz': did you mean 'steps'?"),
            ({"treshold": "max"}, "unknown option 'treshold': did you mean 'threshold'?"),
            ({"qqq": 1}, "unknown option 'qqq': the options are steps, neuron"),
            ({"steps": 0}, "T (steps) is 0: it must be a whole number, at least 1"),
            ({"steps": 2.5}, "T (steps) is 2.5"),
            ({"steps": True}, "T (steps) is True"),
            ({"steps": None}, "T (steps) is None"),
            ({"calib_samples": -1}, "calib_samples is -1"),
            ({"batch_size": 0}, "batch_size is 0"),
            ({"threshold": "mean"}, "threshold is 'mean'"),
            ({"rule": "solv"}, "rule is 'solv' (did you mean 'solve'?): choose one of solve, paper, none"),
            ({"percentile": 0}, "percentile is 0: it must be above 0 and at most 100"),
            ({"percentile": 101.0}, "percentile is 101.0"),
            ({"percentile": float("nan")}, "percentile is nan"),
            ({"percentile": "99"}, "percentile is 99"),
            ({"alpha": -0.4}, "alpha is -0.4: it must be a positive number"),
            ({"alpha": float("inf")}, "alpha is inf"),
            ({"alpha": None}, "alpha is None"),
            ({"per_channel": "no"}, "per_channel is 'no': it must be True or False"),
            ({"neuron": "lif"}, "unknown neuron 'lif' (did you mean 'if'?): choose one of if, signed"),
        ],
    )
    def test_options(self, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
        begun = working(monkeypatch)
        with pytest.raises(ConfigError) as caught:
            convert(residual(), inputs(16), **options)
        assert str(caught.value).startswith(message)
        assert not begun

    def test_options_beside_a_config(self) -> None:
        with pytest.raises(ConfigError, match="option 'steps' is given beside a config"):
            convert(residual(), inputs(16), config=ConvertConfig(), steps=4)

    def test_a_model_that_is_not_its_plan_is_not_given_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def tampered(network: Any, plan: Any, form: str, **_: Any) -> Any:
            return emit(network, plan.without_biases(), form)

        emit = pipeline.emit
        monkeypatch.setattr(pipeline, "emit", tampered)
        with pytest.raises(VerificationError):
            quick(gate=False)
        assert quick(verify=False).report["verification"] is None


class TestSave:
    @pytest.fixture
    def result(self, tmp_path: Path) -> ConversionResult:
        onnx.save(residual(), tmp_path / "net.v2.onnx")
        return quick(tmp_path / "net.v2.onnx")

    def test_beside_the_input_by_default(self, result: ConversionResult, tmp_path: Path) -> None:
        assert result.save() == tmp_path / "net.v2.snn_T3.onnx"
        assert onnx.load(tmp_path / "net.v2.snn_T3.onnx") == result.model

    def test_of_a_proto_in_the_current_folder_under_the_graphs_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert quick().save() == Path("residual.snn_T3.onnx")
        model = residual()
        model.graph.name = "main/graph:0"
        path = quick(model).save()
        assert path.is_file()
        assert path.resolve().parent == tmp_path

    @pytest.mark.parametrize("alias", ["same", "link", "dots"])
    def test_never_over_the_input(self, result: ConversionResult, tmp_path: Path, alias: str) -> None:
        source = tmp_path / "net.v2.onnx"
        before = source.read_bytes()
        (tmp_path / "link.onnx").symlink_to(source)
        (tmp_path / "sub").mkdir()
        path = {"same": source, "link": tmp_path / "link.onnx", "dots": tmp_path / "sub" / ".." / "net.v2.onnx"}[alias]
        with pytest.raises(ModelError, match="is the input itself: choose another --output"):
            result.save(path)
        assert source.read_bytes() == before

    def test_over_an_older_result(self, result: ConversionResult, tmp_path: Path) -> None:
        (tmp_path / "out.onnx").write_bytes(b"old")
        assert onnx.load(result.save(tmp_path / "out.onnx")) == result.model

    def test_although_the_input_is_gone(self, result: ConversionResult, tmp_path: Path) -> None:
        (tmp_path / "out.onnx").write_bytes(b"old")
        (tmp_path / "net.v2.onnx").unlink()
        assert onnx.load(result.save(tmp_path / "out.onnx")) == result.model

    def test_missing_folder(self, result: ConversionResult, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"the folder '.*nowhere' does not exist: create it"):
            result.save(tmp_path / "nowhere" / "out.onnx")

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    @pytest.mark.parametrize("limit", [files._PROTOBUF_LIMIT, 1000])
    def test_whole_or_not_at_all(
        self,
        result: ConversionResult,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        error: BaseException,
        limit: int,
    ) -> None:
        """With one file, and with weights beside it as over 2 GB."""
        monkeypatch.setattr(files, "_PROTOBUF_LIMIT", limit)
        target = tmp_path / "out.onnx"
        target.write_bytes(b"old")
        before = sorted(tmp_path.iterdir())

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(ModelError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
            result.save(target)
        if isinstance(error, OSError):
            assert "cannot be written: No space left on device" in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
        assert target.read_bytes() == b"old"


class TestAccuracy:
    """On the digits: 360 images, one is 0.28 %."""

    def test_qcfs_at_8_steps_is_within_a_point_of_its_ann(self) -> None:
        evaluation = convert(QCFS, CALIBRATION, eval_data=TEST, steps=8).evaluation
        assert abs(evaluation.ann_accuracy - 99.72) < 0.01
        assert evaluation.accuracy[-1] >= evaluation.ann_accuracy - 1

    def test_relu_at_8_steps_is_within_a_point_and_biases_help_at_the_first(self) -> None:
        result = convert(RELU, CALIBRATION, eval_data=TEST, steps=8, threshold="mse", **PLAIN)
        assert result.evaluation.ann_accuracy == 100
        assert result.evaluation.accuracy[-1] >= 99
        assert result.evaluation.accuracy[0] > result.report["evaluation_without_bias"]["accuracy"][0] + 10

    @pytest.mark.parametrize("threshold", THRESHOLDS)
    def test_every_threshold_works(self, threshold: str) -> None:
        result = convert(RELU, CALIBRATION, eval_data=TEST, steps=8, threshold=threshold)
        assert result.evaluation.accuracy[-1] >= 95


class TestRunningMean:
    def test_gives_the_output_after_every_step(self) -> None:
        result = quick(running_mean=True)
        assert_valid(result.model)
        found = run(result.model, {"x": inputs(5)}, optimise=False)
        assert found["y/running_mean"].shape == (3, 5, 3)
        np.testing.assert_array_equal(found["y/running_mean"][-1], found["y"])
        for t in (1, 2):
            shorter = run(pipeline.emit(network_of(residual()), result.plan.prefix(t)).model, {"x": inputs(5)}, False)
            np.testing.assert_array_equal(found["y/running_mean"][t - 1], shorter["y"])
        assert read_plan(result.model) == result.plan

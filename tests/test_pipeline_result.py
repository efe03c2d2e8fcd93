"""What a conversion gives back: the plan in the model, what survives of the user's model, and the report."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import pytest
from helpers import assert_valid, run
from networks import CALIBRATION, RELU, TEST, inputs, residual
from pipeline_cases import PLAIN, QUICK, quick

from ftbc_onnx import ConfigError, ConvertConfig, ModelError, convert
from ftbc_onnx.graph.provenance import read_plan, read_record
from ftbc_onnx.pipeline import ConversionResult

BRIEF = {"compare": False, "counting": False}


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

    @pytest.mark.parametrize("form", ["fused", "unrolled", "loop", "folded"])
    def test_evaluation_without_bias_is_that_of_plain_conversion(self, form: str) -> None:
        """In the same form, since fused networks round in other places."""
        report, plain = (
            convert(RELU, CALIBRATION, eval_data=TEST, steps=4, threshold="mse", form=form, **PLAIN, **rule).report
            for rule in ({}, {"rule": "none"})
        )
        assert plain["evaluation"]["accuracy"] == report["evaluation_without_bias"]["accuracy"]
        for name, site in report["evaluation_without_bias"]["sites"].items():
            there = plain["evaluation"]["sites"][name]
            assert (site["gap"], site["rate"]) == (there["gap"], there["rate"])
            assert site["events"] is None  # counted once, with biases
        assert plain["rule"] == "none"

    def test_what_an_evaluation_leaves_out_changes_nothing_else(self) -> None:
        full, brief = (quick(eval_data=(inputs(8), np.zeros(8, np.int64)), **more) for more in ({}, BRIEF))
        assert full.report["evaluation"]["counts"] is not None
        assert full.report["evaluation_without_bias"] is not None
        found = brief.report["evaluation"]
        assert (found["counts"], brief.report["energy"], brief.report["evaluation_without_bias"]) == (None, None, None)
        for name in ("accuracy", "ann_accuracy", "agreement", "output_gap"):
            assert found[name] == full.report["evaluation"][name], name
        assert brief.plan == full.plan

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

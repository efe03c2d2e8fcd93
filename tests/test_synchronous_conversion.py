"""Networks that fire layer by layer, from the options to the file."""

from __future__ import annotations

from io import StringIO

import onnx
from click.testing import CliRunner
from networks import CALIBRATION, QCFS, RELU, TEST
from rich.console import Console

from ftbc_onnx import ConfigError, convert
from ftbc_onnx.cli import cli
from ftbc_onnx.evaluate import evaluate_file
from ftbc_onnx.graph.provenance import read_plan
from ftbc_onnx.report import print_conversion


def test_conversion_from_end_to_end(tmp_path) -> None:
    """Plan read back, report, and `evaluate` on the file, whose last row is the result."""
    result = convert(
        RELU, CALIBRATION, eval_data=TEST, steps=4, neuron="group", levels=2, schedule="synchronous", calib_samples=64
    )
    assert read_plan(result.model) == result.plan
    assert result.plan.describe()["schedule"] == "synchronous"
    assert result.report["verification"]["bitwise"]
    assert result.report["schedule"] == "synchronous"
    assert result.report["synchronous"] == {"levels": 8, "depth": 4, "latency": 16}
    console = Console(file=StringIO(), width=300)
    print_conversion(console, result.report)
    line = (
        "layer-synchronous: a quantised network with 8 levels; each of the 4 layers waits 4 steps, so a result takes 16"
    )
    assert line in console.file.getvalue()
    path = result.save(tmp_path / "snn.onnx")
    again, _ = evaluate_file(path, TEST, ann=RELU)
    assert result.evaluation is not None
    assert again.accuracy == result.evaluation.accuracy
    assert again.accuracy[-1] > 99


def test_command_line(tmp_path) -> None:
    target = tmp_path / "snn.onnx"
    done = CliRunner().invoke(
        cli, ["convert", str(QCFS), "-T", "2", "--neuron", "if", "--schedule", "synchronous", "-o", str(target)]
    )
    assert done.exit_code == 0, done.output
    assert read_plan(onnx.load(target)).synchronous
    refused = CliRunner().invoke(cli, ["convert", str(QCFS), "--neuron", "signed", "--schedule", "synchronous"])
    assert isinstance(refused.exception, ConfigError)


def test_asynchronous_is_the_default_and_files_without_a_schedule_are_read_so() -> None:
    result = convert(QCFS, steps=2, neuron="if")
    assert (result.plan.schedule, result.report["synchronous"]) == ("asynchronous", None)
    (entry,) = (e for e in result.model.metadata_props if e.key == "ftbc_onnx.plan")
    entry.value = entry.value.replace('"schedule": "asynchronous", ', "")
    assert "schedule" not in entry.value
    assert read_plan(result.model) == result.plan

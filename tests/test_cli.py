"""The command line: its help, and `ftbc-onnx convert`: what it prints where, and which options arrive."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import onnx
import pytest
from cli_cases import Call, Caller, ann, call, data, fails, run_module  # noqa: F401 - fixtures
from helpers import parse
from networks import QCFS

from ftbc_onnx.config import RULES, THRESHOLDS
from ftbc_onnx.graph.provenance import read_plan


class TestProcess:
    """In a process of its own, as a user runs it."""

    def test_version(self) -> None:
        assert run_module("--version") == Call(0, f"ftbc-onnx, version {version('ftbc-onnx')}\n", "")

    def test_convert_with_json(self, tmp_path: Path) -> None:
        out = tmp_path / "snn.onnx"
        done = run_module("convert", QCFS, "-T", 2, "-o", out, "--json")
        assert (done.code, done.err) == (0, "")
        report = json.loads(done.out)
        assert report["output"] == str(out)
        assert read_plan(onnx.load(out)).steps == report["steps"] == 2

    def test_an_error_is_one_line(self, tmp_path: Path) -> None:
        fails(run_module("inspect", tmp_path / "none.onnx"), 3, "none.onnx' does not exist")


class TestHelp:
    def test_version_on_stdout(self, call: Caller) -> None:
        assert call("--version").out.startswith("ftbc-onnx, version ")

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    @pytest.mark.parametrize("command", [[], ["convert"], ["inspect"], ["evaluate"], ["diagnose"], ["report"]])
    def test_has_examples(self, call: Caller, command: list[str], flag: str) -> None:
        done = call(*command, flag)
        assert (done.code, done.err) == (0, "")
        assert "Examples:" in done.out
        assert f"ftbc-onnx {' '.join(command)}" in done.out

    def test_without_a_command(self, call: Caller) -> None:
        done = call()
        assert done.out + done.err != ""
        assert "Commands:" in done.out + done.err
        assert "error" not in done.err

    def test_tells_every_choice_and_default(self, call: Caller) -> None:
        text = call("convert", "-h").out
        for word in (*RULES, *THRESHOLDS, "[default: 8]", "[default: 256]", "[default: solve]", "[default: auto]"):
            assert word in " ".join(text.split())


class TestConvert:
    def test_prints_what_happened_and_writes_beside_the_input(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "-T", 3, "--calib-data", data, "--eval-data", data)
        assert (done.code, done.err) == (0, "")
        written = ann.with_name("net.snn_T3.onnx")
        assert f"wrote {written}" in done.out
        assert "T = 3" in done.out
        assert "to the last bit" in done.out
        assert "12 samples of data.npz" in done.out
        assert read_plan(onnx.load(written)).steps == 3

    def test_json_is_the_report_alone(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        done = call("convert", ann, "-T", 3, "--calib-data", data, "--json", "-o", tmp_path / "o.onnx", "-v")
        assert (done.code, done.err) == (0, "")
        report = json.loads(done.out)
        assert report["samples"] == 16
        assert report["options"]["steps"] == 3

    def test_every_option_arrives(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        done = call(
            *("convert", ann, "--calib-data", data, "-o", tmp_path / "o.onnx", "-T", 2, "--calib-samples", 10),
            *("--seed", 5, "--threshold", "percentile", "--percentile", 98.5, "--per-tensor", "--rule", "paper"),
            *("--alpha", 0.25, "--no-verify", "--batch-size", 5, "--device", "cpu", "--neuron", "if", "--running-mean"),
            *("--no-compare", "--no-counting", "--mean", "0.1,0.2", "--std", "1,2", "--scale", "1/2", "--json"),
        )
        assert done.code == 0, done.err
        report = json.loads(done.out)
        expected = {
            "steps": 2,
            "neuron": "if",
            "threshold": "percentile",
            "percentile": 98.5,
            "per_channel": False,
            "rule": "paper",
            "alpha": 0.25,
            "calib_samples": 10,
            "batch_size": 5,
            "device": "cpu",
            "seed": 5,
            "random_data": False,
            "verify": False,
            "compare": False,
            "counting": False,
            "running_mean": True,
        }
        assert expected == {name: report["options"][name] for name in expected}
        assert report["preprocessing"] == {"scale": 0.5, "mean": [0.1, 0.2], "std": [1.0, 2.0]}
        assert report["calibration"]["batches"] == 2
        assert report["verification"] is None

    def test_a_brief_evaluation_is_printed(self, call: Caller, ann: Path, data: Path) -> None:
        brief = ("--no-compare", "--no-counting", "-v")
        done = call("convert", ann, "--calib-data", data, "--eval-data", data, "-T", 2, *brief)
        assert (done.code, done.err) == (0, "")
        assert "accuracy, %" in done.out
        assert not [word for word in ("no bias,", "events per neuron", "energy") if word in done.out]

    def test_quiet_prints_the_result_all_the_same(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "--calib-data", data, "-T", 2, "-q")
        assert (done.code, done.err) == (0, "")
        assert "wrote" in done.out

    def test_percentile_alone_chooses_the_method(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "--calib-data", data, "-T", 2, "--percentile", 99, "--json")
        assert json.loads(done.out)["options"]["threshold"] == "percentile"

    def test_qcfs_without_data_says_that_there_are_no_biases(self, call: Caller, tmp_path: Path) -> None:
        done = call("convert", QCFS, "-T", 2, "-o", tmp_path / "o.onnx")
        assert (done.code, done.err) == (0, "")
        assert "no biases were calibrated: every temporal bias is zero" in done.out

    def test_random_data_are_marked(self, call: Caller, ann: Path) -> None:
        done = call("convert", ann, "-T", 2, "--random-data", "--calib-samples", 8)
        assert (done.code, done.err) == (0, "")
        assert "calibrated on random data: for a dry run only" in done.out

    def test_random_data_beside_others(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "-T", 2, "--random-data", "--calib-data", data)
        fails(done, 2, f"--random-data goes without --calib-data '{data}'")

    def test_verbose_lists_the_sites(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "-T", 2, "--calib-data", data, "-v")
        assert done.code == 0
        for name in ("r1", "r2", "r3"):
            assert name in done.out

    def test_same_call_same_bytes(self, call: Caller, ann: Path, data: Path, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            assert call("convert", ann, "-T", 2, "--calib-data", data, "-o", tmp_path / name).code == 0
        assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()

    def test_data_from_a_script(self, call: Caller, ann: Path, tmp_path: Path) -> None:
        script = tmp_path / "load.py"
        script.write_text("import numpy as np\ndef calib():\n    return np.ones((8, 2, 4, 4), np.float32)\n")
        done = call("convert", ann, "-T", 2, "--calib-data", f"{script}:calib", "--json")
        assert json.loads(done.out)["data"] == "load.py:calib"

    def test_lines_are_broken_by_a_terminal_only(self, call: Caller, ann: Path, data: Path) -> None:
        done = call("convert", ann, "--calib-data", data, "-T", 2)
        (line,) = (line for line in done.out.splitlines() if line.startswith("T = 2, "))
        assert line.endswith("(CPUExecutionProvider)") or "cuda" in line


NAMES = ["conv[bold]/relu", "[/relu]", "a:smiley:b", "[link=x]"]


class TestNames:
    """Files and nodes may be called as they like: nothing in a name is markup."""

    @pytest.mark.parametrize("name", NAMES)
    def test_of_nodes(self, call: Caller, tmp_path: Path, name: str) -> None:
        model = parse("g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  b = Bernoulli(r)  y = Add(r, b) }")
        for node in model.graph.node[:2]:
            node.name = f"{name}/{node.op_type}"
        onnx.save(model, tmp_path / "r.onnx")
        for options in ([], ["-v"]):
            out = call("inspect", tmp_path / "r.onnx", *options).out
            assert f"refused Bernoulli '{name}/Bernoulli': its output is random" in out
            assert out.count(f"{name}/Relu") == 1 + len(options)

    @pytest.mark.parametrize("name", [name.replace("/", "") for name in NAMES])
    def test_of_files(self, call: Caller, ann: Path, data: Path, name: str) -> None:
        model, samples = ann.with_name(f"{name}.onnx"), data.with_name(f"{name}.npz")
        ann.rename(model), data.rename(samples)
        done = call("convert", model, "--calib-data", samples, "-T", 2)
        assert (done.code, done.err) == (0, "")
        assert f"{name}.onnx: 3 sites" in done.out
        assert f"12 samples of {name}.npz in 1" in done.out
        assert f"wrote {model.with_name(name)}.snn_T2.onnx" in done.out

    def test_in_letters_that_stdout_does_not_have(self, ann: Path) -> None:
        """As on Windows, where what is redirected has the letters of a code page."""
        model = ann.rename(ann.with_name("\N{CYRILLIC SMALL LETTER EM}.onnx"))
        done = run_module("inspect", model, encoding="cp1252")
        assert (done.code, done.err) == (0, "")
        assert "\\u043c.onnx" in done.out

    def test_patterns_are_no_names_of_files(self, call: Caller, ann: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """On Windows click would put every file that a pattern fits in its place."""

        class Windows:
            name = "nt"

            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

        monkeypatch.chdir(ann.parent)
        Path("r2.txt").touch()
        plain = call("inspect", ann, "--exclude", "r2.*")
        monkeypatch.setattr(click.core, "os", Windows())
        assert call("inspect", ann, "--exclude", "r2.*") == plain
        assert plain.code == 0

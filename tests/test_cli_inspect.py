"""`ftbc-onnx inspect`: sites, classes and refusals, as text and as JSON."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from cli_cases import Caller, call  # noqa: F401 - fixtures
from helpers import parse
from networks import QCFS, RELU


class TestInspect:
    def test_lists_sites_and_classes(self, call: Caller) -> None:
        done = call("inspect", RELU)
        assert (done.code, done.err) == (0, "")
        for word in ("node_relu_3", "linear", "unrolled form at T = 8"):
            assert word in done.out

    def test_json(self, call: Caller) -> None:
        done = call("inspect", QCFS, "--json", "-T", 4)
        report = json.loads(done.out)
        assert [site["levels"] for site in report["sites"]] == [4] * 4
        assert report["steps"] == 4
        assert report["refusals"] == []
        assert report["emitted_nodes"]["unrolled"] > 50

    @pytest.mark.parametrize(
        ("body", "options", "reason"),
        [
            ("z = Greater(x, t) y = Where(z, x, t)", (), "it has no activation to convert"),
            ("y = Relu(x)", ("--exclude", "Relu"), "leave out all its activations (1)"),
        ],
    )
    def test_where_nothing_is_left_to_convert(
        self, call: Caller, tmp_path: Path, body: str, options: tuple[str, ...], reason: str
    ) -> None:
        onnx.save(parse(f"g (float[N,4] x) => (float[N,4] y) <float t = {{0.5}}> {{ {body} }}"), tmp_path / "r.onnx")
        done = call("inspect", tmp_path / "r.onnx", *options)
        assert done.code == 3
        assert reason in " ".join(done.out.split())

    def test_refusals_are_listed_with_the_exit_code_of_models(self, call: Caller, tmp_path: Path) -> None:
        text = "g (float[N,4] x) => (float[N,4] y) { r = Relu(x)  b = Bernoulli(r)  y = Add(r, b) }"
        onnx.save(parse(text), tmp_path / "r.onnx")
        done = call("inspect", tmp_path / "r.onnx")
        assert done.code == 3
        assert "refused Bernoulli 'b': its output is random" in " ".join(done.out.split())
        assert json.loads(call("inspect", tmp_path / "r.onnx", "--json").out)["refusals"][0]["node"] == "b"

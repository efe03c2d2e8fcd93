"""Export of trained networks: ONNX files agree with torch, and are converted."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import onnx
import pytest
from training_cases import models, noise, settle  # noqa: F401 - fixtures

from ftbc_onnx import convert
from ftbc_onnx.inspection import inspect_model


class TestExport:
    @pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
    @pytest.mark.parametrize(("name", "kind"), [("resnet20", "qcfs"), ("resnet20", "clipped"), ("vit", "relu")])
    def test_agrees_with_torch_and_converts(self, models, name, kind, exporter, tmp_path):
        net = models("architectures").make(name, models("activations").activation(kind, 4, 3.0), 10)
        images = noise(8, 3, 32, 32)
        settle(net, images)
        path = tmp_path / "net.onnx"
        models("export").export(net, images[:2], path, exporter)
        largest, same = models("export").difference(net, path, images)
        assert same == 1
        if kind != "qcfs":  # where a sum that rounds the other way moves by a level
            assert largest < 1e-3
        if name == "resnet20":  # activations that compute in the type of their threshold say so to no exporter
            assert not {node.op_type for node in onnx.load(path).graph.node} & {"Cast", "CastLike"}
        result = convert(path, images.numpy(), steps=2, neuron="signed", threshold="mse", calib_samples=8)
        assert result.report["verification"]["largest_difference"] < 1e-3
        activations = [m for m in net.modules() if type(m).__name__ in ("QCFS", "ClippedReLU", "ReLU")]
        found = [site for site in result.report["sites"] if not site["signed"]]
        assert len(found) == len(activations)
        if kind == "clipped":
            ceilings = [site["ceiling"] for site in inspect_model(path)["sites"]]
            assert ceilings == pytest.approx([a.threshold.item() for a in activations], rel=1e-6)

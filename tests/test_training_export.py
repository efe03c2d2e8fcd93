"""Export of trained networks: ONNX files agree with torch, and are converted."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import onnx
import pytest
from training_cases import models, noise, settle, torch  # noqa: F401 - fixtures

from ftbc_onnx import convert
from ftbc_onnx.inspection import inspect_model


class TestExport:
    @pytest.mark.parametrize(
        ("name", "exporter", "kind"),
        [
            *(("resnet18", "dynamo", "relu"), ("resnet34", "torchscript", "relu")),
            *(("mobilenetv2", "dynamo", "relu6"), ("vgg16", "torchscript", "relu")),
        ],
    )
    def test_the_larger_networks(self, models, name, exporter, kind, tmp_path):
        """As those below, with one step; large layouts on small images."""
        made, large = models("activations").activation(kind), name.startswith("resnet") or None
        net = models("architectures").make(name, made, 10, hidden=16, large=large)
        images = noise(8, 3, 32, 32)
        settle(net, images)
        models("export").export(net, images[:2], tmp_path / "net.onnx", exporter)
        largest, same = models("export").difference(net, tmp_path / "net.onnx", images)
        assert (largest < 1e-3, same) == (True, 1)
        result = convert(tmp_path / "net.onnx", images.numpy(), steps=1, neuron="if", threshold="mse", calib_samples=8)
        assert result.report["verification"]["largest_difference"] < 1e-3
        activations = [m for m in net.modules() if isinstance(m, (torch.nn.ReLU, torch.nn.ReLU6))]
        assert len(result.report["sites"]) == len(activations)

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

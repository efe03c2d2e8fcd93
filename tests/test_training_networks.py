"""The networks of the training side and their activations."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import pytest
from training_cases import models, noise, torch  # noqa: F401 - fixtures


class TestNetworks:
    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            *(("resnet20", kind) for kind in ("relu", "relu6", "qcfs", "clipped")),
            *(("vgg16", "qcfs"), ("resnet18", "clipped"), ("resnet34", "qcfs")),
            *(("mobilenetv2", "relu6"), ("vit", "relu")),
        ],
    )
    def test_small_images(self, models, name, kind):
        net = models("architectures").make(name, models("activations").activation(kind), 10, hidden=32)
        with torch.no_grad():
            assert net.eval()(noise(2, 3, 32, 32)).shape == (2, 10)
        kinds = {type(module).__name__ for module in net.modules()}
        assert {"relu": "ReLU", "relu6": "ReLU6", "qcfs": "QCFS", "clipped": "ClippedReLU"}[kind] in kinds

    @pytest.mark.parametrize("name", ["vgg16", "resnet18", "resnet34", "mobilenetv2", "vit"])
    def test_large_images(self, models, name):
        net = models("architectures").make(name, torch.nn.ReLU, 1000, hidden=8)
        with torch.no_grad():
            assert net.eval()(noise(1, 3, 224, 224)).shape == (1, 1000)

    @pytest.mark.parametrize("name", ["resnet18", "resnet20", "resnet34", "mobilenetv2"])
    def test_layout_is_chosen_apart_from_classes(self, models, name):
        """A quarter of the height and the width is left where the layout is the one for large images."""

        def side(large):
            net = models("architectures").make(name, torch.nn.ReLU, 10, large=large).eval()
            sizes = []
            pool = next(m for m in net.modules() if isinstance(m, torch.nn.AdaptiveAvgPool2d))
            pool.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-1]))
            with torch.no_grad():
                assert net(noise(1, 3, 64, 64)).shape == (1, 10)
            return sizes[0]

        assert side(None) == side(False) == 4 * side(True)

    def test_a_hundred_classes(self, models):
        net = models("architectures").make("resnet20", torch.nn.ReLU, 100)
        assert net(noise(2, 3, 32, 32)).shape == (2, 100)

    def test_layers_with_weights(self, models):
        """As many as the names say; shortcuts come on top."""
        expected = {"vgg16": 16, "resnet18": 18 + 3, "resnet20": 20 + 2, "resnet34": 34 + 3}
        for name, layers in expected.items():
            net = models("architectures").make(name, torch.nn.ReLU, 10, hidden=8)
            found = [m for m in net.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
            assert len(found) == layers, name

    def test_parameters(self, models):
        """0.27 M and the 1x1 shortcuts with their BatchNorms (He et al., table 6); 2.2 M (Sandler et al., table 4)."""
        for name, count in (("resnet20", 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)), ("mobilenetv2", 2_236_682)):
            net = models("architectures").make(name, torch.nn.ReLU, 10)
            assert sum(parameter.numel() for parameter in net.parameters()) == count

    def test_each_layer_has_its_own_threshold(self, models):
        net = models("architectures").make("resnet20", models("activations").activation("qcfs", 4), 10)
        thresholds = [m.threshold for m in net.modules() if hasattr(m, "threshold")]
        assert len({id(t) for t in thresholds}) == len(thresholds) == 19

    @pytest.mark.parametrize(("module", "call"), [("architectures", "make"), ("activations", "activation")])
    def test_unknown_names_are_refused(self, models, module, call):
        arguments = ("resnet21", torch.nn.ReLU, 10) if call == "make" else ("gelu",)
        with pytest.raises(ValueError, match=r"^no (network|activation) '.*': there are "):
            getattr(models(module), call)(*arguments)


@pytest.mark.parametrize("kind", ["qcfs", "clipped"])
class TestThresholds:
    def test_gradient_for_bfloat16(self, models, kind):
        """As under autocast: theta = 8 (and L = 8) is computed with in float32, and y is of the type of x."""
        act = models("activations").activation(kind, 8, 8.0)()
        x = (4 * noise(32, 16, 32, 32)).bfloat16().requires_grad_()
        y = act(x)
        y.sum().backward()
        value = x.detach().double()
        expected = (value > 8).double()
        if kind == "clipped":
            expected += 0.5 * (value == 8)  # what lies on the ceiling counts half
        else:
            level = torch.floor(value + 0.5)
            expected += torch.where((value < 0) | (value > 8), 0, (level - value) / 8)
        assert act.threshold.grad.item() == pytest.approx(expected.sum().item(), abs=1e-2)
        assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.bfloat16)
        assert torch.equal(y, act(x.float()).bfloat16())


class TestClippedReLU:
    def test_values_and_gradients(self, models):
        act = models("activations").ClippedReLU(2.0)
        x = torch.tensor([-1.0, 0.5, 2.0, 3.0, 7.0], requires_grad=True)
        y = act(x)
        assert y.tolist() == [0, 0.5, 2, 2, 2]
        y.sum().backward()
        assert x.grad[[0, 1, 3, 4]].tolist() == [0, 1, 0, 0]
        # one for each of the two above the ceiling; what lies on it may count half
        assert 2 <= act.threshold.grad.item() <= 3

    def test_refuses_what_is_not_positive(self, models):
        with pytest.raises(ValueError, match="threshold > 0"):
            models("activations").ClippedReLU(0.0)

    def test_thresholds_stay_positive(self, models):
        activations = models("activations")
        net = torch.nn.Sequential(activations.ClippedReLU(), activations.QCFS())
        with torch.no_grad():
            for act in net:
                act.threshold.fill_(-3.0)
        activations.keep_thresholds_positive(net)
        assert all(act.threshold.item() == pytest.approx(1e-3) for act in net)

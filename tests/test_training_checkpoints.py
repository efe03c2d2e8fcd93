"""Published checkpoints: files with the names of the published code give the same outputs."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import argparse
import re

import numpy as np
import pytest
from click.testing import CliRunner
from training_cases import models, noise, settle, torch  # noqa: F401 - fixtures

from ftbc_onnx.inspection import inspect_model


class IF(torch.nn.Module):
    """The activation of the published code while it is an ANN, its threshold of shape [1] under the name given."""

    def __init__(self, name, levels=4):
        super().__init__()
        self.name, self.levels = name, levels
        setattr(self, name, torch.nn.Parameter(torch.tensor([1.5])))

    def forward(self, x):
        theta = getattr(self, self.name)
        return torch.floor(torch.clamp(x / theta, 0, 1) * self.levels + 0.5) / self.levels * theta


class PublishedBlock(torch.nn.Module):
    def __init__(self, name, inputs, outputs, stride):
        super().__init__()
        conv, norm = torch.nn.Conv2d, torch.nn.BatchNorm2d
        self.residual_function = torch.nn.Sequential(
            conv(inputs, outputs, 3, stride, 1, bias=False),
            norm(outputs),
            IF(name),
            conv(outputs, outputs, 3, padding=1, bias=False),
            norm(outputs),
        )
        self.shortcut = torch.nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = torch.nn.Sequential(conv(inputs, outputs, 1, stride, bias=False), norm(outputs))
        self.act = IF(name)

    def forward(self, x):
        return self.act(self.residual_function(x) + self.shortcut(x))


class PublishedResNet20(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.conv1 = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16), IF(name)
        )
        widths = {"conv2_x": (16, 16, 1), "conv3_x": (16, 32, 2), "conv4_x": (32, 64, 2)}
        for stage, (inputs, outputs, stride) in widths.items():
            first = PublishedBlock(name, inputs, outputs, stride)
            rest = [PublishedBlock(name, outputs, outputs, 1) for _ in range(2)]
            setattr(self, stage, torch.nn.Sequential(first, *rest))
        self.fc = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.fc(self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x)))).mean((2, 3)))


class PublishedResNet34(torch.nn.Module):
    """For images of 224 x 224."""

    def __init__(self, name):
        super().__init__()
        self.conv1 = torch.nn.Sequential(
            *(torch.nn.Conv2d(3, 64, 7, 2, 3, bias=False), torch.nn.BatchNorm2d(64), IF(name)),
            torch.nn.AvgPool2d(3, 2, 1),
        )
        inputs = 64
        for stage, (outputs, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            layers = []
            for block in range(blocks):
                layers.append(PublishedBlock(name, inputs, outputs, 2 if stage and not block else 1))
                inputs = outputs
            setattr(self, f"conv{stage + 2}_x", torch.nn.Sequential(*layers))
        self.fc = torch.nn.Linear(512, 1000)

    def forward(self, x):
        return self.fc(self.conv5_x(self.conv4_x(self.conv3_x(self.conv2_x(self.conv1(x))))).mean((2, 3)))


class PublishedVGG16(torch.nn.Module):
    def __init__(self, name, hidden=24, classes=100):
        super().__init__()
        inputs = 3
        for stage, widths in enumerate(((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3), 1):
            layers = []
            for outputs in widths:
                layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.BatchNorm2d(outputs), IF(name)]
                layers.append(torch.nn.Dropout(0.1))
                inputs = outputs
            setattr(self, f"layer{stage}", torch.nn.Sequential(*layers, torch.nn.AvgPool2d(2, 2)))
        linear = torch.nn.Linear
        self.classifier = torch.nn.Sequential(
            torch.nn.Flatten(),
            *(linear(512, hidden), IF(name), torch.nn.Dropout(0.1)),
            *(linear(hidden, hidden), IF(name), torch.nn.Dropout(0.1)),
            linear(hidden, classes),
        )

    def forward(self, x):
        for stage in range(1, 6):
            x = getattr(self, f"layer{stage}")(x)
        return self.classifier(x)


class TestCheckpoints:
    """Files with the names of the published code, made by networks laid out as there."""

    def published(self, kind, name):
        torch.manual_seed(3)
        net = kind(name)
        settle(net, noise(8, 3, 32, 32))
        with torch.no_grad():
            for i, (key, parameter) in enumerate(net.named_parameters()):
                if key.endswith(name):
                    parameter.fill_(0.4 + 0.05 * i % 1.5)
        return net

    @pytest.mark.parametrize("name", ["thresh", "up"])
    @pytest.mark.parametrize(
        ("kind", "network"), [(PublishedResNet20, "resnet20"), (PublishedVGG16, "vgg16")], ids=["resnet20", "vgg16"]
    )
    def test_gives_the_same_outputs(self, models, kind, network, name, tmp_path):
        theirs = self.published(kind, name)
        torch.save(theirs.state_dict(), tmp_path / "net.pth")
        ours = models("checkpoints").load(tmp_path / "net.pth", network, 4)
        self.check_same(theirs, ours, noise(6, 3, 32, 32, seed=1))

    @pytest.mark.parametrize("shared", [False, True])
    def test_a_network_for_large_images(self, models, shared, tmp_path):
        """Blocks may have one threshold for both activations; theirs has the same then."""
        theirs = self.published(PublishedResNet34, "thresh")
        state = dict(theirs.state_dict())
        if shared:
            for key in [key for key in state if key.endswith("residual_function.2.thresh")]:
                state.pop(key).copy_(state[key.replace("residual_function.2", "act")])
        torch.save(state, tmp_path / "net.pth")
        ours = models("checkpoints").load(tmp_path / "net.pth", "resnet34", 4)
        self.check_same(theirs, ours, noise(6, 3, 64, 64, seed=1))

    def check_same(self, theirs, ours, images):
        with torch.no_grad():
            expected, found = theirs(images), ours(images)
        same = (found - expected).abs().amax(1) < 1e-3 * expected.abs().max()
        assert same.float().mean() >= 5 / 6  # a level may flip: theirs divides first, ours multiplies first

    def test_prefixes_and_entries(self, models, tmp_path):
        theirs = self.published(PublishedResNet20, "thresh")
        wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}
        torch.save(wrapped, tmp_path / "net.pth")
        ours = models("checkpoints").load(tmp_path / "net.pth", "resnet20", 4)
        torch.testing.assert_close(next(ours.parameters()), next(theirs.parameters()))

    def test_one_threshold_for_both_activations_of_a_block(self, models):
        """As where torchvision's block, with one ReLU, was rewritten."""
        theirs = self.published(PublishedResNet20, "up").state_dict()
        shared = {name: value for name, value in theirs.items() if not name.endswith("residual_function.2.up")}
        checkpoints = models("checkpoints")
        net = models("architectures").make("resnet20", models("activations").activation("qcfs", 4), 10)
        net.load_state_dict(checkpoints.matched(checkpoints.state_dict(shared), net.state_dict()))
        block = net.stages[4]
        assert block.residual[2].threshold == block.act.threshold == theirs["conv3_x.1.act.up"]

    def test_another_network_is_refused(self, models, tmp_path):
        load = models("checkpoints").load
        torch.save(self.published(PublishedResNet20, "up").state_dict(), tmp_path / "net.pth")
        with pytest.raises(ValueError, match="has 22 layers with weights; a VGG-16 has 16"):
            load(tmp_path / "net.pth", "vgg16", 4)
        with pytest.raises(ValueError, match=r"the checkpoint has \d+ other tensors, this network has \d+"):
            load(tmp_path / "net.pth", "resnet18", 4)
        torch.save({"epoch": 3}, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="no state dict"):
            load(tmp_path / "other.pth", "resnet20", 4)

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net"])
    def test_options_and_numbers_beside(self, models, key, tmp_path):
        """Of argparse and NumPy, as training scripts leave them, in either format of torch.save."""
        wrapped = {
            key: self.published(PublishedResNet20, "thresh").state_dict(),
            "args": argparse.Namespace(lr=0.1, name="x"),
            "best": [np.float64(91.5), np.float32(0.5), np.int64(3), np.bool_(True)],
        }
        for new in (True, False):
            torch.save(wrapped, tmp_path / "net.pth", _use_new_zipfile_serialization=new)
            models("checkpoints").load(tmp_path / "net.pth", "resnet20", 4)
        content = (tmp_path / "net.pth").read_bytes()
        for core in (b"core", b"_core"):  # of NumPy 1 and 2
            other = re.sub(rb"cnumpy\._?core\.", rb"cnumpy." + core + rb".", content)
            (tmp_path / "net.pth").write_bytes(other)
            models("checkpoints").load(tmp_path / "net.pth", "resnet20", 4)

    def test_what_is_no_number_is_refused(self, models, tmp_path):
        theirs = self.published(PublishedResNet20, "thresh").state_dict()
        theirs["fc.bias"][3] = float("nan")
        torch.save(theirs, tmp_path / "net.pth")
        with pytest.raises(ValueError, match=r"net.pth': 'fc.bias' is not finite"):
            models("checkpoints").load(tmp_path / "net.pth", "resnet20", 4)

    def test_files_of_our_own_training_are_sent_on(self, models, tmp_path):
        """They know L, and --levels might be another."""
        torch.save({"settings": {"levels": 8}, "weights": {"a": torch.zeros(3)}}, tmp_path / "net.pt")
        with pytest.raises(ValueError, match=r"is a checkpoint of models/train.py, which knows its L: take models/exp"):
            models("checkpoints").load(tmp_path / "net.pt", "resnet20", 4)

    def test_another_order_is_refused(self, models):
        theirs = dict(self.published(PublishedResNet20, "up").state_dict())
        theirs["fc.weight"], theirs["fc.bias"] = theirs["fc.bias"], theirs["fc.weight"]
        checkpoints = models("checkpoints")
        net = models("architectures").make("resnet20", models("activations").activation("qcfs", 4), 10)
        with pytest.raises(ValueError, match=r"'fc.weight' \[10\] stands where 'head.2.weight' \[10, 64\] is expected"):
            checkpoints.matched(checkpoints.state_dict(theirs), net.state_dict())

    def test_command_line(self, models, tmp_path):
        torch.save(self.published(PublishedResNet20, "thresh").state_dict(), tmp_path / "net.pth")
        target = tmp_path / "net.onnx"
        arguments = [str(tmp_path / "net.pth"), "--network", "resnet20", "--levels", "4", "-o", str(target)]
        done = CliRunner().invoke(models("checkpoints").main, arguments)
        assert done.exit_code == 0, done.output
        assert len(inspect_model(target)["sites"]) == 19
        done = CliRunner().invoke(models("checkpoints").main, [*arguments[:2], "vgg16", *arguments[3:]])
        assert done.exit_code == 2
        assert "a VGG-16 has 16" in done.output

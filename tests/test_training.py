"""The training side: networks, activations, training that goes on where it stopped, export, published checkpoints."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ftbc_onnx import convert
from ftbc_onnx.inspection import inspect_model

torch = pytest.importorskip("torch", reason="needs the extra 'models'")
pytest.importorskip("onnxscript", reason="needs the extra 'models'")

MODELS = Path(__file__).parents[1] / "models"


@pytest.fixture
def models(monkeypatch):
    """Import a script of models/ by name."""
    monkeypatch.syspath_prepend(MODELS)
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settle(net, images):
    """Give BatchNorms and thresholds values that differ from the first ones."""
    net.train()
    with torch.no_grad():
        net(images)
        for i, (name, parameter) in enumerate(net.named_parameters()):
            if name.endswith("threshold"):
                parameter.fill_(0.5 + 0.1 * (i % 7))
    return net.eval()


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


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """An npz of 48 images in two classes that are easy to tell apart."""
    rng = np.random.default_rng(0)
    label = np.arange(48) % 2
    image = rng.integers(0, 120, (48, 32, 32, 3)) + 100 * label[:, None, None, None]
    path = tmp_path_factory.mktemp("pixels") / "pixels.npz"
    np.savez(path, x=image.astype(np.uint8), y=label)
    return path


class TestData:
    def test_arrays_in_both_layouts(self, models, pixels, tmp_path):
        read = models("image_data").read
        with np.load(pixels) as arrays:
            np.savez(tmp_path / "other.npz", image=arrays["x"].transpose(0, 3, 1, 2), label=arrays["y"])
            expected = arrays["x"].transpose(0, 3, 1, 2)
        for path in (pixels, tmp_path / "other.npz"):
            found = read(path, "train")
            np.testing.assert_array_equal(found.image, expected)
            assert found.label.dtype == torch.int64

    def test_grids(self, models, tmp_path):
        rng = np.random.default_rng(1)
        tiles = rng.integers(0, 256, (2, 100, 32, 32, 3), dtype=np.uint8)  # two rows of a hundred
        grid = tiles.transpose(0, 2, 1, 3, 4).reshape(64, 3200, 3)
        for name, part in (("cifar10_test", "test"), ("cifar10_train_0", "train"), ("cifar10_train_1", "train")):
            Image.fromarray(grid).save(tmp_path / f"{name}.webp", lossless=True, exact=True)
            count = 400 if part == "train" else 200
            np.save(tmp_path / f"cifar10_{part}_labels.npy", (np.arange(count) % 10).astype(np.uint8))
        found = models("image_data").read(tmp_path, "train")
        assert found.image.shape == (400, 3, 32, 32)
        np.testing.assert_array_equal(found.image[:200], tiles.reshape(200, 32, 32, 3).transpose(0, 3, 1, 2))
        assert len(models("image_data").read(tmp_path, "test").label) == 200

    def test_a_folder_per_class(self, models, tmp_path):
        for label, colour in enumerate(((255, 0, 0), (0, 0, 255))):
            (tmp_path / "train" / f"class{label}").mkdir(parents=True)
            Image.new("RGB", (40, 40), colour).save(tmp_path / "train" / f"class{label}" / "a.png")
        found = models("image_data").read(tmp_path, "train", side=32)
        assert found.image.shape == (2, 3, 32, 32)
        assert found.image[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
        assert found.label.tolist() == [0, 1]

    def test_normalisation(self, models):
        image = torch.tensor([0, 255, 128], dtype=torch.uint8).view(1, 3, 1, 1)
        expected = [(0 - 0.485) / 0.229, (1 - 0.456) / 0.224, (128 / 255 - 0.406) / 0.225]
        assert models("image_data").normalised(image).flatten().tolist() == pytest.approx(expected, rel=1e-6)

    def test_what_is_no_data_is_named(self, models, tmp_path):
        read = models("image_data").read
        with pytest.raises(ValueError, match="has no 'train' images"):
            read(tmp_path, "train")
        np.savez(tmp_path / "odd.npz", a=np.zeros(3))
        with pytest.raises(ValueError, match="has arrays a; x or image"):
            read(tmp_path / "odd.npz", "train")
        np.savez(tmp_path / "float.npz", x=np.zeros((3, 4, 4, 3)), y=np.zeros(3))
        with pytest.raises(ValueError, match="uint8"):
            read(tmp_path / "float.npz", "train")


class TestTraining:
    def settings(self, models, **options):
        return models("train").Settings(**{"levels": 2, "epochs": 3, "batch": 16, "policy": False, **options})

    def trainer(self, models, settings):
        return models("train").Trainer(settings, torch.device("cpu"))

    @pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
    def test_goes_on_where_it_stopped(self, models, pixels, optimizer, tmp_path):
        """Two epochs in one go, or with a checkpoint between: the same weights to the last bit."""
        train, settings = models("train"), self.settings(models, optimizer=optimizer)
        data = models("image_data").read(pixels, "train")
        torch.set_num_threads(1)
        once = self.trainer(models, settings)
        for _ in range(2):
            once.run_epoch(data)
        first = self.trainer(models, settings)
        first.run_epoch(data)
        train.save(first.state(), tmp_path / "half.pt")
        again = self.trainer(models, settings)
        again.load(torch.load(tmp_path / "half.pt", weights_only=True))
        again.run_epoch(data)
        assert again.epoch == 2
        for name, value in once.net.state_dict().items():
            torch.testing.assert_close(again.net.state_dict()[name], value, rtol=0, atol=0)

    def test_other_settings_do_not_go_on(self, models):
        first = self.trainer(models, self.settings(models))
        other = self.trainer(models, self.settings(models, seed=1, rate=0.2))
        with pytest.raises(Exception, match=r"other settings \(rate, seed\)"):
            other.load(first.state())

    def test_a_checkpoint_from_before_a_setting_goes_on(self, models):
        state = self.trainer(models, self.settings(models)).state()
        del state["settings"]["optimizer"]
        self.trainer(models, self.settings(models)).load(state)
        with pytest.raises(Exception, match=r"other settings \(optimizer\)"):
            self.trainer(models, self.settings(models, optimizer="adamw")).load(state)

    def test_keeps_the_best_on_images_held_out(self, models):
        trainer = self.trainer(models, self.settings(models, validate=8))
        weight = next(trainer.net.parameters())
        for accuracy, value in ((10.0, 1.0), (30.0, 2.0), (20.0, 3.0)):
            with torch.no_grad():
                weight.fill_(value)
            trainer.keep_best(accuracy)
        state = trainer.state()
        assert state["best"] == 30.0
        assert next(iter(state["weights"].values())).flatten()[0] == 2.0
        assert next(iter(state["last"].values())).flatten()[0] == 3.0

    def test_images_held_out_are_not_trained_on(self, models, pixels):
        data = models("image_data").read(pixels, "train")
        rest, held_out = models("train").split(data, 12, 0)
        assert (len(rest.label), len(held_out.label)) == (36, 12)
        kept, left = ({image.numpy().tobytes() for image in part.image} for part in (rest, held_out))
        assert not kept & left

    def test_command_line_to_a_spiking_network(self, models, pixels, tmp_path):
        """Train, stop, go on, export, convert: thresholds are those that were learned."""
        train, export = models("train"), models("export")
        target = tmp_path / "net.pt"
        options = ["--data", str(pixels), "--levels", "2", "--batch", "16", "--no-policy", "--epochs", "3"]
        for _ in range(2):  # the second time everything is there
            done = CliRunner().invoke(train.main, [*options, "--save-every", "1", "-o", str(target)])
            assert done.exit_code == 0, done.output
        result = json.loads(done.output.strip().splitlines()[-1])
        assert result["epochs"] == 3
        assert result["test images"] == 48
        onnx_file = tmp_path / "net.onnx"
        done = CliRunner().invoke(export.main, [str(target), "-o", str(onnx_file)])
        assert done.exit_code == 0, done.output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.pt"]
        net, _ = export.trained(target)
        learned = [m.threshold.item() for m in net.modules() if hasattr(m, "threshold")]
        sites = inspect_model(onnx_file)["sites"]
        assert [site["threshold"][0] for site in sites] == pytest.approx(learned, rel=1e-6)
        assert {site["levels"] for site in sites} == {2}

    def test_starts_from_other_weights(self, models, tmp_path):
        """A plain network's weights, thresholds new."""
        train = models("train")
        plain = self.trainer(models, self.settings(models, activation="relu"))
        train.save(plain.state(), tmp_path / "relu.pt")
        tuned = self.trainer(models, self.settings(models, seed=5))
        train.start_from(tuned.net, tmp_path / "relu.pt")
        theirs = tuned.net.state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in plain.net.state_dict().items())
        vit = models("architectures").make("vit", torch.nn.ReLU, 10)
        with pytest.raises(Exception, match="holds another network"):
            train.start_from(vit, tmp_path / "relu.pt")

    def test_mistakes_are_one_line(self, models, pixels, tmp_path):
        runner, train = CliRunner(), models("train")
        done = runner.invoke(train.main, ["--data", str(tmp_path), "-o", str(tmp_path / "n.pt")])
        assert done.exit_code == 2
        assert "has no 'train' images" in done.output
        done = runner.invoke(train.main, ["--data", str(pixels), "--batch", "64", "-o", str(tmp_path / "n.pt")])
        assert done.exit_code == 2
        assert "48 training images make no batch of 64" in done.output
        assert list(tmp_path.iterdir()) == []

    def test_divergence_stops_and_nothing_broken_is_kept(self, models, pixels, tmp_path):
        arguments = ["--data", pixels, "--batch", 16, "--epochs", 2, "--save-every", 1, "-o", tmp_path / "n.pt"]
        done = CliRunner().invoke(models("train").main, list(map(str, [*arguments, "--rate", 1e30])))
        assert done.exit_code == 1
        assert "training diverged in epoch 1 (loss nan): take a smaller --rate and another -o" in done.output
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("kind", ["parameters", "buffers"])
    def test_what_the_last_step_has_broken_is_noticed(self, models, kind):
        """The loss of an epoch says nothing of the step after its last batch."""
        trainer = self.trainer(models, self.settings(models))
        assert trainer.is_finite(1.0)
        assert not trainer.is_finite(float("nan"))
        with torch.no_grad():
            next(tensor for tensor in getattr(trainer.net, kind)() if tensor.ndim)[-1] = float("inf")
        assert not trainer.is_finite(1.0)


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
        result = convert(path, images.numpy(), steps=2, neuron="signed", threshold="mse", calib_samples=8)
        assert result.report["verification"]["largest_difference"] < 1e-3
        activations = [m for m in net.modules() if type(m).__name__ in ("QCFS", "ClippedReLU", "ReLU")]
        found = [site for site in result.report["sites"] if not site["signed"]]
        assert len(found) == len(activations)
        if kind == "clipped":
            ceilings = [site["ceiling"] for site in inspect_model(path)["sites"]]
            assert ceilings == pytest.approx([a.threshold.item() for a in activations], rel=1e-6)


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
        images = noise(6, 3, 32, 32, seed=1)
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

"""Training: it goes on where it stopped, keeps the best, and ends in a spiking network."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import copy
import json

import click
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from training_cases import models, pixels, torch  # noqa: F401 - fixtures

from ftbc_onnx.inspection import inspect_model


class TestTraining:
    def settings(self, models, **options):
        return models("trainer").Settings(**{"levels": 2, "epochs": 3, "batch": 16, "policy": False, **options})

    def trainer(self, models, settings):
        return models("trainer").Trainer(settings, torch.device("cpu"))

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

    def test_draws_are_those_of_the_epoch_and_the_seed(self, models):
        """The state of a generator is of one kind of device; none is in a checkpoint, so that it moves between them."""

        def draws(seed, epoch):
            trainer = self.trainer(models, self.settings(models, seed=seed))
            trainer.epoch, seen = epoch, []
            trainer._backward = lambda image, _: seen.append(image.clone()) or torch.zeros(())
            trainer.optimizer.step = lambda: None
            trainer.schedule.step = lambda: None
            trainer.run_epoch(models("image_data").Labelled(image, label))
            return seen[0]

        image = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        label = torch.arange(16) % 10
        torch.testing.assert_close(draws(1, 2), draws(1, 2), rtol=0, atol=0)
        assert not torch.equal(draws(1, 2), draws(1, 1))
        assert not torch.equal(draws(1, 2), draws(2, 2))
        assert "generator" not in self.trainer(models, self.settings(models)).state()

    @pytest.mark.parametrize(("mixed", "layers"), [(None, "float32"), (False, "float32"), (True, "bfloat16")])
    def test_mixed_precision_on_a_cpu(self, models, pixels, mixed, layers):
        """Where it is asked for, layers compute in bfloat16; weights, thresholds and their gradients stay float32."""
        data = models("image_data").read(pixels, "train")
        trainer = models("trainer").Trainer(self.settings(models), torch.device("cpu"), mixed=mixed)
        seen = set()
        for module in trainer.net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
        assert trainer.is_finite(trainer.run_epoch(data))
        assert seen == {getattr(torch, layers)}
        assert {value.dtype for value in trainer.net.parameters()} == {torch.float32}
        assert all(value.grad.dtype == torch.float32 and value.grad.any() for value in trainer.net.parameters())

    def test_compiled_steps(self, models, pixels, monkeypatch):
        """They are those that are not compiled, but for rounding; the network that is kept is the same one."""
        trainer = models("trainer")
        try:
            trainer.check_compiler()
        except click.UsageError as error:
            pytest.skip(str(error))
        layers = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), models("activations").QCFS(2, 4.0)
        small = torch.nn.Sequential(*layers, torch.nn.AvgPool2d(6), torch.nn.Flatten(), torch.nn.Linear(100, 10))
        monkeypatch.setattr(trainer, "make", lambda *_, **__: copy.deepcopy(small))
        data, found = models("image_data").read(pixels, "train"), []
        for compiled in (False, True):
            made = trainer.Trainer(self.settings(models), torch.device("cpu"), compiled=compiled)
            losses = [made.run_epoch(data) for _ in range(2)]
            found.append((losses, made.net.state_dict()))
        (plain, weights), (fast, others) = found
        assert list(weights) == list(others)
        assert fast == pytest.approx(plain, rel=1e-3)
        for name, value in weights.items():
            torch.testing.assert_close(others[name], value, rtol=1e-2, atol=1e-3)

    def test_no_compiler(self, models, pixels, tmp_path, monkeypatch):
        def fails(_):
            raise RuntimeError("No working C++ compiler found\nin all of this")

        monkeypatch.setattr(torch, "compile", fails)
        done = self.command(models, pixels, tmp_path / "net.pt", "--compile")
        assert done.exit_code == 2
        assert "--compile: torch cannot compile here: No working C++ compiler found" in done.output
        assert not list(tmp_path.iterdir())

    def test_other_settings_do_not_go_on(self, models):
        first = self.trainer(models, self.settings(models))
        other = self.trainer(models, self.settings(models, seed=1, rate=0.2))
        with pytest.raises(Exception, match=r"other settings \(rate, seed\)"):
            other.load(first.state())
        compiled = models("trainer").Trainer(self.settings(models), torch.device("cpu"), compiled=True)
        with pytest.raises(Exception, match=r"other settings \(compile\)"):
            compiled.load(first.state())

    def test_a_checkpoint_from_before_a_setting_goes_on(self, models):
        state = self.trainer(models, self.settings(models)).state()
        del state["settings"]["optimizer"], state["source"]
        self.trainer(models, self.settings(models)).load(state)
        with pytest.raises(Exception, match=r"other settings \(optimizer\)"):
            self.trainer(models, self.settings(models, optimizer="adamw")).load(state)

    def test_a_layout_is_the_same_however_it_is_asked_for(self, models):
        for classes, large in ((10, False), (1000, True)):
            settings = self.settings(models, classes=classes)
            assert settings == self.settings(models, classes=classes, large=large)
            state = self.trainer(models, settings).state()
            del state["settings"]["large"]  # from before there was a choice
            self.trainer(models, settings).load(state)
            with pytest.raises(Exception, match=r"other settings \(large\)"):
                self.trainer(models, self.settings(models, classes=classes, large=not large)).load(state)

    def test_a_checkpoint_without_an_optimizer_does_not_go_on(self, models):
        state = self.trainer(models, self.settings(models)).state()
        del state["optimizer"]
        with pytest.raises(Exception, match=r"has no 'optimizer' to go on with: name another file with -o"):
            self.trainer(models, self.settings(models)).load(state)

    def test_goes_on_with_the_same_only(self, models, pixels, tmp_path):
        """Other images, another precision and another start make another run; a line says which, or that it goes on."""
        with np.load(pixels) as arrays:
            np.savez(tmp_path / "other.npz", x=arrays["x"], y=1 - arrays["y"])
        target, other = tmp_path / "net.pt", tmp_path / "other.pt"
        for path in (target, other):
            assert self.command(models, pixels, path).exit_code == 0
        done = self.command(models, pixels, target)
        assert f"'{target}' goes on after epoch 1 of 1" in done.output
        for name, options in (
            ("data", ["--data", tmp_path / "other.npz"]),
            ("mixed", ["--mixed"]),
            ("start", ["--start", other]),
        ):
            done = self.command(models, pixels, target, *options)
            assert done.exit_code == 2
            assert f"the checkpoint has other settings ({name}): name another file with -o" in done.output

    def command(self, models, data, target, *options):
        """One epoch."""
        given = ["--data", data, "--levels", 2, "--batch", 16, "--no-policy", "--epochs", 1, "-o", target, *options]
        return CliRunner().invoke(models("train").main, list(map(str, given)))

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
        assert (result["test accuracy"], result["test images"]) == (None, 0)
        onnx_file = tmp_path / "net.onnx"
        done = CliRunner().invoke(export.main, [str(target), "-o", str(onnx_file)])
        assert done.exit_code == 0, done.output
        assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.pt"]
        net, _ = export.trained(target)
        learned = [m.threshold.item() for m in net.modules() if hasattr(m, "threshold")]
        sites = inspect_model(onnx_file)["sites"]
        assert [site["threshold"][0] for site in sites] == pytest.approx(learned, rel=1e-6)
        assert {site["levels"] for site in sites} == {2}

    def test_layout_for_large_images(self, models, pixels, tmp_path):
        """It goes with the checkpoint: what is exported has the stem that was trained."""
        done = self.command(models, pixels, tmp_path / "net.pt", "--large")
        assert done.exit_code == 0, done.output
        done = CliRunner().invoke(models("export").main, [str(tmp_path / "net.pt"), "-o", str(tmp_path / "net.onnx")])
        assert done.exit_code == 0, done.output
        first = next(node for node in onnx.load(tmp_path / "net.onnx").graph.node if node.op_type == "Conv")
        assert [list(a.ints) for a in first.attribute if a.name == "kernel_shape"] == [[7, 7]]

    def test_training_images_are_no_test_images(self, models, pixels, tmp_path):
        """A file holds one part: without --test nothing is measured, and a line says so."""
        with np.load(pixels) as arrays:
            np.savez(tmp_path / "test.npz", x=arrays["x"][:8], y=arrays["y"][:8])
        done = self.command(models, pixels, tmp_path / "a.pt")
        assert "holds training images only: without --test no accuracy is measured" in done.output
        assert json.loads(done.output.splitlines()[-1])["test images"] == 0
        done = self.command(models, pixels, tmp_path / "a.pt", "--test", tmp_path / "test.npz")
        assert "without --test" not in done.output
        result = json.loads(done.output.splitlines()[-1])
        assert result["test images"] == 8
        assert result["test accuracy"] in {100 * right / 8 for right in range(9)}

    def test_starts_from_other_weights(self, models, tmp_path):
        """A plain network's weights, thresholds new."""
        train = models("train")
        plain = self.trainer(models, self.settings(models, activation="relu"))
        train.save(plain.state(), tmp_path / "relu.pt")
        tuned = self.trainer(models, self.settings(models, seed=5))
        train.start_from(tuned, tmp_path / "relu.pt")
        theirs = tuned.net.state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in plain.net.state_dict().items())
        more = self.trainer(models, self.settings(models, activation="relu", classes=100))
        with pytest.raises(Exception, match=r"'head.2.bias' is \[10\] there, \[100\] here"):
            train.start_from(more, tmp_path / "relu.pt")
        vit = self.trainer(models, self.settings(models, network="vit", activation="relu"))
        with pytest.raises(Exception, match="holds another network"):
            train.start_from(vit, tmp_path / "relu.pt")

    def test_starts_from_the_same_layout_only(self, models, tmp_path):
        """Those of MobileNetV2 differ by strides, which no weight tells."""
        train, settings = models("train"), {"network": "mobilenetv2", "activation": "relu6"}
        train.save(self.trainer(models, self.settings(models, **settings, large=True)).state(), tmp_path / "large.pt")
        small = self.trainer(models, self.settings(models, **settings))
        with pytest.raises(Exception, match=r"large.pt' has the layout for large images: take it with --large$"):
            train.start_from(small, tmp_path / "large.pt")
        train.start_from(self.trainer(models, self.settings(models, **settings, large=True)), tmp_path / "large.pt")

    def test_mistakes_are_one_line(self, models, pixels, tmp_path):
        runner, train = CliRunner(), models("train")
        done = runner.invoke(train.main, ["--data", str(tmp_path), "-o", str(tmp_path / "n.pt")])
        assert done.exit_code == 2
        assert "has no 'train' images" in done.output
        done = runner.invoke(train.main, ["--data", str(pixels), "--batch", "64", "-o", str(tmp_path / "n.pt")])
        assert done.exit_code == 2
        assert "48 training images make no batch of 64" in done.output
        for options, message in (
            (["--threshold", 0], "0.0 is not in the range x>0"),
            (["--rate", -1], "-1.0 is not in the range x>0"),
            (["--device", "tpu9"], "--device tpu9 cannot be used: "),
            (
                ["--network", "vgg16", "--small"],
                "--large and --small are for resnet18, resnet20, resnet34, mobilenetv2, not for vgg16",
            ),
            (["--validate", 48], "--validate 48 leaves none of 48 training images: hold fewer out"),
        ):
            done = self.command(models, pixels, tmp_path / "n.pt", *options)
            assert done.exit_code == 2
            assert message in done.output
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu(self, models, pixels, tmp_path):
        done = self.command(models, pixels, tmp_path / "n.pt", "--device", "cuda")
        assert done.exit_code == 2
        assert "--device cuda cannot be used: " in done.output

    def test_divergence_stops_and_nothing_broken_is_kept(self, models, pixels, tmp_path):
        arguments = ["--data", pixels, "--batch", 16, "--epochs", 2, "--save-every", 1, "-o", tmp_path / "n.pt"]
        done = CliRunner().invoke(models("train").main, list(map(str, [*arguments, "--rate", 1e30])))
        assert done.exit_code == 1
        assert "training diverged in epoch 1 (loss nan): take a smaller --rate and another -o" in done.output
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("minute", "kept"), [(0.0, [1, 2]), (60.0, [2])])
    def test_long_epochs_are_kept_as_they_end(self, models, pixels, minute, kept, monkeypatch):
        """Whatever --save-every says: a machine may stop without a word."""
        train, found = models("train"), []
        monkeypatch.setattr(train, "MINUTE", minute)
        monkeypatch.setattr(train, "save", lambda state, _: found.append(state["epoch"]))
        done = self.command(models, pixels, pixels.with_name("kept.pt"), "--epochs", 2)
        assert done.exit_code == 0, done.output
        assert found == kept

    @pytest.mark.parametrize("kind", ["parameters", "buffers"])
    def test_what_the_last_step_has_broken_is_noticed(self, models, kind):
        """The loss of an epoch says nothing of the step after its last batch."""
        trainer = self.trainer(models, self.settings(models))
        assert trainer.is_finite(1.0)
        assert not trainer.is_finite(float("nan"))
        with torch.no_grad():
            next(tensor for tensor in getattr(trainer.net, kind)() if tensor.ndim)[-1] = float("inf")
        assert not trainer.is_finite(1.0)

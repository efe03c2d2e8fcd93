"""Files of the training side: whole or not at all, kept after Ctrl-C, read without surprises."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner
from training_cases import models, pixels, torch  # noqa: F401 - fixtures


def run(script, *arguments):
    return CliRunner().invoke(script.main, list(map(str, arguments)))


def train(models, pixels, target, *options):
    """Two epochs of three batches."""
    given = ["--data", pixels, "--levels", 2, "--batch", 16, "--no-policy", "--epochs", 2, "-o", target, *options]
    return run(models("train"), *given)


class TestWriting:
    def test_the_folder_is_looked_at_first(self, models, pixels, tmp_path, monkeypatch):
        def work(*_, **__):
            raise AssertionError("this is long work")

        (tmp_path / "net.pt").touch()
        monkeypatch.setattr(models("train"), "Trainer", work)
        monkeypatch.setattr(models("export"), "trained", work)
        monkeypatch.setattr(models("checkpoints"), "load", work)
        target = tmp_path / "there" / "net"
        for done in (
            train(models, pixels, target),
            run(models("export"), tmp_path / "net.pt", "-o", target),
            run(models("checkpoints"), tmp_path / "net.pt", "--network", "vgg16", "--levels", 4, "-o", target),
        ):
            assert done.exit_code == 2
            assert f"the folder of -o '{target}' does not exist: create it first" in done.output

    @pytest.mark.parametrize(
        ("error", "message"), [(OSError(28, "No space left"), "No space left"), (RuntimeError("full\nat 3"), "full")]
    )
    def test_what_cannot_be_written_leaves_nothing(self, models, error, message, tmp_path, monkeypatch):
        def full(_, path):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(click.ClickException, match=f"net.pt' cannot be written: {message}$"):
            models("train").save({}, tmp_path / "net.pt")
        assert list(tmp_path.iterdir()) == []

    def test_names_that_no_file_can_have(self, models, pixels, tmp_path):
        done = train(models, pixels, tmp_path / ("a" * 300))
        assert done.exit_code == 2
        assert "cannot be written: File name too long" in done.output


class TestInterruption:
    def interrupt(self, models, monkeypatch, batch):
        """Ctrl-C behind the step of a batch."""
        seen = iter(range(1, batch))

        def step(_):
            if next(seen, None) is None:
                raise KeyboardInterrupt

        monkeypatch.setattr(models("trainer"), "keep_thresholds_positive", step)

    def test_keeps_the_last_whole_epoch(self, models, pixels, tmp_path, monkeypatch):
        """In the middle of the second epoch: the first is kept, and goes on as if nothing had been."""
        torch.set_num_threads(1)
        whole, target = tmp_path / "whole.pt", tmp_path / "net.pt"
        assert train(models, pixels, whole).exit_code == 0
        with monkeypatch.context() as patch:
            self.interrupt(models, patch, 5)
            done = train(models, pixels, target)
        assert done.exit_code == 130
        assert f"interrupted: run the same command again to go on with '{target}'" in done.output
        assert torch.load(target, weights_only=True)["epoch"] == 1
        assert train(models, pixels, target).exit_code == 0
        found, expected = (torch.load(path, weights_only=True)["last"] for path in (target, whole))
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)

    def test_before_the_end_of_the_first_epoch(self, models, pixels, tmp_path, monkeypatch):
        self.interrupt(models, monkeypatch, 2)
        done = train(models, pixels, tmp_path / "net.pt")
        assert done.exit_code == 130
        assert "interrupted: nothing is kept" in done.output
        assert list(tmp_path.iterdir()) == []


class TestReading:
    """`train.py` (-o and --start), `export.py` and `checkpoints.py` read by one function."""

    def messages(self, models, pixels, path):
        """The last line of each command, whose exit code is 2."""
        target = path.with_name("out")
        commands = (
            lambda: train(models, pixels, path),
            lambda: train(models, pixels, target, "--start", path),
            lambda: run(models("export"), path, "-o", target),
            lambda: run(models("checkpoints"), path, "--network", "resnet20", "--levels", 4, "-o", target),
        )
        for command in commands:
            done = command()
            assert done.exit_code == 2, done
            yield done.output.strip().splitlines()[-1]
        assert not target.exists()

    @pytest.mark.parametrize("content", [b"", b"hello there", bytes(range(256))], ids=["empty", "text", "bytes"])
    def test_what_is_no_file_of_torch(self, models, pixels, content, tmp_path):
        path = tmp_path / "net.pt"
        path.write_bytes(content)
        for line in self.messages(models, pixels, path):
            assert line == f"Error: '{path}' is damaged, or not what torch.save writes: name another file"
        assert path.read_bytes() == content

    @pytest.mark.parametrize("new", [True, False])
    def test_half_a_file(self, models, new, tmp_path):
        torch.save({"a": torch.zeros(1000)}, tmp_path / "net.pt", _use_new_zipfile_serialization=new)
        content = (tmp_path / "net.pt").read_bytes()
        (tmp_path / "net.pt").write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is damaged"):
            models("stored").load(tmp_path / "net.pt")

    def test_a_whole_network(self, models, pixels, tmp_path):
        path = tmp_path / "net.pt"
        torch.save(torch.nn.Linear(2, 3), path)
        for line in self.messages(models, pixels, path):
            kind = "torch.nn.modules.linear.Linear"
            assert line == f"Error: '{path}' holds a {kind}, which is not read: save net.state_dict()"

    def test_other_tensors(self, models, pixels, tmp_path):
        path = tmp_path / "net.pt"
        torch.save({"a": torch.zeros(2, 3)}, path)
        *lines, last = self.messages(models, pixels, path)
        assert set(lines) == {f"Error: '{path}' is no checkpoint of models/train.py: see models/checkpoints.py"}
        assert "the checkpoint has 1 other tensors" in last

    def test_weights_that_are_no_numbers(self, models, pixels, tmp_path):
        path = tmp_path / "net.pt"
        state = models("trainer").Trainer(models("trainer").Settings(), torch.device("cpu")).state()
        next(iter(state["weights"].values())).fill_(float("inf"))
        torch.save(state, path)
        *lines, last = self.messages(models, pixels, path)
        assert all("'stem.0.weight' is not finite" in line for line in lines)
        assert "take models/export.py" in last

    @pytest.mark.parametrize("setting", [{"levels": 4, "other": 1}, {"network": "vgg16"}])
    def test_settings_of_other_weights(self, models, setting, tmp_path):
        state = models("trainer").Trainer(models("trainer").Settings(), torch.device("cpu")).state()
        torch.save({**state, "settings": {**state["settings"], **setting, "hidden": 8}}, tmp_path / "net.pt")
        done = run(models("export"), tmp_path / "net.pt", "-o", tmp_path / "net.onnx")
        assert done.exit_code == 2
        assert "has settings and weights that do not fit" in done.output

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

"""Commands as a shell takes them."""

from __future__ import annotations

import shlex

import pytest

from ftbc_onnx import shell

WORDS = ["ftbc-onnx", "--exclude", "^a|b$", "C:\\my nets\\a.onnx", "it's"]


def test_of_posix() -> None:
    assert shlex.split(shell.joined(WORDS)) == WORDS
    assert shell.joined(["-T", "4", "--no-gate"]) == "-T 4 --no-gate"


def test_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """cmd.exe knows no single quotes."""
    with monkeypatch.context() as there:
        there.setattr(shell.os, "name", "nt")
        joined = shell.joined(WORDS)
    assert joined == 'ftbc-onnx --exclude "^a|b$" "C:\\my nets\\a.onnx" "it\'s"'

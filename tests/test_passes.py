"""What all passes have in common; each has a test file of its own."""

from __future__ import annotations

from pathlib import Path

from helpers import apply, numbers, parse, run
from pass_cases import BN, IN, X, norm

from ftbc_onnx.graph.passes import (
    PASSES,
)


def test_every_pass_has_a_test_file():
    for change in PASSES:
        assert (Path(__file__).parent / f"test_{change.__name__}.py").exists()


def test_passes_leave_the_model_they_were_read_from_alone():
    text = f"{IN} {{ a = Conv(x, w) b = {BN.format('a')} y = Identity(b) }}"
    model = parse(text, w=numbers(3, 3, 1, 1), **norm(3))
    content = model.SerializeToString()
    for change in PASSES:
        apply(change, model)
    assert model.SerializeToString() == content
    assert run(model, X)["y"].shape == (2, 3, 4, 5)

"""The calibration rules, by name. A rule is one file; adding one touches that file, `make_rule`, and `RULES` of
`ftbc_onnx.config`."""

from __future__ import annotations

from ftbc_onnx.config import RULES
from ftbc_onnx.errors import ConfigError
from ftbc_onnx.rules.paper import PaperRule
from ftbc_onnx.rules.protocol import CalibrationRule
from ftbc_onnx.rules.solve import ROUGH, SolveRule


def make_rule(name: str, alpha: float) -> CalibrationRule | None:
    """The rule called `name`; None for ``none`` (plain conversion, every bias zero).

    Raises:
        ConfigError: there is none of that name, or alpha is not positive.
    """
    if name not in RULES:
        raise ConfigError(f"unknown rule '{name}': choose one of {', '.join(RULES)}")
    if name == "paper":
        return PaperRule(alpha)
    return SolveRule() if name == "solve" else None


__all__ = ["ROUGH", "RULES", "CalibrationRule", "PaperRule", "SolveRule", "make_rule"]

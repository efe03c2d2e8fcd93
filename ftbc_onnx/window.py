"""Over which steps an output is averaged: all of them, or those from t0 on.

With the output's current x[t] and sum[t] = x[0] + ... + x[t], the output after step t is

    mean:                   sum[t] / (t+1)
    delayed from t0 >= 1:   (sum[t] - sum[t0-1]) / (t+1-t0)   (1) for t >= t0
                            sum[t] / (t+1)                    (2) for t < t0, where there is nothing else yet

The first steps see neurons that have not settled; leaving them out trades that error against a shorter mean. Nothing
here depends on T, so the first steps of a run are a shorter run.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftbc_onnx.errors import ConfigError


@dataclass(frozen=True)
class Window:
    """The steps that an output is the mean of; as text ``mean``, or ``delayed:4`` for t0 = 4.

    Attributes:
        start: t0, the first step that counts (from 0); 0: all of them.
    """

    start: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.start, bool) or not isinstance(self.start, int) or self.start < 0:
            raise ConfigError(f"the readout starts at step {self.start!r}: it must be a whole number, at least 0")

    def dropped(self, t: int) -> int | None:
        """The step whose sum is taken away from that of step t; None: nothing is taken away."""
        return self.start - 1 if 0 < self.start <= t else None

    def count(self, t: int) -> int:
        """How many steps the mean after step t is over."""
        return t + 1 - self.start if t >= self.start else t + 1

    def __str__(self) -> str:
        return f"delayed:{self.start}" if self.start else "mean"

    @classmethod
    def parse(cls, text: str) -> Window:
        """Inverse of `str`.

        Raises:
            ConfigError: it is no readout.
        """
        kind, colon, start = text.partition(":")
        if text == "mean":
            return cls()
        if kind == "delayed" and colon and start.isdecimal() and int(start) > 0:
            return cls(int(start))
        raise ConfigError(f"readout is '{text}': it must be mean, or delayed:N with N of at least 1")

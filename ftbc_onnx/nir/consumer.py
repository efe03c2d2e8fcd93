"""The only door to a NIR runtime, and with it to torch: nothing is imported before a file is to be run.

`nir.IF` is run by SpikingJelly, an independent simulator, by its own import of NIR files: its neuron resets to v_reset,
starts there, and fires on ``>=``. Loops of I, Threshold and Scale, which no simulator was found to import, are run by
nirtorch, NIR's own PyTorch interpreter. It lays the graph out in time and asks for modules of these three primitives;
of those that it has, two are replaced: Affine (nirtorch 2.6 leaves the bias out) and Flatten (it counts the batch as an
axis).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

INSTALL = 'pip install "torch>=2.6,<2.14" loguru && pip install --no-deps spikingjelly nirtorch'
"""What brings the runtimes; ``--no-deps`` because SpikingJelly asks for torchvision, torchaudio and more."""


class NoRuntime(Exception):  # noqa: N818 - it is caught and said in the report
    """A NIR file cannot be run here; the message says why, and what to do."""


@dataclass(frozen=True)
class Runtime:
    """A NIR file, open in a runtime.

    Attributes:
        name: the runtime's.
        run: (input [B, ...], T) -> output at every step [T, B, ...], from the initial state.
    """

    name: str
    run: Callable[[np.ndarray, int], np.ndarray]


def open_file(path: Path) -> Runtime:
    """Open a NIR file of one input and one output in the runtime that takes its neurons.

    Raises:
        NoRuntime: it is not installed, or does not take the file.
    """
    try:
        import nir  # noqa: PLC0415 - heavy libraries, only for those who measure
        import torch  # noqa: PLC0415

        graph = nir.read(path)
        loops = any(isinstance(node, nir.Threshold) for node in graph.nodes.values())
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise NoRuntime(
                f"NIR runtimes take one input and one output, not {len(graph.inputs)} and {len(graph.outputs)}"
            )
        module = _interpreted(path) if loops else _simulated(path)
    except ImportError as error:
        raise NoRuntime(f"no NIR runtime ({error}): {INSTALL}") from error
    except (ValueError, NotImplementedError, RuntimeError) as error:
        raise NoRuntime(f"the NIR runtime does not open the file: {error}") from error

    def run(value: np.ndarray, steps: int) -> np.ndarray:
        state, rows = None, []
        with torch.no_grad():
            for _ in range(steps):
                output, state = module(torch.from_numpy(value), state)
                rows.append(output.numpy())
        return np.stack(rows)

    return Runtime("nirtorch" if loops else "SpikingJelly", run)


def _simulated(path: Path) -> Callable[..., Any]:
    """The file by SpikingJelly; a step is one unit of time."""
    from spikingjelly.activation_based.nir_exchange import import_from_nir  # noqa: PLC0415

    module: Callable[..., Any] = import_from_nir(path, dt=1.0)
    return module


def _interpreted(path: Path) -> Callable[..., Any]:
    """The file by nirtorch, with modules for the primitives of a loop."""
    import nir  # noqa: PLC0415
    import nirtorch  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from torch.nn.functional import linear  # noqa: PLC0415

    class Integrator(torch.nn.Module):  # type: ignore[misc]
        """v[t] = v[t-1] + r x[t], from 0; nirtorch keeps the state."""

        def __init__(self, r: Any) -> None:
            super().__init__()
            self.r = r

        def forward(self, x: Any, state: Any = None) -> Any:
            v = self.r * x if state is None else state + self.r * x
            return v, v

    class Function(torch.nn.Module):  # type: ignore[misc]
        """A function without state."""

        def __init__(self, function: Callable[..., Any], *numbers: np.ndarray) -> None:
            super().__init__()
            self.function, self.numbers = function, [torch.from_numpy(n) for n in numbers]

        def forward(self, x: Any) -> Any:
            return self.function(x, *self.numbers)

    modules = {
        nir.I: lambda node: Integrator(torch.from_numpy(node.r)),
        nir.Threshold: lambda node: Function(lambda x, height: (x > height).to(x.dtype), node.threshold),
        nir.Scale: lambda node: Function(torch.mul, node.scale),
        nir.Affine: lambda node: Function(linear, node.weight, node.bias),
        nir.Flatten: lambda node: torch.nn.Flatten(node.start_dim + 1, node.end_dim),
    }
    module: Callable[..., Any] = nirtorch.nir_to_torch(path, modules)
    return module

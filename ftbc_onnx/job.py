"""What every stage of a conversion may look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftbc_onnx.batching import Batching, choose_batching
from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.data import DataSource
from ftbc_onnx.graph.files import SourceModel
from ftbc_onnx.graph.normalise import Normalised
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.runtime import Device

Progress = Callable[[str, int, int], None]
"""Called with (stage, samples done, samples in all)."""


@dataclass(frozen=True)
class Job:
    """What every stage may look at.

    `free` is the network with a free batch where that can be had, else the network; `neurons` are those of every site,
    per sample, empty if there are no data and axes are open.
    """

    source: SourceModel
    normalised: Normalised
    network: Network
    free: Network
    neurons: Mapping[str, int]
    config: ConvertConfig
    device: Device
    calibration: DataSource | None
    random: bool
    judged: DataSource | None
    label_offset: int
    progress: Progress

    @property
    def size(self) -> int:
        """All neurons, per sample."""
        return sum(self.neurons.values())

    def batching(self, data: DataSource, samples: int | None = None) -> Batching:
        """Batches in which networks are judged on some data: on a CPU no more than is fast, whatever is asked for.

        Any number of samples gives the same; what is asked for is how many a rule sees at once.
        """

        def choose(wanted: int | None) -> Batching:
            return choose_batching(
                wanted,
                self.network.static_batch,
                data,
                samples,
                "evaluation",
                neurons=self.size,
                cores=self.device.cores,
            )

        fast, asked = choose(None), self.config.batch_size
        return fast if asked is None or (self.device.cores and fast.size < asked) else choose(asked)

    def stage(self, name: str, samples: int) -> Callable[[int], None]:
        """Tells that a stage begins; what it returns is told the samples done, of so many in all."""
        self.progress(name, 0, samples)
        return lambda done: self.progress(name, done, samples)

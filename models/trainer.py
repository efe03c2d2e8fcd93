"""A training run: its settings, and a network that is trained epoch after epoch (`train.py`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import click
import torch
from activations import activation, keep_thresholds_positive
from architectures import image_side, make
from augment import augment
from image_data import Labelled, normalised
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

OPTIMIZERS = ("sgd", "adamw")
CHUNK = 3000
"""Images augmented at once."""
EPOCH_SEEDS = 1_000_003
"""How far the epochs of two seeds are apart in seeds of the generator, whose state fits one kind of device only."""


@dataclass(frozen=True)
class Settings:
    """What a run is; a checkpoint continues only with the same."""

    network: str = "resnet20"
    activation: str = "qcfs"
    levels: int = 8
    threshold: float = 8.0
    classes: int = 10
    hidden: int = 4096
    large: bool | None = None
    epochs: int = 100
    batch: int = 128
    optimizer: str = "sgd"
    rate: float = 0.1
    decay: float = 5e-4
    seed: int = 0
    validate: int = 0
    policy: bool = True
    cutout: int = 8

    def __post_init__(self) -> None:
        """Say which layout it is, however it was asked for."""
        if self.large is None:
            object.__setattr__(self, "large", image_side(self.classes) == 224)

    def make(self) -> nn.Module:
        """The network, with random weights."""
        made = activation(self.activation, self.levels, self.threshold)
        return make(self.network, made, self.classes, hidden=self.hidden, large=self.large)

    def optimize(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """What moves the weights."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.rate, weight_decay=self.decay)
        return torch.optim.SGD(parameters, self.rate, momentum=0.9, weight_decay=self.decay, nesterov=True)


def known(settings: Mapping[str, Any]) -> Settings:
    """Settings of a checkpoint, without those of another version; what is newer than it has its default."""
    return Settings(**{field.name: settings[field.name] for field in fields(Settings) if field.name in settings})


def check_compiler() -> None:
    """Compile something small.

    Raises:
        click.UsageError: torch cannot do it here; it takes a C++ compiler.
    """
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    except Exception as error:  # of the compiler that is missing, or of what it says
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise click.UsageError(f"--compile: torch cannot compile here: {why}") from None


class Trainer:
    """A network, its optimizer, and where both have got to."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        *,
        graph: bool = True,
        mixed: bool | None = None,
        compiled: bool = False,
        source: dict[str, str | None] | None = None,
    ) -> None:
        """Seed, make the network, put it on the device.

        Args:
            settings: what the run is.
            device: where it runs.
            graph: capture the step, where that is possible.
            mixed: compute in bfloat16 what loses little by it; None: on a GPU.
            compiled: have torch compile the steps, which then round otherwise (`check_compiler` says whether it can).
            source: digests of what the run is made from, by name; a checkpoint continues only with the same.
        """
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # a QCFS that reads rounded sums is another function
        self.settings, self.device = settings, device
        self.net = settings.make().to(device, memory_format=torch.channels_last)
        self.optimizer = settings.optimize(self.net.parameters())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings.epochs)
        self.generator = torch.Generator(device)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self._graph = graph and device.type == "cuda"
        self._mixed = device.type == "cuda" if mixed is None else mixed
        self._step: Callable[[Tensor, Tensor], Tensor] | None = None
        self._forward = torch.compile(self.net) if compiled else self.net
        self._source = {"mixed": self._mixed, "compile": compiled, **(source or {})}

    def run_epoch(self, data: Labelled) -> float:
        """One epoch over augmented images, drawn by its number and the seed; the mean loss."""
        self.net.train()
        self.generator.manual_seed((EPOCH_SEEDS * self.settings.seed + self.epoch) % 2**63)
        order = torch.randperm(len(data.label), generator=self.generator, device=self.device)
        total, batches = torch.zeros((), device=self.device), 0
        for image, label in self._batches(data, order):
            total += self._backward(image, label)
            self.optimizer.step()
            keep_thresholds_positive(self.net)
            batches += 1
        self.schedule.step()
        self.epoch += 1
        return total.item() / batches

    def _batches(self, data: Labelled, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Full batches of augmented, normalised images."""
        size = self.settings.batch
        whole = len(order) // size * size
        if not whole:
            raise click.UsageError(f"{len(order)} training images make no batch of {size}: take a smaller --batch")
        chunk = max(CHUNK // size, 1) * size
        for start in range(0, whole, chunk):
            part = data.take(order[start : min(start + chunk, whole)])
            image = augment(part.image, self.generator, policy=self.settings.policy, cutout=self.settings.cutout)
            image = normalised(image).contiguous(memory_format=torch.channels_last)
            yield from zip(image.split(size), part.label.split(size), strict=True)

    def _backward(self, image: Tensor, label: Tensor) -> Tensor:
        """Loss of a batch; leaves gradients behind."""
        if not self._graph:
            self.optimizer.zero_grad(set_to_none=True)
            return self._loss_backward(image, label)
        if self._step is None:
            self._step = self._capture(image, label)
        return self._step(image, label)

    def _loss_backward(self, image: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed, cache_enabled=False):
            loss = cross_entropy(self._forward(image).float(), label)
        loss.backward()
        return loss.detach()

    def _capture(self, image: Tensor, label: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Forward and backward pass as one CUDA graph, whose gradients stay in place."""
        before = {name: tensor.clone() for name, tensor in self.net.state_dict().items()}
        image, label = image.clone(memory_format=torch.channels_last), label.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # libraries choose their kernels before the capture
                self.optimizer.zero_grad(set_to_none=True)
                self._loss_backward(image, label)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self._loss_backward(image, label)
        self.net.load_state_dict(before)  # the statistics that the trials have moved

        def replay(x: Tensor, y: Tensor) -> Tensor:
            image.copy_(x)
            label.copy_(y)
            graph.replay()
            return loss

        return replay

    def is_finite(self, loss: float) -> bool:
        """Whether an epoch's loss and what it has left behind, weights and statistics, are numbers."""
        state = self.net.state_dict().values()
        return math.isfinite(loss) and all(bool(torch.isfinite(tensor).all()) for tensor in state)

    @torch.no_grad()
    def accuracy(self, data: Labelled) -> float:
        """Percentage of images whose largest output is at their label."""
        self.net.eval()
        right = torch.zeros((), device=self.device)
        for image, label in zip(data.image.split(500), data.label.split(500), strict=True):
            right += (self.net(normalised(image)).argmax(1) == label).sum()
        return 100 * right.item() / len(data.label)

    def keep_best(self, accuracy: float) -> None:
        """Remember these weights if they are the best on the images held out."""
        if self.best is None or accuracy > self.best[0]:
            self.best = accuracy, {name: tensor.clone() for name, tensor in self.net.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Everything that a run needs to go on, and what `export` reads: ``settings`` and ``weights``."""
        weights = self.best[1] if self.best else self.net.state_dict()
        return {
            "settings": asdict(self.settings),
            "source": self._source,
            "weights": weights,
            "last": self.net.state_dict(),
            "best": self.best and self.best[0],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            click.UsageError: it is the state of another run, or not all of it.
        """
        missing = sorted(self.state().keys() - state.keys() - {"source"})
        if missing:
            raise click.UsageError(f"the checkpoint has no '{missing[0]}' to go on with: name another file with -o")
        mine = {**asdict(self.settings), **self._source}
        # What is newer than the checkpoint had its default there, or is not known.
        found = {**self._source, **state["settings"], **asdict(known(state["settings"])), **state.get("source", {})}
        if found != mine:
            other = sorted(name for name in {*found, *mine} if found.get(name) != mine.get(name))
            raise click.UsageError(f"the checkpoint has other settings ({', '.join(other)}): name another file with -o")
        self.net.load_state_dict(state["last"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.epoch, self.history = state["epoch"], state["history"]
        if state["best"] is not None:
            self.best = state["best"], state["weights"]

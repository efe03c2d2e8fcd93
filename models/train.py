"""Train a network for conversion, on a CPU or a GPU; stop it and start it again as you like.

    python models/train.py --network resnet20 --activation qcfs --levels 8 --data FOLDER --epochs 150 -o resnet20.pt
    python models/export.py resnet20.pt -o resnet20.onnx

SGD with momentum 0.9, or AdamW for transformers, and a cosine schedule; images are cropped, flipped, put through
AutoAugment, and Cutout takes a square out. The weights kept are those of the last epoch, or with ``--validate N`` those
of the epoch that was best on N training images held out. Test images are looked at once, at the end. On a GPU: mixed
precision (bfloat16), channels last, and a step captured as one CUDA graph. ``--mixed`` asks for that precision on a CPU
too, which pays where the processor multiplies matrices of bfloat16 (AMX).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from activations import ACTIVATIONS, activation, keep_thresholds_positive
from architectures import NETWORKS, image_side, make
from augment import augment
from image_data import Labelled, normalised, read
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

OPTIMIZERS = ("sgd", "adamw")
CHUNK = 3000
"""Images augmented at once."""


@dataclass(frozen=True)
class Settings:
    """What a run is; a checkpoint continues only with the same."""

    network: str = "resnet20"
    activation: str = "qcfs"
    levels: int = 8
    threshold: float = 8.0
    classes: int = 10
    hidden: int = 4096
    epochs: int = 100
    batch: int = 128
    optimizer: str = "sgd"
    rate: float = 0.1
    decay: float = 5e-4
    seed: int = 0
    validate: int = 0
    policy: bool = True
    cutout: int = 8

    def make(self) -> nn.Module:
        """The network, with random weights."""
        made = activation(self.activation, self.levels, self.threshold)
        return make(self.network, made, self.classes, hidden=self.hidden)

    def optimize(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """What moves the weights."""
        if self.optimizer == "adamw":
            return torch.optim.AdamW(parameters, self.rate, weight_decay=self.decay)
        return torch.optim.SGD(parameters, self.rate, momentum=0.9, weight_decay=self.decay, nesterov=True)


class Trainer:
    """A network, its optimizer, and where both have got to."""

    def __init__(
        self, settings: Settings, device: torch.device, *, graph: bool = True, mixed: bool | None = None
    ) -> None:
        """Seed, make the network, put it on the device.

        Args:
            settings: what the run is.
            device: where it runs.
            graph: capture the step, where that is possible.
            mixed: compute in bfloat16 what loses little by it; None: on a GPU.
        """
        torch.manual_seed(settings.seed)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False  # a QCFS that reads rounded sums is another function
        self.settings, self.device = settings, device
        self.net = settings.make().to(device, memory_format=torch.channels_last)
        self.optimizer = settings.optimize(self.net.parameters())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, settings.epochs)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.epoch = 0
        self.history: list[dict[str, float]] = []
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self._graph = graph and device.type == "cuda"
        self._mixed = device.type == "cuda" if mixed is None else mixed
        self._step: Callable[[Tensor, Tensor], Tensor] | None = None

    def run_epoch(self, data: Labelled) -> float:
        """One epoch over augmented images; the mean loss."""
        self.net.train()
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
            loss = cross_entropy(self.net(image).float(), label)
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
            "weights": weights,
            "last": self.net.state_dict(),
            "best": self.best and self.best[0],
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "generator": self.generator.get_state(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from `state`.

        Raises:
            click.UsageError: it is the state of another run.
        """
        found = {**asdict(Settings()), **state["settings"]}  # a setting that is newer than the checkpoint
        mine = asdict(self.settings)
        if found != mine:
            other = sorted(name for name in {*found, *mine} if found.get(name) != mine.get(name))
            raise click.UsageError(f"the checkpoint has other settings ({', '.join(other)}): name another file with -o")
        self.net.load_state_dict(state["last"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(state["generator"].cpu())
        self.epoch, self.history = state["epoch"], state["history"]
        if state["best"] is not None:
            self.best = state["best"], state["weights"]


def split(data: Labelled, held_out: int, seed: int) -> tuple[Labelled, Labelled]:
    """The others, and `held_out` images drawn at random."""
    order = torch.randperm(len(data.label), generator=torch.Generator().manual_seed(seed))
    return data.take(order[held_out:]), data.take(order[:held_out])


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint in one go: an interruption leaves the one before."""
    half = path.with_name(path.name + ".part")
    torch.save(state, half)
    half.replace(path)


def start_from(net: nn.Module, weights: Path) -> None:
    """Take what fits by name from another checkpoint of the same network; new thresholds keep their initial value.

    Raises:
        click.UsageError: something other than a threshold is missing, or nothing of it fits.
    """
    found = torch.load(weights, map_location="cpu", weights_only=True)["weights"]
    missing, unknown = net.load_state_dict(found, strict=False)
    wrong = [name for name in (*missing, *unknown) if not name.endswith("threshold")]
    if wrong:
        raise click.UsageError(f"'{weights}' holds another network: '{wrong[0]}' does not fit")


@click.command(context_settings={"show_default": True})
@click.option("--network", type=click.Choice(NETWORKS), default=Settings.network)
@click.option("--activation", type=click.Choice(ACTIVATIONS), default=Settings.activation)
@click.option("--levels", type=click.IntRange(1), default=Settings.levels, help="L of QCFS.")
@click.option("--threshold", type=float, default=Settings.threshold, help="Initial theta, where it is learned.")
@click.option("--classes", type=click.Choice(["10", "100", "1000"]), default="10")
@click.option("--hidden", type=click.IntRange(1), default=Settings.hidden, help="Linear layers of VGG-16.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="See models/image_data.py.")
@click.option("--test", type=click.Path(path_type=Path, exists=True), help="Test images [default: those of --data].")
@click.option("--epochs", type=click.IntRange(1), default=Settings.epochs)
@click.option("--batch", type=click.IntRange(1), default=Settings.batch)
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default=Settings.optimizer)
@click.option("--rate", type=float, default=Settings.rate, help="Learning rate at the start.")
@click.option("--decay", type=float, default=Settings.decay, help="Weight decay.")
@click.option("--seed", type=int, default=Settings.seed)
@click.option("--validate", type=click.IntRange(0), default=0, help="Training images held out to choose the epoch.")
@click.option("--policy/--no-policy", default=True, help="AutoAugment.")
@click.option("--cutout", type=click.IntRange(0), default=Settings.cutout, help="Side of the square, in pixels.")
@click.option("--start", type=click.Path(path_type=Path, exists=True), help="A checkpoint whose weights to begin with.")
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--graph/--no-graph", default=True, help="Capture the step as a CUDA graph.")
@click.option("--mixed/--no-mixed", default=None, help="Layers in bfloat16.  [default: on a GPU]")
@click.option("--save-every", type=click.IntRange(1), default=10, help="Epochs between checkpoints.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The checkpoint.")
def main(
    *,
    data: Path,
    test: Path | None,
    start: Path | None,
    device: str,
    graph: bool,
    mixed: bool | None,
    save_every: int,
    output: Path,
    classes: str,
    **options: Any,
) -> None:
    """Train a network and write a checkpoint; go on with it if it is there."""
    settings = Settings(classes=int(classes), **options)
    where = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    try:
        side = image_side(settings.classes)
        training, held_out = split(read(data, "train", side), settings.validate, settings.seed)
        judged = read(test or data, "test", side).to(where)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    training, held_out = training.to(where), held_out.to(where)
    trainer = Trainer(settings, where, graph=graph, mixed=mixed)
    if output.exists():
        trainer.load(torch.load(output, map_location=where, weights_only=True))
    elif start is not None:
        start_from(trainer.net, start)
    with Progress(transient=True) as bar:
        task = bar.add_task(settings.network, total=settings.epochs, completed=trainer.epoch)
        while trainer.epoch < settings.epochs:
            begun = time.perf_counter()
            row = {"loss": trainer.run_epoch(training)}
            if not trainer.is_finite(row["loss"]):
                kept = f"; '{output}' holds an earlier epoch" if output.exists() else ""
                raise click.ClickException(
                    f"training diverged in epoch {trainer.epoch} (loss {row['loss']}): "
                    f"take a smaller --rate and another -o{kept}"
                )
            if settings.validate:
                row["held out"] = trainer.accuracy(held_out)
                trainer.keep_best(row["held out"])
            row["seconds"] = time.perf_counter() - begun
            trainer.history.append(row)
            bar.update(task, completed=trainer.epoch, description=f"{settings.network}: loss {row['loss']:.3f}")
            if trainer.epoch % save_every == 0 or trainer.epoch == settings.epochs:
                save(trainer.state(), output)
    if trainer.best is not None:
        trainer.net.load_state_dict(trainer.best[1])
    result = {
        "file": str(output),
        "epochs": trainer.epoch,
        "seconds per epoch": sum(row["seconds"] for row in trainer.history) / max(len(trainer.history), 1),
        "loss": trainer.history[-1]["loss"],
        "best held out": trainer.best and trainer.best[0],
        "test accuracy": trainer.accuracy(judged),
        "test images": len(judged.label),
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()

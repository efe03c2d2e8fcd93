"""Train a network for conversion, on a CPU or a GPU; stop it and start it again as you like.

    python models/train.py --network resnet20 --activation qcfs --levels 8 --data FOLDER --epochs 150 -o resnet20.pt
    python models/export.py resnet20.pt -o resnet20.onnx

SGD with momentum 0.9, or AdamW for transformers, and a cosine schedule; images are cropped, flipped, put through
AutoAugment, and Cutout takes a square out. The weights kept are those of the last epoch, or with ``--validate N`` those
of the epoch that was best on N training images held out. Test images are looked at once, at the end. On a GPU: mixed
precision (bfloat16), channels last, and a step captured as one CUDA graph. ``--mixed`` asks for that precision on a CPU
too, which pays where the processor multiplies matrices of bfloat16 (AMX), and ``--compile`` puts the steps between the
convolutions together, which takes a C++ compiler, and a minute or two at the start.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from activations import ACTIVATIONS
from architectures import NETWORKS, TWO_LAYOUTS, image_side
from image_data import Labelled, class_names, read
from rich.progress import Progress
from stored import check_target, load_trained, written_whole
from trainer import OPTIMIZERS, Settings, Trainer, check_compiler, known

POSITIVE = click.FloatRange(0, min_open=True)
MINUTE = 60.0
"""Seconds after which a whole epoch is kept, whatever ``--save-every`` says: a machine may stop without a word."""


def place(device: str) -> torch.device:
    """The device of that name; ``auto``: a GPU where there is one.

    Raises:
        click.UsageError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:  # of a name that torch does not know; of a build without CUDA
        raise click.UsageError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from None


def training_images(data: Path, settings: Settings) -> tuple[str, Labelled, Labelled]:
    """Digest of all training images, those that are trained on, and those held out, or a ValueError."""
    images = read(data, "train", image_side(settings.classes), settings.classes)
    return images.digest(), *split(images, settings.validate, settings.seed)


def test_images(data: Path, test: Path | None, settings: Settings) -> Labelled | None:
    """Those of --test, or of a folder, or none; or a ValueError."""
    if test is None and data.is_file():
        return None
    return read(test or data, "test", image_side(settings.classes), settings.classes, class_names(data))


def split(data: Labelled, held_out: int, seed: int) -> tuple[Labelled, Labelled]:
    """The others, and `held_out` images drawn at random.

    Raises:
        ValueError: no others are left.
    """
    if held_out >= len(data.label):
        raise ValueError(f"--validate {held_out} leaves none of {len(data.label)} training images: hold fewer out")
    order = torch.randperm(len(data.label), generator=torch.Generator().manual_seed(seed))
    return data.take(order[held_out:]), data.take(order[:held_out])


def save(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint in one go: an interruption leaves the one before.

    Raises:
        click.ClickException: it cannot be written.
    """
    try:
        with written_whole(path) as half:
            torch.save(state, half)
    except RuntimeError as error:  # of torch, where the disk is full
        raise click.ClickException(f"'{path}' cannot be written: {str(error).splitlines()[0]}") from None


def start_from(trainer: Trainer, weights: Path) -> None:
    """Take what fits by name from another checkpoint of the same network; new thresholds keep their initial value.

    Raises:
        click.UsageError: the file is none, something other than a threshold is missing, or nothing of it fits.
    """
    state = _trained(weights)
    found, mine = state["weights"], trainer.net.state_dict()
    wrong = [name for name in sorted(found.keys() ^ mine.keys()) if not name.endswith("threshold")]
    if wrong:
        raise click.UsageError(f"'{weights}' holds another network: '{wrong[0]}' does not fit")
    for name in sorted(found.keys() & mine.keys()):
        if found[name].shape != mine[name].shape:
            shapes = f"{list(found[name].shape)} there, {list(mine[name].shape)} here"
            raise click.UsageError(f"'{weights}' holds another network: '{name}' is {shapes}")
    theirs, settings = known(state["settings"]), trainer.settings
    if (theirs.network, theirs.large) == (settings.network, not settings.large):  # strides, which no weight tells
        layout = "large" if theirs.large else "small"
        raise click.UsageError(f"'{weights}' has the layout for {layout} images: take it with --{layout}")
    trainer.net.load_state_dict(found, strict=False)


def _trained(path: Path) -> dict[str, Any]:
    """A checkpoint of this script, or a click.UsageError."""
    try:
        return load_trained(path)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def run(trainer: Trainer, training: Labelled, held_out: Labelled, output: Path, save_every: int) -> None:
    """All epochs that are left; checkpoints every so many epochs, after `MINUTE`, at the end, and after Ctrl-C.

    Raises:
        click.ClickException: training diverges, or a checkpoint cannot be written.
        click.exceptions.Exit: code 130 after Ctrl-C.
    """
    settings, unsaved, saved = trainer.settings, None, time.perf_counter()
    try:
        with Progress(transient=True) as bar:
            task = bar.add_task(settings.network, total=settings.epochs, completed=trainer.epoch)
            while trainer.epoch < settings.epochs:
                loss = one_epoch(trainer, training, held_out, output)
                bar.update(task, completed=trainer.epoch, description=f"{settings.network}: loss {loss:.3f}")
                unsaved = copy.deepcopy(trainer.state())  # the next epoch changes the tensors
                late = time.perf_counter() - saved >= MINUTE
                if late or trainer.epoch % save_every == 0 or trainer.epoch == settings.epochs:
                    save(unsaved, output)
                    unsaved, saved = None, time.perf_counter()
    except KeyboardInterrupt:
        if unsaved is not None:
            save(unsaved, output)
        kept = f"run the same command again to go on with '{output}'" if output.exists() else "nothing is kept"
        click.echo(f"interrupted: {kept}", err=True)
        raise click.exceptions.Exit(130) from None


def one_epoch(trainer: Trainer, training: Labelled, held_out: Labelled, output: Path) -> float:
    """One epoch and its line in the history; its loss."""
    begun = time.perf_counter()
    row = {"loss": trainer.run_epoch(training)}
    if not trainer.is_finite(row["loss"]):
        kept = f"; '{output}' holds an earlier epoch" if output.exists() else ""
        raise click.ClickException(
            f"training diverged in epoch {trainer.epoch} (loss {row['loss']}): "
            f"take a smaller --rate and another -o{kept}"
        )
    if trainer.settings.validate:
        row["held out"] = trainer.accuracy(held_out)
        trainer.keep_best(row["held out"])
    row["seconds"] = time.perf_counter() - begun
    trainer.history.append(row)
    return row["loss"]


@click.command(context_settings={"show_default": True})
@click.option("--network", type=click.Choice(NETWORKS), default=Settings.network)
@click.option("--activation", type=click.Choice(ACTIVATIONS), default=Settings.activation)
@click.option("--levels", type=click.IntRange(1), default=Settings.levels, help="L of QCFS.")
@click.option("--threshold", type=POSITIVE, default=Settings.threshold, help="Initial theta, where it is learned.")
@click.option("--classes", type=click.Choice(["10", "100", "1000"]), default="10")
@click.option("--hidden", type=click.IntRange(1), default=Settings.hidden, help="Linear layers of VGG-16.")
@click.option(
    "--large/--small", default=None, help="Layout for images of 224 x 224 or 32 x 32.  [default: by --classes]"
)
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="See models/image_data.py.")
@click.option("--test", type=click.Path(path_type=Path, exists=True), help="Test images.  [default: those of a folder]")
@click.option("--epochs", type=click.IntRange(1), default=Settings.epochs)
@click.option("--batch", type=click.IntRange(1), default=Settings.batch)
@click.option("--optimizer", type=click.Choice(OPTIMIZERS), default=Settings.optimizer)
@click.option("--rate", type=POSITIVE, default=Settings.rate, help="Learning rate at the start.")
@click.option("--decay", type=click.FloatRange(0), default=Settings.decay, help="Weight decay.")
@click.option("--seed", type=int, default=Settings.seed)
@click.option("--validate", type=click.IntRange(0), default=0, help="Training images held out to choose the epoch.")
@click.option("--policy/--no-policy", default=True, help="AutoAugment.")
@click.option("--cutout", type=click.IntRange(0), default=Settings.cutout, help="Side of the square, in pixels.")
@click.option(
    "--start",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A checkpoint whose weights to begin with.",
)
@click.option("--device", default="auto", help="auto, cpu or cuda.")
@click.option("--graph/--no-graph", default=True, help="Capture the step as a CUDA graph.")
@click.option("--mixed/--no-mixed", default=None, help="Layers in bfloat16.  [default: on a GPU]")
@click.option("--compile", "compiled", is_flag=True, help="Compile the steps, on a CPU.")
@click.option("--save-every", type=click.IntRange(1), default=10, help="Epochs between checkpoints, unless long ones.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True, help="The checkpoint.")
def main(
    *,
    data: Path,
    test: Path | None,
    start: Path | None,
    device: str,
    graph: bool,
    mixed: bool | None,
    compiled: bool,
    save_every: int,
    output: Path,
    classes: str,
    **options: Any,
) -> None:
    """Train a network and write a checkpoint; go on with it if it is there."""
    check_target(output)
    if options["large"] is not None and options["network"] not in TWO_LAYOUTS:
        raise click.UsageError(f"--large and --small are for {', '.join(TWO_LAYOUTS)}, not for {options['network']}")
    settings = Settings(classes=int(classes), **options)
    where = place(device)
    if compiled and where.type == "cuda":
        raise click.UsageError("--compile goes with --device cpu: on a GPU a step is captured as one graph")
    if compiled:
        check_compiler()
    try:
        digest, training, held_out = training_images(data, settings)
        judged = test_images(data, test, settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if judged is None:
        click.echo(f"'{data}' holds training images only: without --test no accuracy is measured", err=True)
    training, held_out, judged = training.to(where), held_out.to(where), judged and judged.to(where)
    source = {"data": digest, "start": start and hashlib.sha256(start.read_bytes()).hexdigest()}
    trainer = Trainer(settings, where, graph=graph, mixed=mixed, compiled=compiled, source=source)
    if output.exists():
        trainer.load(_trained(output))
        click.echo(f"'{output}' goes on after epoch {trainer.epoch} of {settings.epochs}", err=True)
    elif start is not None:
        start_from(trainer, start)
    run(trainer, training, held_out, output, save_every)
    if trainer.best is not None:
        trainer.net.load_state_dict(trainer.best[1])
    result = {
        "file": str(output),
        "epochs": trainer.epoch,
        "seconds per epoch": sum(row["seconds"] for row in trainer.history) / max(len(trainer.history), 1),
        "loss": trainer.history[-1]["loss"],
        "best held out": trainer.best and trainer.best[0],
        "test accuracy": judged and trainer.accuracy(judged),
        "test images": len(judged.label) if judged else 0,
    }
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()

"""How fast a spiking network runs in each form, as ratios to T runs of its ANN, all in one go on one machine.

    python tools/benchmark.py --data FOLDER [--json OUT] [--quick] [--only FORM ...] [--network LABEL ...] [--batch N]

Every case runs in a process of its own, for its peak memory; in it the ANN runs first, then the network, then the ANN
again, and a ratio is between medians of the same process. (Runs that alternate would slow each other down: the threads
of an onnxruntime session go on spinning for a while after a run.) ``torch`` is the same network in plain PyTorch with
time in the batch (`models/spiking.py`); ``spikingjelly``, where that package is installed, what its converter makes of
the same architecture with random weights. ``calibrate`` and ``evaluate`` are one batch of a calibration or an
evaluation, as ratios to one run of the network in the form that is the default on a CPU. Integrate-and-fire neurons
unless another is asked for. FOLDER is described in `real_data.py`. Nothing else should run.

On a CPU networks are opened as this package opens them (`ftbc_onnx.runtime`), with ``--plain`` as onnxruntime does by
default; then without ``step`` and the tasks, which are this package's own code.

With ``--device cuda`` inputs and outputs stay on the GPU, and a form with ``+graph`` is captured as a CUDA graph. All
cases then run in one process: starting CUDA takes longer than most of them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from benchmark_networks import NETWORKS, Timed, export, feeds_of, open_network, torch_network
from real_data import markdown
from rich.console import Console

from ftbc_onnx.config import ConvertConfig
from ftbc_onnx.counting import count
from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.emit.calibration import emit_calibration, old_bias_name
from ftbc_onnx.graph.observe import expose_running_means, expose_tensors, observe_snn
from ftbc_onnx.graph.sites import Network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.rules import make_rule
from ftbc_onnx.runtime import Device, Session, choose_device
from ftbc_onnx.step_runner import StepRunner

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("ann", "unrolled", "fused", "folded", "loop", "step", "torch", "spikingjelly")
TASKS = ("evaluate", "evaluate, counting", "calibrate paper", "calibrate solve")
CUDA_FORMS = ("ann", "ann+graph", "unrolled", "unrolled+graph", "folded", "folded+graph", "loop", "step", "torch")


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """One network, form, T and batch: seconds, ratios, memory, size."""
    steps, form, device = case["steps"], case["form"], choose_device(case["device"])
    network, plan = open_network(Path(case["path"]), steps, _neuron(case["neuron"]))
    feeds = feeds_of(network, NETWORKS[case["network"]].shape, case["batch"])
    task = form in TASKS
    reference_model = emit(network, plan, "fused").model if task else network.view.model
    reference = _session(reference_model, device, feeds, plain=case["plain"])
    base = _block(reference, case["seconds"] / 4)
    before = _memory("VmRSS")
    _forget_peak()
    start = time.perf_counter()
    if form == "spikingjelly":
        size, run = 0, _spikingjelly(NETWORKS[case["network"]], steps, next(iter(feeds.values())))
    elif task:
        size, run = 0, _task(form, network, plan, feeds)
    else:
        size, run = _prepare(form, network, plan, feeds, device, plain=case["plain"])
    created = time.perf_counter() - start
    for _ in range(2):  # onnxruntime lays the second one out by the first
        run()
    peak = _memory("VmHWM") - before
    times = _block(run, case["seconds"])
    base += _block(reference, case["seconds"] / 4)
    base_time, time_taken = statistics.median(base), statistics.median(times)
    row = {key: case[key] for key in ("network", "batch", "steps", "form")}
    if task:
        return {**row, "per image, ms": time_taken / case["batch"] * 1e3, "run / SNN run": time_taken / base_time}
    return {
        **row,
        "file, MB": size / 1e6,
        "creation, s": created,
        "run, s": time_taken,
        "run / (T x ANN)": time_taken / ((1 if form.startswith("ann") else steps) * base_time),
        "peak memory, MiB": peak,
        "membranes, MiB": membranes(network, feeds) / 2**20,
        "runs": len(times),
    }


def membranes(network: Network, feeds: dict[str, np.ndarray]) -> int:
    """Bytes of one number per neuron."""
    session = Session(expose_tensors(network.view.model, [site.spikes for site in network.sites]))
    return sum(value.nbytes for value in session.run(feeds, [site.spikes for site in network.sites]).values())


def _neuron(words: str) -> NeuronSpec:
    """``if``, or a neuron and its levels: ``signed-group 4``."""
    name, _, levels = words.partition(" ")
    return ConvertConfig(neuron=name, levels=int(levels) if levels else None).neuron_spec


def _task(form: str, network: Any, plan: SpikingPlan, feeds: dict[str, np.ndarray]) -> Callable[[], Any]:
    """A batch of an evaluation (curves and gaps, perhaps events), or of a calibration with one of the rules."""
    if form.startswith("evaluate"):
        emitted = emit(network, plan, "fused")
        model = observe_snn(expose_running_means(emitted.model, emitted.readouts), plan)
        session = Session(count(model, plan) if "counting" in form else model)
        return lambda: session.run(feeds)
    rule = make_rule(form.partition(" ")[2], 0.4)
    assert rule is not None
    session = Session(emit_calibration(network, plan, rule))
    fed = {**feeds, **{old_bias_name(site.name): plan.biases[site.name] for site in plan.sites}}
    return lambda: session.run(fed)


def _spikingjelly(timed: Timed, steps: int, x: np.ndarray) -> Callable[[], Any]:
    """What SpikingJelly's converter makes, one step after another, as its documentation runs it."""
    import torch  # noqa: PLC0415
    from spikingjelly.activation_based import ann2snn, functional  # noqa: PLC0415

    assert timed.made is not None
    images = torch.from_numpy(x)
    few = [(images[:1], torch.zeros(1))]
    snn = ann2snn.Converter(dataloader=few, mode="max")(torch_network(timed.made))

    def run() -> Any:
        functional.reset_net(snn)
        with torch.inference_mode():
            return sum(snn(images) for _ in range(steps))

    return run


def _prepare(
    form: str, network: Any, plan: SpikingPlan, feeds: dict[str, np.ndarray], device: Device, *, plain: bool
) -> tuple[int, Callable[[], Any]]:
    """Size of the file, and what a run is."""
    form, _, graph = form.partition("+")
    if form == "torch":
        return 0, _torch(network, plan, feeds, device)
    model = network.view.model if form == "ann" else emit(network, plan, form).model
    if form == "step":
        runner = StepRunner(model, plan, device)

        def steps() -> Any:
            runner.reset()
            return runner.run(feeds)

        return model.ByteSize(), steps
    return model.ByteSize(), _session(model, device, feeds, bool(graph), plain=plain)


def _torch(network: Any, plan: SpikingPlan, feeds: dict[str, np.ndarray], device: Device) -> Callable[[], Any]:
    sys.path.insert(0, str(ROOT / "models"))
    import torch  # noqa: PLC0415 (only this case needs it)
    from spiking import TimeBatched  # noqa: PLC0415

    torch.backends.cudnn.allow_tf32 = False  # as in our sessions
    torch.backends.cudnn.benchmark = True
    kind = device.name.partition(":")[0]
    snn = TimeBatched(network, plan, kind)
    x = torch.from_numpy(next(iter(feeds.values()))).to(kind)

    def run() -> Any:
        with torch.inference_mode():
            result = snn(x)
        if kind == "cuda":
            torch.cuda.synchronize()
        return result

    return run


def _session(
    model: onnx.ModelProto, device: Device, feeds: dict[str, np.ndarray], graph: bool = False, *, plain: bool
) -> Callable[[], Any]:
    """A run; on a GPU from and to tensors that are there."""
    if not device.on_gpu:
        if plain:
            opened = ort.InferenceSession(model.SerializeToString(), providers=list(device.providers))
            return lambda: opened.run(None, feeds)
        session = Session(model)
        return lambda: session.run(feeds)
    provider, options = device.providers[0]
    given = {**options, "enable_cuda_graph": str(int(graph))}
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    bound = ort.InferenceSession(model.SerializeToString(), quiet, providers=[(provider, given), *device.providers[1:]])
    binding = bound.io_binding()
    held = [ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for value in feeds.values()]
    for name, value in zip(feeds, held, strict=True):
        binding.bind_ortvalue_input(name, value)
    shapes = Session(model).run(feeds)
    held += [ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0) for value in shapes.values()]
    for name, value in zip(shapes, held[len(feeds) :], strict=True):
        binding.bind_ortvalue_output(name, value)

    def run() -> Any:
        bound.run_with_iobinding(binding)
        return held

    return run


def _block(run: Callable[[], Any], seconds: float) -> list[float]:
    """Times of runs in a row, after one that does not count."""
    run()
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - begun < seconds and len(times) < 100):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return times


def _memory(what: str) -> float:
    """MiB that this process holds (``VmRSS``), or has held at most since `_forget_peak` (``VmHWM``); 0 if not known."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0.0)


def _forget_peak() -> None:
    """Begin a new peak (a process inherits that of its parent)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of networks.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--quick", is_flag=True, help="T = 8 only, and fewer runs.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--seconds", type=float, help="Of a case, about [default: 15; 5 with --quick; 1 on a GPU].")
@click.option("--only", multiple=True, help="Forms and tasks to time [default: all].")
@click.option(
    "--network", "networks", multiple=True, type=click.Choice(list(NETWORKS)), help="Networks [default: all]."
)
@click.option("--steps", type=int, multiple=True, help="T [default: those of the network].")
@click.option(
    "--batch", "batches", type=click.IntRange(1), multiple=True, help="Batches [default: 32, and 1 of forms]."
)
@click.option("--neuron", default="if", show_default=True, help="Neuron and levels: 'signed-group 4'.")
@click.option("--plain", is_flag=True, help="Open networks with onnxruntime's default options.")
@click.option("--table", type=click.Path(path_type=Path, exists=True), help="Print the tables of rows written before.")
@click.option("--case", help="One case, as JSON: what the others are run with.")
def main(
    *,
    data: Path,
    target: Path | None,
    quick: bool,
    device: str,
    seconds: float | None,
    only: tuple[str, ...],
    networks: tuple[str, ...],
    steps: tuple[int, ...],
    batches: tuple[int, ...],
    neuron: str,
    plain: bool,
    table: Path | None,
    case: str | None,
) -> None:
    """Time every form; print a table."""
    if case is not None:
        click.echo(json.dumps(measure(json.loads(case))))
        return
    if table is not None:
        print_tables(json.loads(table.read_text()))
        return
    console = Console(stderr=True)
    load_before = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    on_cpu = device == "cpu"
    forms = only or ((*FORMS, *TASKS) if on_cpu else CUDA_FORMS)
    if not on_cpu and any(form in TASKS for form in forms):
        raise click.UsageError(f"{', '.join(TASKS)} are timed on a CPU: leave out --device {device}")
    sizes = batches or ((32,) if quick else (1, 32))
    with tempfile.TemporaryDirectory() as folder:
        for asked in _cases(data, Path(folder), networks or tuple(NETWORKS), forms, sizes):
            if plain and asked["form"] in ("step", *TASKS):
                continue
            wanted = asked["steps"] in (steps or ((8,) if quick else (asked["steps"],)))
            if asked["form"] in TASKS and asked["batch"] == 1 and not batches:
                continue
            if not wanted or not _possible(asked, neuron):
                continue
            asked |= {"device": device, "neuron": neuron, "plain": plain}
            asked["seconds"] = seconds or (1 if not on_cpu else 5 if quick else 15)
            try:
                rows.append(_apart(asked, data) if on_cpu else measure(asked))
                console.print(rows[-1])
            except Exception as error:  # one case that fails leaves the others
                console.print(f"{asked}: {(str(error).splitlines() or [type(error).__name__])[-1]}", style="red")
            if target is not None:
                target.write_text(json.dumps(rows, indent=1) + "\n")
    print_tables(rows)
    click.echo(f"load before: {load_before:.1f}")


def print_tables(rows: Sequence[dict[str, Any]]) -> None:
    """Run times of all forms side by side, then creation, memory and size, then the tasks."""
    forms = [row for row in rows if row["form"] not in TASKS]
    tasks = [row for row in rows if row["form"] in TASKS]
    large = [row for row in forms if row["batch"] == max(r["batch"] for r in forms)]
    for title, what, found in (
        ("Run time over T x the ANN's", "run / (T x ANN)", forms),
        ("Creation, s", "creation, s", large),
        ("Peak memory, MiB", "peak memory, MiB", large),
        ("Batch of a task over a run of the network", "run / SNN run", tasks),
        ("A task, ms per image", "per image, ms", tasks),
    ):
        if found:
            click.echo(f"{title}:\n\n{markdown(pivot(found, what))}\n")


def pivot(rows: Sequence[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    """One row per network, batch and T, one column per form."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = {name: row[name] for name in ("network", "batch", "steps")}
        found.setdefault(tuple(key.values()), key)[row["form"]] = row[what]
    return list(found.values())


def _cases(
    data: Path, folder: Path, networks: Sequence[str], forms: Sequence[str], batches: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Network, file, batch, T and form of every case; networks with random weights are written into `folder`."""
    for label in networks:
        timed = NETWORKS[label]
        made = None if timed.made is None else folder / f"{timed.made}.onnx"
        own = None if timed.file is None else data / "models" / f"{timed.file}.onnx"
        for batch, t, form in itertools.product(batches, timed.steps, forms):
            path = made if own is None or form == "spikingjelly" else own
            if path is None or (form == "spikingjelly" and importlib.util.find_spec("spikingjelly") is None):
                continue
            if timed.made is not None and path is made:
                export(timed.made, timed.shape, path)
            yield {"network": label, "path": str(path), "batch": batch, "steps": t, "form": form}


def _possible(asked: dict[str, Any], neuron: str) -> bool:
    """Whether a form can be timed with a neuron: what PyTorch runs has one."""
    return asked["form"] not in ("torch", "spikingjelly") or neuron == "if"


def _apart(asked: dict[str, Any], data: Path) -> dict[str, Any]:
    """A case in a process of its own."""
    command = [sys.executable, __file__, "--data", str(data), "--case", json.dumps(asked)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(found.stderr)
    row: dict[str, Any] = json.loads(found.stdout)
    return row


if __name__ == "__main__":
    main()

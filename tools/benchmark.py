"""How fast a spiking network runs in each form, as ratios to T runs of its ANN, all in one go on one machine.

    python tools/benchmark.py --data FOLDER [--json OUT] [--quick]

Every case runs in a process of its own, for its peak memory; in it the ANN runs first, then the network, then the ANN
again, and a ratio is between medians of the same process. (Runs that alternate would slow each other down: the threads
of an onnxruntime session go on spinning for a while after a run.) ``torch`` is the same network in plain PyTorch with
time in the batch (`models/spiking.py`). Integrate-and-fire neurons with random thresholds and biases: speed does not
depend on them much. FOLDER is described in `real_data.py`. Nothing else should run.

With ``--device cuda`` inputs and outputs stay on the GPU, and a form with ``+graph`` is captured as a CUDA graph. All
cases then run in one process: starting CUDA takes longer than most of them.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
from real_data import markdown
from rich.console import Console

from ftbc_onnx.graph.emit import emit
from ftbc_onnx.graph.files import load
from ftbc_onnx.graph.normalise import normalise
from ftbc_onnx.graph.sites import find_network
from ftbc_onnx.neurons import NeuronSpec
from ftbc_onnx.plan import SpikingPlan
from ftbc_onnx.runtime import Device, Session, choose_device
from ftbc_onnx.step_runner import StepRunner

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"cifar10_resnet20_torchscript": (3, 32, 32), "mobilenet_v1_0.25_128_tf2onnx": (128, 128, 3)}
FORMS = ("unrolled", "folded", "loop", "step", "torch")
CUDA_FORMS = ("ann", "ann+graph", "unrolled", "unrolled+graph", "folded", "folded+graph", "loop", "step", "torch")
MEBI = 2**20


def measure(case: dict[str, Any], data: Path) -> dict[str, Any]:
    """One network, form, T and batch: seconds, ratios, memory, size."""
    source = load(data / "models" / f"{case['network']}.onnx")
    network = find_network(normalise(source.model).model)
    rng = np.random.default_rng(0)
    steps = case["steps"]
    plan = SpikingPlan(
        source.digest,
        network.sites,
        steps,
        NeuronSpec("if"),
        {site.name: rng.uniform(1.0, 3.0, site.channels) for site in network.sites},
        {site.name: rng.normal(0, 0.1, (steps, site.channels)) for site in network.sites},
    )
    x = rng.normal(0, 1, (case["batch"], *NETWORKS[case["network"]])).astype(np.float32)
    feeds = {network.view.inputs[0].name: x}
    device = choose_device(case["device"])
    ann = _session(network.view.model, device, feeds)
    reference = _block(ann, case["seconds"] / 4)
    before = _peak()
    start = time.perf_counter()
    size, run = _prepare(case["form"], network, plan, feeds, device)
    created = time.perf_counter() - start
    run()
    peak = _peak() - before
    times = _block(run, case["seconds"])
    reference += _block(ann, case["seconds"] / 4)
    if case["form"].startswith("ann"):
        steps = 1
    ann_time, snn_time = statistics.median(reference), statistics.median(times)
    return {
        **{key: case[key] for key in ("network", "batch", "steps", "form")},
        "file, MB": size / 1e6,
        "creation, s": created,
        "run, s": snn_time,
        "run / (T x ANN)": snn_time / (steps * ann_time),
        "peak memory, MiB": peak,
        "runs": len(times),
    }


def _prepare(
    form: str, network: Any, plan: SpikingPlan, feeds: dict[str, np.ndarray], device: Device
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
    return model.ByteSize(), _session(model, device, feeds, bool(graph))


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
    model: onnx.ModelProto, device: Device, feeds: dict[str, np.ndarray], graph: bool = False
) -> Callable[[], Any]:
    """A run; on a GPU from and to tensors that are there."""
    if not device.on_gpu:
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


def _peak() -> float:
    """Most memory that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEBI


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of networks.")
@click.option("--json", "target", type=click.Path(path_type=Path), help="Write the rows here.")
@click.option("--quick", is_flag=True, help="T = 8 only, and fewer runs.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--seconds", type=float, help="Of a case, about [default: 15; 5 with --quick; 1 on a GPU].")
@click.option("--only", multiple=True, help="Forms to time [default: all].")
@click.option("--case", help="One case, as JSON: what the others are run with.")
def main(
    *,
    data: Path,
    target: Path | None,
    quick: bool,
    device: str,
    seconds: float | None,
    only: tuple[str, ...],
    case: str | None,
) -> None:
    """Time every form; print a table."""
    if case is not None:
        click.echo(json.dumps(measure(json.loads(case), data)))
        return
    console = Console(stderr=True)
    load_before = os.getloadavg()[0]
    rows = []
    on_cpu = device == "cpu"
    for network, batch, steps, form in itertools.product(
        NETWORKS, (32,) if quick else (1, 32), (8,) if quick else (4, 8, 32), FORMS if on_cpu else CUDA_FORMS
    ):
        if only and form not in only:
            continue
        asked = {"network": network, "batch": batch, "steps": steps, "form": form, "device": device}
        asked["seconds"] = seconds or (1 if not on_cpu else 5 if quick else 15)
        try:
            rows.append(_apart(asked, data) if on_cpu else measure(asked, data))
            console.print(rows[-1])
        except Exception as error:  # one case that fails leaves the others
            console.print(f"{asked}: {str(error).splitlines()[-1]}", style="red")
        if target is not None:
            target.write_text(json.dumps(rows, indent=1) + "\n")
    click.echo(markdown(rows))
    click.echo(f"\nload before: {load_before:.1f}")


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

"""Run emitted files in every runtime that is installed, compare with onnxruntime, and write the table of the page.

    python tools/portability.py [--only OpenVINO ...] [--images 360] [--reference-images 16] [--print]

Both digits networks, converted with three neurons in every form at T = 8. Without ``--print`` the table in
docs/portability.md is replaced; that takes all runtimes (`runtimes.py` says what each needs).
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from runtimes import ONNXRUNTIME, RUNTIMES, Case, Result

from ftbc_onnx import convert

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "portability.md"
BEGIN, END = "<!-- measured by tools/portability.py -->\n", "<!-- end of what was measured -->\n"

NETWORKS = ("digits_relu", "digits_qcfs4")
FORMS = ("unrolled", "fused", "folded", "loop", "step")
NEURONS = {
    "integrate-and-fire": {"neuron": "if"},
    "signed group, 8 levels": {"neuron": "signed-group", "levels": 8},
    "signed group, 8 levels, differential": {"neuron": "signed-group", "levels": 8, "coding": "differential"},
}
STEPS = 8

APART = 1e-4
"""Outputs that differ by more are not the same numbers rounded differently: a spike went another way."""


@dataclass(frozen=True)
class Agreement:
    """How outputs compare with onnxruntime's.

    Attributes:
        same: share of images with the same argmax.
        largest: largest difference of an output.
        apart: share of images with a difference above `APART`.
    """

    same: float
    largest: float
    apart: float

    def __str__(self) -> str:
        return f"{100 * self.same:.4g} %; {self.largest:.1e}; {100 * self.apart:.3g} %".replace("0.0e+00", "0")


def compare(found: np.ndarray, expected: np.ndarray) -> Agreement:
    """Compare outputs [n, classes].

    Raises:
        ValueError: they have different shapes.
    """
    if found.shape != expected.shape:
        raise ValueError(f"the output is {list(found.shape)}, onnxruntime's is {list(expected.shape)}")
    gaps = np.abs(found - expected).max(axis=1)
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).mean()
    return Agreement(float(same), float(gaps.max()), float((gaps > APART).mean()))


def make_cases(folder: Path) -> dict[tuple[str, str, str], Case]:
    """(network, neuron, form) -> the file."""
    cases = {}
    for network in NETWORKS:
        for neuron, options in NEURONS.items():
            for form in FORMS:
                model, data = ROOT / f"models/{network}.onnx", ROOT / "models/digits_calibration.npz"
                result = convert(model, data, steps=STEPS, form=form, verify=False, **options)
                name = f"{network}-{neuron}-{form}".replace(" ", "_").replace(",", "")
                cases[network, neuron, form] = Case(name, result.save(folder / f"{name}.onnx"), STEPS)
    return cases


def cell(results: Iterable[Result], expected: Iterable[Result]) -> str:
    """The worst over the networks, or that some file does not run."""
    found = []
    for mine, theirs in zip(results, expected, strict=True):
        if isinstance(mine, str):
            return "does not run"
        assert isinstance(theirs, np.ndarray), theirs
        found.append(compare(mine, theirs[: len(mine)]))
    return str(Agreement(min(a.same for a in found), max(a.largest for a in found), max(a.apart for a in found)))


def reason(text: str) -> str:
    """The line of a runtime's answer that says what it lacks, or the first; its end, if it is long."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line.lower() for word in ("unimplemented", "not supported"))]
    words = (telling or lines)[-1 if telling else 0]
    return words if len(words) <= 120 else f"... {words[-120:].partition(' ')[2]}"


def table(
    cases: Mapping[tuple[str, str, str], Case],
    expected: Mapping[str, Result],
    measured: Sequence[tuple[str, str, int, Mapping[str, Result]]],
) -> str:
    """The Markdown of (runtime, version, images, results)."""
    rows = [f"| Runtime | Images | Form | {' | '.join(NEURONS)} |", "| --- " * (3 + len(NEURONS)) + "|"]
    reasons = []
    for runtime, version, images, results in measured:
        for form in FORMS:
            cells = []
            for neuron in NEURONS:
                names = [cases[network, neuron, form].name for network in NETWORKS]
                cells.append(cell([results[name] for name in names], [expected[name] for name in names]))
            said = {reason(str(r)) for c in cases if c[2] == form and isinstance(r := results[cases[c].name], str)}
            reasons += [f"- {runtime}, {form}: `{text}`" for text in sorted(said)[:1]]
            rows.append(f"| {runtime} {version} | {len(NETWORKS)} x {images} | {form} | {' | '.join(cells)} |")
    why = ["", "What was said by those that do not run a file:", "", *reasons] if reasons else []
    return "\n".join([*rows, *why]) + "\n"


@click.command()
@click.option("--only", multiple=True, help="Runtimes whose name starts so [default: all].")
@click.option("--images", default=360, show_default=True, help="Test images, at most.")
@click.option("--reference-images", default=16, show_default=True, help="For the reference evaluator, which is slow.")
@click.option("--print", "printed", is_flag=True, help="Print the table, and leave the page as it is.")
def main(only: tuple[str, ...], images: int, reference_images: int, printed: bool) -> None:
    """Measure, and write the table."""
    console = Console(stderr=True)
    chosen = [runtime for runtime in RUNTIMES if not only or runtime.name.startswith(only)]
    lacking = {runtime.name: missing for runtime in chosen if (missing := runtime.missing())}
    for name, missing in lacking.items():
        console.print(f"{name}: not installed ({missing})", highlight=False)
    if not printed and (only or lacking):  # said before an hour of measuring
        raise SystemExit("the page has all runtimes: install them and leave out --only, or add --print")
    with np.load(ROOT / "models/digits_test.npz") as data:
        pixels = data["image"][:images]
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        cases = make_cases(Path(folder))
        expected = ONNXRUNTIME.scores(list(cases.values()), pixels)
        for runtime in (runtime for runtime in chosen if runtime.name not in lacking):
            few = pixels[:reference_images] if runtime is RUNTIMES[0] else pixels
            results = runtime.scores(list(cases.values()), few)
            measured.append((runtime.name, runtime.version(), len(few), results))
            console.print(f"{runtime.name} {runtime.version()}: done", highlight=False)
        text = table(cases, expected, measured)
    head = (
        f"Compared with onnxruntime {ONNXRUNTIME.version()} from PyPI, on {platform.system()} {platform.machine()}:\n\n"
    )
    if printed:
        print(head + text)
        return
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{head}{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()

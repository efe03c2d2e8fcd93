"""House rules: who may import whom, which library enters by which door, what is public, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ftbc_onnx

ROOT = Path(ftbc_onnx.__file__).parent

ROOMS = {
    "words": ("errors", "sink", "whole", "shell"),
    "physics": (
        "neurons",
        "config",
        "plan",
        "results",
        "preprocessing",
        "processor_config",
        "image_list",
        "images",
        "shards",
        "sample_order",
        "data_script",
        "data",
        "likeness",
        "batching",
        "per_sample",
        "window",
        "shrinkage",
        "compression",
        "energy",
    ),
    "graph": ("graph",),
    "machine": ("runtime",),
    "method": (
        "thresholds",
        "distribution",
        "gains",
        "least_squares",
        "network_size",
        "refit",
        "rules",
        "calibrate",
        "counting",
        "labels",
        "early_exit",
        "evaluate",
        "spiking_file",
        "diagnosis",
        "remedies",
        "simulate",
        "verify",
        "selection",
        "step_runner",
    ),
    "shop": (
        "report",
        "summary",
        "page",
        "report_diagnosis",
        "trials",
        "inspection",
        "job",
        "planning",
        "record",
        "pipeline",
        "sweep",
        "nir",
        "cli",
        "__init__",
        "__main__",
    ),
}
"""From top to bottom: a module imports from its own room or from one above it. First part of the name -> room."""

DOORS = {
    "onnx": ("graph",),
    "onnx_graphsurgeon": ("graph",),
    "google": ("graph",),
    "onnxruntime": ("runtime",),
    "click": ("cli",),
    "rich": ("cli", "report", "report_diagnosis"),
    "PIL": ("images",),
    "matplotlib": ("page",),
    "jinja2": ("page",),
    "markupsafe": ("page",),
    "ray": ("sweep.on_ray",),
    "nir": ("nir.translate", "nir.export", "nir.consumer"),
    "nirtorch": ("nir.consumer",),
    "spikingjelly": ("nir.consumer",),
    "torch": ("nir.consumer",),  # decision 28: NIR runtimes need it; nothing is imported before a file is run
    "torchvision": (),
    "sklearn": (),
    "onnxscript": (),
    "scipy": (),
    "openvino": (),
    "cv2": (),
    "tract": (),
}
"""A library, and the only modules or packages that may import it."""

LONGEST = 400
"""Lines of a file, at most."""


def modules() -> dict[str, Path]:
    """Every module of the package, by its name without ``ftbc_onnx.``; a package by its own name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            if node.module == "ftbc_onnx":
                yield from (f"ftbc_onnx.{alias.name}" for alias in node.names)
            else:
                yield node.module


def room(name: str) -> int:
    """Number of a module's room, from the top."""
    first = name.partition(".")[0]
    for number, names in enumerate(ROOMS.values()):
        if first in names:
            return number
    raise AssertionError(f"module {name} stands in no room: add it to ROOMS")


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a module is one of the places or inside one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_every_module_stands_in_a_room() -> None:
    assert {room(name) for name in MODULES} == set(range(len(ROOMS)))
    for names in ROOMS.values():
        for name in names:
            assert any(within(module, (name,)) for module in MODULES), f"{name} is gone: take it out of ROOMS"


def test_no_module_imports_from_below() -> None:
    wrong = [
        f"{name} imports {imported}, which stands below it"
        for name, path in MODULES.items()
        for imported in imports(path)
        if imported.startswith("ftbc_onnx.") and room(imported.removeprefix("ftbc_onnx.")) > room(name)
    ]
    assert not wrong


def test_libraries_enter_by_their_doors() -> None:
    wrong = [
        f"{name} imports {imported}, whose door is {' or '.join(doors) or 'nowhere in the package'}"
        for name, path in MODULES.items()
        for imported in imports(path)
        for library, doors in DOORS.items()
        if within(imported, (library,)) and not within(name, doors)
    ]
    assert not wrong


def test_neurons_know_nothing_of_graphs() -> None:
    """They write into a `Sink`."""
    for name, path in MODULES.items():
        ours = [i.removeprefix("ftbc_onnx.") for i in imports(path) if i.startswith("ftbc_onnx.")]
        if within(name, ("neurons",)):
            assert all(within(imported, ("neurons", "sink", "errors")) for imported in ours), name


def test_no_file_is_too_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [n for n, path in MODULES.items() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))]
    assert silent == []


def test_public_names_are_what_can_be_imported() -> None:
    """`__all__` is sorted, complete and true: no name without a home, none that leaked in."""
    names = set(ftbc_onnx.__all__)
    assert ftbc_onnx.__all__ == sorted(names)
    packages = {name.split(".")[0] for name in MODULES}
    seen = {name for name in vars(ftbc_onnx) if not name.startswith("_") and name not in packages}
    assert seen == names
    for name in names:
        assert getattr(ftbc_onnx, name).__module__.startswith("ftbc_onnx.")
        assert getattr(ftbc_onnx, name).__doc__


def test_importing_the_package_loads_nothing_that_it_may_not_need() -> None:
    unwanted = {"torch", "sklearn", "scipy", "matplotlib", "jinja2", "nir", "nirtorch", "h5py", "ray"}
    code = f"import sys, ftbc_onnx, ftbc_onnx.cli; print(sorted({unwanted} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"

"""The fenced blocks of a page of documentation, and a folder in which they run as a reader would run them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

_OPTIONAL = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
EXTRAS = set(re.findall(r"^(\w+) = \[", _OPTIONAL.partition("\n[")[0], re.MULTILINE))

INSTALLER = f"""#!{sys.executable}
import re, sys
assert sys.argv[1] == "install", sys.argv
for wanted in sys.argv[2:]:
    extras = re.fullmatch(r"(?:\\.|ftbc-onnx)\\[([\\w,]+)\\]", wanted)
    unknown = set(extras[1].split(",")) - {EXTRAS} if extras else set()
    assert not unknown, f"pyproject.toml has no extra {{unknown}}"
"""
"""In place of pip: installs nothing, but knows which extras there are."""

PYTHON = f"""#!/bin/bash
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$(dirname "$0")"/* "$3/bin" ;;
    tools/check.py) test -f {ROOT}/tools/check.py ;;
    *) exec {sys.executable} "$@" ;;
esac
"""
"""The interpreter of the tests. An environment made with it has these stand-ins; what runs the tests is not run."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the number of its first line on the page."""

    language: str
    text: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order.

    Raises:
        ValueError: a block is not closed.
    """
    language, lines, start = None, [], 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.fullmatch(r"\s*```(\S*)\s*", line)
        if not fence:
            lines.append(line)
        elif language is None:
            language, lines, start = fence[1], [], number + 1
        else:
            yield Block(language, "\n".join(lines) + "\n", start)
            language = None
    if language is not None:
        raise ValueError(f"{page}: the block that begins in line {start} is not closed")


def prepare(folder: Path) -> None:
    """The networks and data of models/, and a PATH with ``ftbc-onnx``, ``python`` and ``pip``."""
    shutil.copytree(
        ROOT / "models", folder / "models", ignore=shutil.ignore_patterns("cifar*", "__pycache__", "*.snn_*")
    )
    bin_ = folder / "bin"
    bin_.mkdir()
    command = f'#!/bin/bash\nexec {sys.executable} -m ftbc_onnx "$@"\n'
    scripts = {"ftbc-onnx": command, "pip": INSTALLER, "python": PYTHON, "python3": PYTHON}
    for name, text in scripts.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)


def run(block: Block, folder: Path, environment: dict[str, str]) -> str:
    """Run a block of ``sh`` or ``python``; returns what it printed, errors among it.

    A line of ``sh`` that ends in ``# exit code N`` has to end so; everything else must succeed.
    """
    if block.language == "sh":
        expected = re.search(r"# exit code (\d+)\n$", block.text)
        command = ["bash", "-euo", "pipefail", "-c", block.text]
    else:
        expected, script = None, folder / "block.py"
        script.write_text(block.text)
        command = [sys.executable, str(script)]
    path = {"PATH": f"{folder / 'bin'}:{environment['PATH']}"}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, **path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    code = int(expected[1]) if expected else 0
    assert done.returncode == code, f"line {block.line}: exit code {done.returncode}\n{block.text}\n{done.stdout}"
    return done.stdout


def shape(text: str) -> list[str]:
    """The lines of a text without their numbers and spacing."""
    return [re.sub(r"\d[\d.]*(e[+-]?\d+)?", "#", " ".join(line.split())) for line in text.splitlines() if line.strip()]

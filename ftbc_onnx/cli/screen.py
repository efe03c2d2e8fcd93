"""What a command shows: log lines and progress bars on stderr, a report as JSON on stdout."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Any

import click
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from ftbc_onnx.runtime import conflicting_packages

log = logging.getLogger("ftbc_onnx")

_WIDE = 160  # columns


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """Log lines by how much was asked for; a warning about packages that break each other."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    log.handlers[:] = [handler]
    log.setLevel(level)
    warning = conflicting_packages()
    if warning:
        log.warning(warning)


def report_console() -> Console:
    """What a report is printed on: as wide as the terminal, and wide enough for every table where there is none."""
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(emoji=False, width=_WIDE if piped else None)


def print_json(report: Mapping[str, Any]) -> None:
    """A report on stdout as strict JSON, in which a number that is not finite is null."""
    click.echo(json.dumps(_strict(report), indent=1, allow_nan=False))


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _strict(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value


class TimeLeft(ProgressColumn):
    """Time left of a stage, by the mean time of a batch so far (rich's own column says nothing before the third)."""

    def render(self, task: Task) -> Text:
        """Minutes and seconds; nothing before the first batch and when all is done."""
        ends = task.fields.get("ends")
        if ends is None or task.finished:
            return Text("")
        left = round(max(ends - task.get_time(), 0.0))
        return Text(f"{left // 60}:{left % 60:02d} left", style="progress.remaining")


@contextmanager
def progress_bars(off: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, if it is a terminal; a function to call with (stage, done, total)."""
    console = Console(stderr=True)
    if off or not console.is_terminal:  # a Progress that is disabled prints an empty line in rich before 14
        yield lambda *_: None
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        started: dict[str, float] = {}
        known: dict[str, bool] = {}  # whether the time left is shown

        def advance(stage: str, done: int, total: int) -> None:
            now = bars.get_time()
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            if done == 0 or stage not in started:
                started[stage] = now
            ends = now + (now - started[stage]) * (total - done) / done if done else None
            first = done > 0 and not known.get(stage, False)
            known[stage] = done > 0
            bars.update(tasks[stage], completed=done, total=total, ends=ends, refresh=first)

        yield advance

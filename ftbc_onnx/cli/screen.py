"""What appears on stderr while a command runs: log lines and progress bars."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ftbc_onnx.runtime import conflicting_packages

log = logging.getLogger("ftbc_onnx")


def set_up_logging(verbose: bool, quiet: bool) -> None:
    """Log lines by how much was asked for; a warning about packages that break each other."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    log.handlers[:] = [handler]
    log.setLevel(level)
    warning = conflicting_packages()
    if warning:
        log.warning(warning)


@contextmanager
def progress_bars(off: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, if it is a terminal; a function to call with (stage, done, total)."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=off or not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def advance(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield advance

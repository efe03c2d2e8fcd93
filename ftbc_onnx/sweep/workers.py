"""Where the work of a sweep is done: here, in processes, or (`ftbc_onnx.sweep.on_ray`) in a Ray cluster.

All of them take a function and arguments that can be pickled, and give a `concurrent.futures.Future`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Protocol

_MOST = 61
"""Processes that a pool can wait for on Windows."""

_PATIENCE = 3.0
"""Seconds for a pool to notice that its processes are gone; newer Pythons close that end themselves, and only once."""


class Workers(Protocol):
    """Those who do the work."""

    @property
    def slots(self) -> int:
        """How many tasks they do at a time."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Have a function called."""

    def stop(self) -> None:
        """Let go of everything at once, what is being done too."""


class Serial:
    """This process, one task after another."""

    slots = 1

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Call it now."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:  # it is raised where the result is asked for
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Nothing is running."""


class Processes:
    """Processes of this machine, each started afresh (spawn)."""

    def __init__(self, count: int) -> None:
        self.slots = min(count, _MOST) if sys.platform == "win32" else count
        self._pool = ProcessPoolExecutor(self.slots, get_context("spawn"), initializer=_die_when_interrupted)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Have it called in some process."""
        with _unheard():  # a process that is started here would hear Ctrl-C before it can say that it does not want to
            return self._pool.submit(function, *arguments)

    def stop(self) -> None:
        """End the processes, and wait until the pool has noticed.

        One that is ended while it hands over a result leaves half of it in the pipe, and the pool would wait for the
        other half for ever: it holds the pipe's other end open itself. So that is closed. Where a program ends while
        the pool's thread clears up, Python writes to a pipe that this thread may just have closed, and prints an
        exception after everything else: so the thread is waited for. In Python 3.10 it waits in turn for an argument to
        be handed over, if that had begun, and nobody reads it: there the end from which the processes read is closed.
        """
        running = list((self._pool._processes or {}).values())  # all of this is gone once the pool is shut down
        calls, results = self._pool._call_queue, self._pool._result_queue  # type: ignore[attr-defined]
        thread = self._pool._executor_manager_thread
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.kill()
        if results is not None:
            results._writer.close()  # type: ignore[attr-defined]
        if thread is not None:
            thread.join(_PATIENCE)  # type: ignore[attr-defined]
            if thread.is_alive():  # type: ignore[attr-defined]
                calls._reader.close()
            thread.join()  # type: ignore[attr-defined]


@contextmanager
def _unheard() -> Iterator[None]:
    """Processes that are started meanwhile do not hear Ctrl-C until they want to; for this one it is not lost."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _die_when_interrupted() -> None:
    """Ctrl-C reaches every process of a terminal: these have nothing to say about it."""
    if hasattr(signal, "pthread_sigmask"):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what has waited is for the one that started this process
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_DFL)

"""Workers of a sweep: the same numbers whoever does the work, and workers that die."""

# ruff: noqa: F811 - arguments have the names of fixtures, which are imported

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from sweep_cases import CONFIG, SMALL, alone, calib, judged, lasting, material_of, net  # noqa: F401 - fixtures

from ftbc_onnx.errors import DataError, DeviceError
from ftbc_onnx.sweep import Processes, SweepResult, on_ray, run_sweep
from ftbc_onnx.sweep import run as run_module
from ftbc_onnx.sweep.tasks import convert_point
from ftbc_onnx.sweep.workers import _unheard


@pytest.mark.parametrize("count", [1, 2])
def test_the_same_numbers_in_processes(net: Path, calib: Path, judged: Path, alone: SweepResult, count: int) -> None:
    workers = Processes(count)
    try:
        result = run_sweep(net, str(calib), SMALL, eval_data=str(judged), workers=workers)
    finally:
        workers.stop()
    assert len(result.records) == 6
    assert result.records[0]["evaluation"]["samples"] == 50
    assert lasting(result) == lasting(alone)
    assert result.on_front == alone.on_front


def test_the_same_numbers_in_a_ray_cluster(net: Path, calib: Path, judged: Path, alone: SweepResult) -> None:
    pytest.importorskip("ray")
    workers = on_ray.RayWorkers(cpus=2)
    try:
        assert workers.slots == 2
        result = run_sweep(net, str(calib), SMALL, eval_data=str(judged), workers=workers)
        with pytest.raises(DataError, match="are not what they were"):
            workers.submit(
                convert_point, material_of(net, str(calib)), CONFIG, dict.fromkeys(("model", "seen", "held"))
            ).result()
    finally:
        workers.stop()
    assert lasting(result) == lasting(alone)


def test_an_address_where_nobody_is() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        for address in (f"127.0.0.1:{taken.getsockname()[1]}", f"ray://127.0.0.1:{taken.getsockname()[1]}"):
            with pytest.raises(DeviceError, match=f"no Ray cluster answers at {address} "):
                on_ray._knock(address)
    with socket.create_server(("127.0.0.1", 0)) as there:
        on_ray._knock(f"127.0.0.1:{there.getsockname()[1]}")
    on_ray._knock("auto")


class Dying(Processes):
    """Its process ends by itself."""

    def submit(self, *_: Any) -> Future[Any]:
        return super().submit(os._exit, 3)


def _interrupted() -> None:
    with _unheard():
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="signals are not held back there")
def test_ctrl_c_while_a_worker_is_started_is_for_the_sweep_alone() -> None:
    with pytest.raises(KeyboardInterrupt):
        _interrupted()
    hears = "import signal; print(signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with _unheard():
        inside = subprocess.run([sys.executable, "-c", hears], capture_output=True, text=True, check=True)
    outside = subprocess.run([sys.executable, "-c", hears], capture_output=True, text=True, check=True)
    assert (inside.stdout, outside.stdout) == ("False\n", "True\n")


def test_a_worker_that_dies_is_told(net: Path, calib: Path) -> None:
    workers = Dying(1)
    try:
        with pytest.raises(
            DeviceError, match=r"a worker process ended by itself .* the points that are not done, 6 of 6"
        ):
            run_sweep(net, str(calib), SMALL, workers=workers)
    finally:
        workers.stop()


def test_a_bug_in_a_worker_is_no_failed_point(net: Path, calib: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(run_module, "convert_point", broken)
    with pytest.raises(ZeroDivisionError):
        run_sweep(net, str(calib), SMALL)


HALF_A_RESULT = """
import os, signal, sys, threading, time
from ftbc_onnx.sweep.workers import Processes

def large():
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGSTOP)).start()
    return bytes(1 << 28)  # more than a pipe holds

def main():
    workers = Processes(1)
    future = workers.submit(large)
    while not future.running():
        time.sleep(0.01)
    time.sleep(1.5)
    workers.stop()
    print("stopped")

if __name__ == "__main__":
    main()
"""


HALF_AN_ARGUMENT = """
import time
from ftbc_onnx.sweep.workers import Processes

def main():
    workers = Processes(2)
    for _ in range(3):
        workers.submit(len, bytes(50_000_000))
    time.sleep(0.05)
    workers.stop()
    print("stopped")

if __name__ == "__main__":
    main()
"""


def test_nothing_of_a_pool_is_left_when_it_is_stopped() -> None:
    """A thread of it that is still at work when the program ends may break it, after its last word."""
    before = set(threading.enumerate())
    workers = Processes(2)
    asleep = [workers.submit(time.sleep, 600) for _ in range(3)]
    while not asleep[0].running():
        time.sleep(0.01)
    processes = list(workers._pool._processes.values())
    workers.stop()
    assert set(threading.enumerate()) <= before
    assert len(processes) == 2
    assert not any(process.is_alive() for process in processes)
    assert all(future.done() for future in asleep)
    workers.stop()  # a second time does nothing


def test_a_pool_that_is_stopped_while_it_hands_over_an_argument(tmp_path: Path) -> None:
    """Half of it is in the pipe, and nobody reads the rest: Python 3.10 would wait for ever."""
    script = tmp_path / "argument.py"
    script.write_text(HALF_AN_ARGUMENT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("stopped\n", "")


def test_as_many_processes_as_windows_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert [Processes(count).slots for count in (2, 61, 62, 128)] == [2, 61, 61, 61]


@pytest.mark.skipif(sys.platform == "win32", reason="stops a process by a POSIX signal")
def test_a_worker_that_dies_while_it_hands_over_a_result(tmp_path: Path) -> None:
    """Half a result is in the pipe: the program ends nevertheless."""
    script = tmp_path / "half.py"
    script.write_text(HALF_A_RESULT)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "stopped\n"

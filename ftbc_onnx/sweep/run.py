"""A sweep from beginning to end.

The digests of network and data are taken once, here; points that the results file has are not done again. The others go
to the workers, no more at a time than they can do; of a point with evaluation data, the shards follow its conversion.
A point is written down when all of it is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftbc_onnx.batching import static_batch
from ftbc_onnx.config import ConvertConfig, check_positive, check_whole
from ftbc_onnx.errors import ConfigError, DeviceError, FtbcError, InterruptError
from ftbc_onnx.graph.files import input_specs, load
from ftbc_onnx.job import Progress
from ftbc_onnx.preprocessing import Preprocessing
from ftbc_onnx.runtime import choose_device, package_version, runtime_version
from ftbc_onnx.sweep import pareto
from ftbc_onnx.sweep.grid import Grid, Point
from ftbc_onnx.sweep.results import Record, ResultsFile, key_of
from ftbc_onnx.sweep.tasks import Converted, Material, Score, convert_point, evaluate_shard, merged, shards
from ftbc_onnx.sweep.workers import Serial, Workers


@dataclass(frozen=True)
class SweepResult:
    """What a sweep found.

    Attributes:
        records: one per point that could be converted, best first (`ftbc_onnx.sweep.pareto`).
        on_front: for each, whether no other beats it on the samples held back.
        failed: points that could not be converted, and why.
        resumed: how many records were in the results file already.
        path: the results file, or None.
    """

    records: tuple[Mapping[str, Any], ...]
    on_front: tuple[bool, ...]
    failed: tuple[tuple[Point, FtbcError], ...]
    resumed: int
    path: Path | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "results": None if self.path is None else str(self.path),
            "resumed": self.resumed,
            "points": [{**r, "pareto": good} for r, good in zip(self.records, self.on_front, strict=True)],
            "failed": [{"point": asdict(point), "error": str(error)} for point, error in self.failed],
        }


def run_sweep(
    model: str | Path | bytes,
    data: Any,
    grid: Grid,
    *,
    eval_data: Any = None,
    results: str | Path | None = None,
    workers: Workers | None = None,
    preprocessing: Preprocessing | None = None,
    calib_samples: int = 512,
    label_offset: int = 0,
    threads: int = 1,
    progress: Progress = lambda *_: None,
    **options: Any,
) -> SweepResult:
    """Convert a network once for every point of a grid, and judge each on samples that no conversion sees.

    Args:
        model: path or bytes of the ANN.
        data: calibration data that can be opened more than once: a path, arrays, (array, labels), a script. A quarter
            is held back and judges.
        grid: what to try.
        eval_data: evaluation data of the same kinds; their accuracy is reported and decides nothing.
        results: file that results are added to and taken from; None: nothing is remembered.
        workers: who does it; None: this process. They are not stopped, unless the sweep is interrupted.
        preprocessing: of the data.
        calib_samples: calibration samples used, at most, those held back included.
        label_offset: added to every label.
        threads: of onnxruntime, per task. Numbers may depend on it, so it does not follow the number of workers.
        progress: called with (``points``, points done, points in all).
        **options: other fields of `ConvertConfig`, for all points.

    Raises:
        FtbcError: of the kind that fits, before any long work (what a single point raises is in the result).
        InterruptError: Ctrl-C.
        DeviceError: a worker ended by itself.
    """
    calib_samples = check_positive("calib_samples", calib_samples)
    label_offset = check_whole("label_offset", label_offset)
    points = grid.points()
    if data is None:
        raise ConfigError("a sweep judges on calibration samples: give --calib-data")
    device = choose_device(str(options.pop("device", "auto")))
    loop = {} if options.get("schedule") == "synchronous" else {"form": "loop"}  # opens at once; nothing is written
    unread = {"verify": False, "compare": False}
    shared = {**unread, **loop, **options, "counting": True, "device": device.name, "threads": threads}
    configs = [point.config(shared) for point in points]
    material = Material(
        model if isinstance(model, bytes) else str(model), data, eval_data, preprocessing, calib_samples, label_offset
    )
    source = load(material.model)
    seen, held = material.calibration_parts()
    digests = {"model": source.digest, "seen": seen.digest(), "held": held.digest(), "evaluation": None}
    cuts: list[tuple[int, int]] = []
    if eval_data is not None:
        evaluated = material.evaluation_source()
        digests["evaluation"] = evaluated.digest()
        cuts = shards(len(evaluated), static_batch(input_specs(source.model)) or 1)
    configs = [ConvertConfig.from_options({**c.as_dict(), "calib_samples": len(seen)}) for c in configs]
    file = ResultsFile(None if results is None else Path(results))
    base = {**digests, "versions": [package_version(), runtime_version()], "label_offset": label_offset}
    keys = [key_of({**base, "options": config.as_dict()}) for config in configs]
    done = _remembered(file, keys)
    resumed = len(done)
    todo = [_Work(p, c, key) for p, c, key in zip(points, configs, keys, strict=True) if key not in done]
    failed: list[tuple[Point, FtbcError]] = []
    progress("points", resumed, len(points))

    def finish(work: _Work, record: Record | None) -> None:
        if record is None:
            assert work.error is not None
            failed.append((work.point, work.error))
        else:
            where = {"source": Path(source.name).name, "digests": digests, "device": device.name}
            record = {"key": work.key, "point": asdict(work.point), **where, **record}
            file.add(record)
            done[work.key] = record
        progress("points", len(done) + len(failed), len(points))

    try:
        _Flow(material, digests, cuts, workers or Serial(), finish).run(todo)
    except KeyboardInterrupt:
        if workers is not None:
            workers.stop()
        there = "nothing remembers them" if file.path is None else f"{file.path} has them, and the same command goes on"
        raise InterruptError(f"interrupted: {len(done)} of {len(points)} points are done; {there}") from None
    except BrokenExecutor as error:
        raise DeviceError(
            "a worker process ended by itself (out of memory?): take fewer --workers; the same command goes on with "
            f"the points that are not done, {len(points) - len(done)} of {len(points)}"
        ) from error
    records = pareto.best_first(list(done.values()))
    return SweepResult(tuple(records), tuple(pareto.front(records)), tuple(failed), resumed, file.path)


def _remembered(file: ResultsFile, keys: Iterable[str]) -> dict[str, Record]:
    """What the file has of these points."""
    done = {key: file.records[key] for key in keys if key in file.records}
    for key, record in done.items():
        if not pareto.is_complete(record):
            raise ConfigError(f"--results '{file.path}', the record with key {key[:12]}... is damaged: remove its line")
    return done


@dataclass
class _Work:
    """A point on its way."""

    point: Point
    config: ConvertConfig
    key: str
    record: Record = field(default_factory=dict)
    scores: dict[int, Score] = field(default_factory=dict)
    error: FtbcError | None = None


_Task = tuple[Callable[..., Any], tuple[Any, ...], _Work, int]
"""Function, arguments, what it is for, number of the shard (-1: the conversion)."""


@dataclass
class _Flow:
    """Keeps the workers busy."""

    material: Material
    digests: Mapping[str, str | None]
    cuts: Sequence[tuple[int, int]]
    workers: Workers
    finish: Callable[[_Work, Record | None], None]

    def run(self, works: Sequence[_Work]) -> None:
        """Until every point is finished."""
        waiting: deque[_Task] = deque((convert_point, (self.material, w.config, self.digests), w, -1) for w in works)
        running: dict[Future[Any], _Task] = {}
        while waiting or running:
            while waiting and len(running) < self.workers.slots:
                task = waiting.popleft()
                if task[2].error is None:
                    running[self.workers.submit(task[0], *task[1])] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                waiting.extendleft(reversed(self._next(future, running.pop(future))))  # shards before other points

    def _next(self, future: Future[Any], task: _Task) -> list[_Task]:
        """Take a result; returns what has to be done next for the same point."""
        _, _, work, number = task
        try:
            found: Converted | Score = future.result()
        except FtbcError as error:
            if work.error is None:
                work.error = error
                self.finish(work, None)
            return []
        if isinstance(found, Score):
            work.scores[number] = found
            if len(work.scores) == len(self.cuts) and work.error is None:
                ordered = [work.scores[i] for i in range(len(self.cuts))]
                self.finish(work, {**work.record, "evaluation": merged(ordered)})
            return []
        work.record = found.record
        if not self.cuts:
            self.finish(work, {**work.record, "evaluation": None})
            return []
        return [
            (evaluate_shard, (self.material, found.model, work.config, start, stop), work, i)
            for i, (start, stop) in enumerate(self.cuts)
        ]

"""Calibration and evaluation data: files, folders, arrays, readers and scripts, read in bounded memory.

`open_data` checks keys, shapes, dtypes and labels when data are opened, values batch by batch.
What is wrong with the data is a DataError, what is wrong with an option a ConfigError.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ftbc_onnx import image_list, images
from ftbc_onnx.data_script import call, running, script_of
from ftbc_onnx.errors import ConfigError, DataError, FtbcError
from ftbc_onnx.preprocessing import Array, Layout, Preprocessing, known_preprocessing
from ftbc_onnx.sample_order import evenly, in_runs, mixed
from ftbc_onnx.shards import Arrays, Load, Shard, Shards, Spool

SUFFIXES = (".npz", ".npy")

ForArrays: TypeAlias = Callable[[bool], Preprocessing]
"""Makes the preprocessing of arrays, told whether they are of whole numbers."""


@dataclass(frozen=True)
class InputSpec:
    """What a model expects of one input: axis 0 is the batch, a str or None is a dynamic axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Batch:
    """`feeds` [n, ...] per input, as the model takes them, and `labels` [n] int64 if known."""

    feeds: Arrays
    labels: Array | None


class DataSource(Protocol):
    """Samples that can be read in batches as often as wanted, always in the same order."""

    @property
    def description(self) -> str:
        """Where the samples come from, in words and without folders."""

    @property
    def has_labels(self) -> bool:
        """Whether batches carry labels."""

    @property
    def preprocessing(self) -> Preprocessing:
        """What is done to each sample, defaults filled in."""

    @property
    def of_images(self) -> bool:
        """Whether samples are read from image files."""

    @property
    def class_folders(self) -> tuple[str, ...]:
        """The folders, one per class, whose order gives the labels; none if they come from elsewhere."""

    def __len__(self) -> int: ...

    def batches(self, size: int, limit: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        """At most `limit` samples, `size` at a time; the last batch may be smaller unless dropped."""

    def digest(self) -> str:
        """sha256 of the selected samples as stored, their order, labels and preprocessing."""

    def subset(self, indices: npt.ArrayLike) -> DataSource:
        """Only the samples `indices`, in that order; sorted ones load each file of a folder once."""


@dataclass(frozen=True, eq=False)
class _Source:
    """The samples `selection` of a store, as a model takes them."""

    store: Shards | images.ImageFolder
    inputs: tuple[InputSpec, ...]
    preprocessing: Preprocessing
    labels: Array | None  # one per selected sample
    selection: Array
    description: str
    class_folders: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.selection)

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    @property
    def of_images(self) -> bool:
        return isinstance(self.store, images.ImageFolder)

    def batches(self, size: int, limit: int | None = None, drop_last: bool = False) -> Iterator[Batch]:
        if size < 1 or (limit is not None and limit < 0):
            raise ConfigError(f"batch size {size}, limit {limit}: a positive size and a limit from 0 are expected")
        end = len(self) if limit is None else min(limit, len(self))
        end -= end % size if drop_last else 0
        return (self._batch(slice(start, min(start + size, end))) for start in range(0, end, size))

    def _batch(self, part: slice) -> Batch:
        """The samples in `part`; DataError names one whose values the input cannot take."""
        chosen = self.selection[part]
        stored = self.store.read(chosen)
        layout = "NHWC" if isinstance(self.store, images.ImageFolder) else self.preprocessing.layout
        feeds = {}
        for spec in self.inputs:
            x = images.arrange(stored[spec.name], spec.shape, layout)
            if spec.name in _normalised(self.inputs, self.preprocessing):
                x = self.preprocessing.normalise(x, images.channel_axis(spec.shape))
            feeds[spec.name], bad = images.cast(x, spec.dtype)
            if bad.any():
                what = "NaN or infinity as" if spec.dtype.kind == "f" else "values outside the range of"
                where = self.store.where(int(chosen[bad.argmax()]))
                raise DataError(f"{where}: input {spec.name!r} has {what} {spec.dtype}: repair or remove the sample")
        return Batch(feeds, None if self.labels is None else self.labels[part].copy())

    def digest(self) -> str:
        content = {
            "samples": self.store.fingerprint(np.unique(self.selection)),
            "selection": _sha256(self.selection.astype("<i8").tobytes()),
            "labels": None if self.labels is None else _sha256(self.labels.astype("<i8").tobytes()),
            "preprocessing": self.preprocessing.as_dict(),
        }
        return _sha256(json.dumps(content, sort_keys=True).encode())

    def subset(self, indices: npt.ArrayLike) -> _Source:
        chosen = np.asarray(indices)
        numbers = chosen.ndim == 1 and (chosen.dtype.kind in "iu" or not chosen.size)
        if not numbers or ((chosen < 0) | (chosen >= len(self))).any():
            raise DataError(f"subset of {self.description}: expected a list of sample numbers in 0..{len(self) - 1}")
        labels = None if self.labels is None else self.labels[chosen.astype(np.int64)]
        return replace(self, selection=self.selection[chosen.astype(np.int64)], labels=labels)


def open_data(
    what: Any,
    inputs: Sequence[InputSpec],
    preprocessing: Preprocessing | None = None,
    *,
    labels: npt.ArrayLike | os.PathLike[str] | None = None,
    purpose: str = "calibration",
    limit: int | None = None,
    shared: bool | ForArrays = False,
) -> DataSource:
    """Opens data for a model with `inputs`; `purpose` begins the messages, `limit` keeps that many samples.

    `what` is a path to .npz, .npy, a folder of images or of .npz/.npy; an array; a mapping from input
    names to arrays; (array, mapping or path, labels); an iterable of these; an object with `get_next()`;
    or "script.py[:function]", where the function (`data`) returns one of these. Of the samples `limit`
    takes every so many-th, evenly over the whole; of an iterable or reader, whose length nobody knows, the
    first. Those are copied, what is over 256 MB to a temporary file. Calibration samples that lie class by
    class are put in another order, since parts of a conversion look at the first few only. `labels`, one per
    sample (an array, or a .npy or .npz file; for images also a .csv, whose files alone are used), replaces
    labels in the data. `shared`: the preprocessing is meant for image files beside them, so arrays leave out what
    only those have, and whole numbers get the scale of pixels (or what is given makes preprocessing for arrays of
    it, told whether they are of whole numbers).
    A source is taken as it is. Raises DataError and ConfigError.
    """
    if images.is_path_and_labels(what):
        what, labels = what
    if limit is not None and limit < 1:
        raise ConfigError(f"limit {limit} cannot be used: give a positive number of samples")
    options = known_preprocessing(preprocessing)
    most = limit if labels is None else None  # as many samples as there are labels
    beside = options.for_arrays if shared is True else shared or None
    opening = partial(_open, inputs=tuple(inputs), options=options, limit=most, beside=beside)
    where = f"{purpose} data"
    script = script_of(what)
    if script is None:
        source = what if isinstance(what, _Source) else opening(what, where)
    else:
        where = f"{where} {what}"
        try:
            with running(script[0]):
                given = call(*script, where)
                if images.is_path_and_labels(given):
                    given, labels = given[0], given[1] if labels is None else labels
                made = opening(given, where)
            source = replace(made, description=f"{script[0].name}:{script[1]}")
        except FtbcError:
            raise
        except (Exception, SystemExit) as error:
            raise DataError(f"{where}: the script failed with {type(error).__name__}: {error}") from error
    if labels is not None:
        source = _labelled(source, labels, where)
    if limit is not None and limit < len(source):
        source = source.subset(evenly(len(source), limit))
    if purpose != "calibration" or not in_runs(source.labels):
        return source
    source = source.subset(mixed(len(source)))
    store = source.store.held(source.selection) if isinstance(source.store, Shards) else source.store
    return replace(source, store=store)


def spread(source: DataSource, count: int | None) -> DataSource:
    """So many samples, evenly over the whole; all of them if there are no more, or for None."""
    there = len(source)
    return source if count is None or count >= there else source.subset(evenly(there, count))


def _labelled(source: _Source, labels: npt.ArrayLike | os.PathLike[str], where: str) -> _Source:
    """With these labels instead of its own, or with those in a file."""
    source = replace(source, class_folders=())
    if not isinstance(labels, (str, os.PathLike)):
        return replace(source, labels=images.as_labels(labels, len(source), where))
    path, store = Path(labels), source.store
    where = f"{where}: labels {path}"
    if path.suffix.lower() == ".csv":
        if not isinstance(store, images.ImageFolder):
            raise DataError(f"{where}: a table lists image files, and the data are none: give labels as .npy or .npz")
        files, listed = image_list.listed_images(store.root, path, where)
        store = replace(store, files=tuple(files))
        return replace(source, store=store, selection=np.arange(len(files)), labels=np.array(listed, np.int64))
    arrays = _load(path, where)
    keys = [key for key in arrays if key in images.LABEL_KEYS] or list(arrays)
    if len(keys) != 1:
        raise DataError(f"{where}: found the keys {', '.join(arrays)}: expected one array of labels")
    return replace(source, labels=images.as_labels(arrays[keys[0]], len(source), where))


def random_source(inputs: Sequence[InputSpec], samples: int, seed: int) -> DataSource:
    """`samples` of standard normal numbers, zeros for integers; DataError for a dynamic axis besides the batch."""
    if samples < 1 or seed < 0:
        raise ConfigError(f"random data: {samples} samples, seed {seed}: expected a positive number and a seed from 0")
    sides = {spec.name: tuple(side for side in spec.shape[1:] if isinstance(side, int)) for spec in inputs}
    for spec in inputs:
        if len(sides[spec.name]) != len(spec.shape) - 1:
            raise DataError(f"random data: input {spec.name!r} {images.show(spec.shape)} has a dynamic axis: give data")

    def sample(number: int) -> dict[str, Array]:
        draw = np.random.default_rng([seed, number]).standard_normal
        shapes = [(spec, (1, *sides[spec.name])) for spec in inputs]
        return {s.name: draw(n, np.float32) if s.dtype.kind == "f" else np.zeros(n, np.uint8) for s, n in shapes}

    first = _shard(sample(0), inputs, None, "random data")
    shards = [replace(first, load=partial(sample, number)) for number in range(samples)]
    return _join(shards, tuple(inputs), Preprocessing(), "random data", f"random (seed {seed})")


def _open(
    what: Any,
    where: str,
    inputs: tuple[InputSpec, ...],
    options: Preprocessing,
    limit: int | None,
    *,
    beside: ForArrays | None,
) -> _Source:
    """`open_data` for everything but scripts and separate labels; an iterable is read up to `limit`."""
    if isinstance(what, (str, os.PathLike)):
        return _open_path(Path(what), where, inputs, options, beside)
    if isinstance(what, Mapping) or hasattr(what, "__array__") or (isinstance(what, tuple) and images.is_pair(what)):
        shard = _shard(images.named_arrays(what, where), inputs, options.layout, where)
        return _join([shard], inputs, options, where, "arrays in memory", beside=beside)
    reader = callable(getattr(what, "get_next", None))
    if not reader and not isinstance(what, Iterable):
        raise DataError(f"{where}: a {type(what).__name__} cannot be read: expected a path, arrays, feeds or a reader")
    shards: list[Shard] = []
    count, spool = 0, Spool()
    for number, item in enumerate(_read(what) if reader else what):
        alone = isinstance(item, (tuple, list)) and len(item) == 1  # a DataLoader without labels
        arrays = images.named_arrays(item[0] if alone else item, f"{where}, item {number}")
        shards.append(_shard(arrays, inputs, options.layout, f"{where}, item {number}", spool.keep(arrays)))
        count += shards[-1].count
        if limit is not None and count >= limit:
            break
    if not shards:
        raise DataError(f"{where}: the {type(what).__name__} gave no samples: rewind it, or make a new one")
    source = _join(shards, inputs, options, where, type(what).__name__, beside=beside)
    return source if limit is None else source.subset(np.arange(min(limit, count)))


def _read(reader: Any) -> Iterator[Any]:
    """What `get_next` gives until it gives None."""
    while (item := reader.get_next()) is not None:
        yield item


def _open_path(
    path: Path, where: str, inputs: tuple[InputSpec, ...], options: Preprocessing, beside: ForArrays | None
) -> _Source:
    """A .npz or .npy file, or a folder of them or of images."""
    place = f"{where} {path}"
    listed = (path / image_list.LABELS_FILE).is_file()
    files = sorted(file for file in path.glob("[!.]*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if path.is_dir() and image_list.has_images(path):
        if files and not listed:
            raise DataError(f"{place}: the folder holds images and {files[0].name}: put them into separate folders")
        if len(inputs) != 1:
            raise DataError(f"{place}: images feed one input, the model has {len(inputs)}: give .npz files")
        spec = inputs[0]
        store, labels = images.open_images(path, spec.name, spec.dtype, spec.shape, options, where=place)
        _normalised(inputs, store.preprocessing)
        folders = () if labels is None or listed else tuple(image_list.class_folders(path))
        chosen, called = np.arange(len(store)), path.resolve().name
        return _Source(store, inputs, store.preprocessing, labels, chosen, called, folders)
    if not path.exists() or not files or files[0].suffix.lower() not in SUFFIXES:
        what = "nothing to read here" if path.exists() else "no such file or folder"
        raise DataError(f"{place}: {what}, expected .npz, .npy, a folder of them or of images, or script.py[:function]")
    shards = []
    for file in files:
        load = partial(_load, file, f"{where} {file}")
        again = load if len(files) > 1 or file.suffix.lower() == ".npy" else None
        shards.append(_shard(load(), inputs, options.layout, f"{where} {file}", again))
    return _join(shards, inputs, options, place, path.resolve().name, beside=beside)


def _load(path: Path, where: str) -> dict[str, Array]:
    """key -> array of a .npz (loaded), or the only array of a .npy (memory-mapped); DataError for anything else."""
    try:
        if path.suffix.lower() == ".npy":
            return {images.UNNAMED: np.load(path, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except Exception as error:  # a damaged file raises many kinds; NumPy takes what it does not know for a pickle
        why = str(error)
        if any(word in why for word in ("bject", "pickle")):  # NumPy's advice is to allow pickles
            why = "it is damaged, or holds pickled Python objects, never loaded"
        raise DataError(f"{where}: cannot be read ({why}): expected numbers saved by np.save or np.savez") from error


def _shard(
    arrays: Arrays, inputs: Sequence[InputSpec], layout: Layout | None, where: str, reload: Load | None = None
) -> Shard:
    """Finds the array of each input and checks it; with `reload`, arrays are let go of and read again when needed."""
    keys, label = images.match_keys(list(arrays), [spec.name for spec in inputs], where)
    for spec in inputs:
        images.check_form(arrays[keys[spec.name]], spec.dtype, spec.shape, layout, f"{where}: {keys[spec.name]!r}")
    counts = {key: len(arrays[key]) for key in keys.values()}
    if len(set(counts.values())) != 1:
        raise DataError(f"{where}: the numbers of samples differ ({counts}): expected as many for each input")
    labels = None if label is None else images.as_labels(arrays[label], max(counts.values()), f"{where}: {label!r}")
    forms = {name: (arrays[key].shape[1:], arrays[key].dtype) for name, key in keys.items()}
    return Shard(where, max(counts.values()), keys, forms, labels, reload or (lambda: arrays))


def _join(
    shards: Sequence[Shard],
    inputs: tuple[InputSpec, ...],
    options: Preprocessing,
    where: str,
    description: str,
    *,
    beside: ForArrays | None = None,
) -> _Source:
    """All samples of the shards; DataError when shards differ in more than length, ConfigError for image options."""
    if beside is not None:
        options = beside(all(dtype.kind in "iu" for _, dtype in shards[0].forms.values()))
    if options.for_images:
        raise ConfigError(
            f"{where}: resize, crop and color work on image files, not on arrays: leave them out "
            "(for --preprocessor, give its --scale, --mean and --std instead)"
        )
    _normalised(inputs, options)
    first = shards[0]
    for shard in shards:
        if shard.forms != first.forms or (shard.labels is None) != (first.labels is None):
            raise DataError(f"{shard.where}: shapes, dtypes or labels differ from {first.where}: expected the same")
    labels = [shard.labels for shard in shards if shard.labels is not None]
    known, count = np.concatenate(labels) if labels else None, sum(shard.count for shard in shards)
    return _Source(Shards(shards), inputs, options, known, np.arange(count), description)


def _normalised(inputs: Sequence[InputSpec], options: Preprocessing) -> list[str]:
    """The inputs that scale, mean and std apply to: the only one, or those with 4 axes; they must take floats."""
    if not options.arithmetic:
        return []
    names = [spec.name for spec in inputs if spec.dtype.kind == "f" and (len(inputs) == 1 or len(spec.shape) == 4)]
    if not names:
        raise ConfigError("scale, mean and std need an input of floats (with 4 axes, if several): leave them out")
    return names


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Which images of a folder are used, and with which labels."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ftbc_onnx.errors import DataError

log = logging.getLogger("ftbc_onnx")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif", ".tiff")
LABELS_FILE = "labels.csv"
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path")
LABEL_COLUMNS = ("label", "labels", "class", "target")
SEPARATORS = (",", ";", "\t")


def find_images(folder: Path) -> list[str]:
    """All image files under `folder` as sorted relative paths; links are followed, hidden ones left out."""
    return sorted(_images(folder))


def has_images(folder: Path) -> bool:
    """Whether there is one, or a table of them."""
    return (folder / LABELS_FILE).is_file() or any(True for _ in _images(folder))


def holds_images(what: Any) -> bool:
    """Whether `what` is a folder of image files, with or without labels beside it."""
    if isinstance(what, tuple) and len(what) == 2:
        what = what[0]
    folder = Path(what) if isinstance(what, (str, os.PathLike)) else None
    return folder is not None and folder.is_dir() and has_images(folder)


def _images(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".") and not _leads_up(Path(place) / name)]
        inside = Path(place).relative_to(folder)
        images = (name for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)
        yield from ((inside / name).as_posix() for name in images if (Path(place) / name).is_file())


def _leads_up(folder: Path) -> bool:
    """Whether a folder is a link to one that it stands in."""
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())


def list_images(folder: Path, where: str) -> tuple[list[str], list[int] | None]:
    """The files to use, sorted, and their labels.

    Labels come from labels.csv (then only the files listed there are used), else from the sub-folders,
    numbered by sorted name, when every image lies in one of at least two, else there are none. What may be a
    surprise is logged.
    """
    if (folder / LABELS_FILE).is_file():
        return listed_images(folder, folder / LABELS_FILE, where)
    files = find_images(folder)
    classes = class_folders(folder)
    outside = [file for file in files if "/" not in file]
    if len(classes) < 2 or outside:
        if len(classes) > 1:
            log.warning(
                "%s: '%s' is in none of the %d folders, so there are no labels", where, outside[0], len(classes)
            )
        return files, None
    number = {name: index for index, name in enumerate(classes)}
    labels = [number[file.split("/", 1)[0]] for file in files]
    empty = sorted(set(classes) - {classes[label] for label in set(labels)})
    if empty:
        log.warning(
            "%s: the folder '%s' has no images, and counts as class %d of %d all the same: move it away if it is none",
            *(where, empty[0], number[empty[0]], len(classes)),
        )
    in_order = sorted(classes, key=int) if all(name.isdecimal() for name in classes) else classes
    if classes != in_order:
        late = next(name for name, usual in zip(classes, in_order, strict=True) if name != usual)
        log.warning(
            "%s: classes are numbered by the folders' names as text, so '%s' is class %d (--labels gives others)",
            *(where, late, number[late]),
        )
    return files, labels


def class_folders(folder: Path) -> list[str]:
    """Names of its sub-folders, sorted: the first has the images of class 0."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def listed_images(folder: Path, table: Path, where: str) -> tuple[list[str], list[int]]:
    """The files of `folder` that a table of labels lists, sorted, and their labels."""
    rows = read_label_table(table)
    for file in rows:
        if not (folder / file).is_file():
            raise DataError(f"{where}: {file!r} is listed in {table.name} but not in the folder")
    return sorted(rows), [rows[file] for file in sorted(rows)]


def read_label_table(path: Path) -> dict[str, int]:
    """file -> label, from a CSV file with a header; DataError names the table and the line.

    Columns are called as in `FILE_COLUMNS` and `LABEL_COLUMNS`, between commas, semicolons or tabs. Labels are numbers
    from 0; if none of them is a number they are names of classes, numbered by sorted name, as sub-folders are.
    """
    labels: dict[str, str] = {}
    lines: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header = stream.readline()
            stream.seek(0)
            separator = max(SEPARATORS, key=header.count)
            rows = csv.DictReader(stream, delimiter=separator, skipinitialspace=True)
            file_column, label_column = (
                _column(rows.fieldnames, names, path) for names in (FILE_COLUMNS, LABEL_COLUMNS)
            )
            for row in rows:
                file = PurePosixPath(str(row[file_column]).strip()).as_posix()
                if file in labels:
                    raise DataError(f"{path}, line {rows.line_num}: {file!r} is listed twice")
                labels[file], lines[file] = str(row[label_column] or "").strip(), rows.line_num
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}; expected CSV text with the columns file,label") from error
    if not labels:
        raise DataError(f"{path} lists no files: expected lines of file,label")
    names = {name: number for number, name in enumerate(sorted(set(labels.values())))}
    if all(name and not _is_numeric(name) for name in names):
        return {file: names[label] for file, label in labels.items()}
    for file, label in labels.items():
        if not _is_whole(label):
            raise DataError(
                f"{path}, line {lines[file]}: {file!r} has label {label!r}, expected a whole number from 0, "
                "or names of classes in every line"
            )
    return {file: int(float(label)) for file, label in labels.items()}


def _column(header: Sequence[str] | None, names: Sequence[str], path: Path) -> str:
    """The only column that is called like one of `names`, whatever the case."""
    found = [column for column in header or () if column and column.strip().lower() in names]
    if len(found) != 1:
        raise DataError(f"{path}: the header is {header}, expected the columns file,label (one of {', '.join(names)})")
    return found[0]


def _is_whole(text: str) -> bool:
    """Whether it is a whole number from 0; pandas writes 1.0 in a column that once had a gap."""
    return text.removesuffix(".0").isdecimal()


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True

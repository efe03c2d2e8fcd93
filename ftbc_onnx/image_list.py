"""Which images of a folder are used, and with which labels."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ftbc_onnx.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tif", ".tiff")
LABELS_FILE = "labels.csv"
FILE_COLUMNS = ("file", "filename", "file_name", "image", "path")
LABEL_COLUMNS = ("label", "labels", "class", "target")
SEPARATORS = (",", ";", "\t")


def find_images(folder: Path) -> list[str]:
    """All image files under `folder` as sorted relative paths, hidden ones left out."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    return [name for name in names if not any(part.startswith(".") for part in name.split("/"))]


def list_images(folder: Path, where: str) -> tuple[list[str], list[int] | None]:
    """The files to use, sorted, and their labels.

    Labels come from labels.csv (then only the files listed there are used), else from the sub-folders,
    numbered by sorted name, when every image lies in one of at least two, else there are none.
    """
    if (folder / LABELS_FILE).is_file():
        return listed_images(folder, folder / LABELS_FILE, where)
    files = find_images(folder)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2 or any("/" not in file for file in files):
        return files, None
    number = {name: index for index, name in enumerate(classes)}
    return files, [number[file.split("/", 1)[0]] for file in files]


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
        if not label.isdecimal():
            raise DataError(
                f"{path}, line {lines[file]}: {file!r} has label {label!r}, expected a whole number from 0, "
                "or names of classes in every line"
            )
    return {file: int(label) for file, label in labels.items()}


def _column(header: Sequence[str] | None, names: Sequence[str], path: Path) -> str:
    """The only column that is called like one of `names`, whatever the case."""
    found = [column for column in header or () if column and column.strip().lower() in names]
    if len(found) != 1:
        raise DataError(f"{path}: the header is {header}, expected the columns file,label (one of {', '.join(names)})")
    return found[0]


def _is_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
